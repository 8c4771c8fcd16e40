"""Kernels in three forms behind one function each; callers never choose the form."""
