"""Singular values and vectors, exact or tracked, each with how far it can be wrong."""
