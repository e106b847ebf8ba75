"""Measurements that the documentation reports."""
