"""Claims about growing networks: what widening keeps, what its parts are worth, the time saved."""
