"""Claims about learned masks, tickets, and networks that grow and prune themselves."""
