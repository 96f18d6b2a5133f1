"""Aggregation modes: one module or folder for each."""
