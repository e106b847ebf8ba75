"""Transitions that plans are learned from: made, read and written."""
