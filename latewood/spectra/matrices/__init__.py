"""The matrices of a model: which there are, under which names, and what is read from where."""
