"""Planning for a robot arm that stacks blocks: one learned prior of single moves, goals and constraints as energies."""
