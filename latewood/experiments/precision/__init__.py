"""Claims about networks whose weights learn how many bits they need."""
