"""Networks that see a noisy crystal and answer for its lattice, its coordinates and its atom types."""
