"""Claims about networks on crossbars with stuck cells."""
