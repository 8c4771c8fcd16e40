"""Singular values and vectors, exact or followed, each with how far it can be wrong."""
