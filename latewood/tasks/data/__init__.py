"""Data sets as tensors: found, decoded once, stored, and read in one order; see ``datasets``."""
