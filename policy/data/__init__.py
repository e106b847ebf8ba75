"""Demonstrations: episodes stored end to end in one array per quantity, and the windows a policy learns from."""
