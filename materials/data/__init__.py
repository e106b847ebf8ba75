"""Data sets of crystals: what the tasks learn from, made or found."""
