"""Planners and controllers of other kinds, on the same problems: ``peer(problem, seed) -> Plan | Controller``."""
