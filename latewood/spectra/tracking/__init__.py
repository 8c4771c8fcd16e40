"""Spectra while a network trains: when to look, where the work is done, and what is kept."""
