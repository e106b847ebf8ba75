"""How one field of a state is noised: its forward kernel, its prior, its exact reverse kernel."""
