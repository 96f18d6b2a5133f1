"""Benchmarks: `moot bench` loads them from a checkout."""
