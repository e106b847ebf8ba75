"""Defects to put back, one module per area, each with the check that must then fail: see test_mutations.py."""
