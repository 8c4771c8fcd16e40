"""Claims about kernel and rich regimes."""
