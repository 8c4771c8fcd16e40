"""Spectra while a network trains: when to observe, where the work is done, and what is kept."""
