"""What a person at a terminal sees of long work: progress bars and tables."""
