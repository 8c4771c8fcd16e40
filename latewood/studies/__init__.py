"""What takes more than one run: demo, sweeps, ticket search, connectivity, slimming a run."""
