"""A policy on a robot that does not wait: chunks, the joins between them, latency and threads.

A chunk takes time to infer and the robot moves on meanwhile, so a chunk is indexed by the control steps it is for, and
what is executed while the next one is inferred is known to whoever draws it.
"""
