"""Networks that part and meet: branches, the line between their ends, and the order of channels."""
