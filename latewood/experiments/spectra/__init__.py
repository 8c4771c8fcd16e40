"""Claims about the spectra of weights while networks train."""
