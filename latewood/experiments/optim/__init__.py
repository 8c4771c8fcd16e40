"""Claims about AvaGrad, Delayed Adam, AdaBound and CSGD."""
