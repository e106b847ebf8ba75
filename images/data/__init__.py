"""Pictures: where they come from, the proof that they are what they say, and how they are kept."""
