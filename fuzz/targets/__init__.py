"""One module per parser; each has a TARGET."""
