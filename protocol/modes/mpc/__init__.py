"""Aggregation MPC: parties add up shares, and nobody sees an update."""
