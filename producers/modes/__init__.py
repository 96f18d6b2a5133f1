"""The agent's side of each aggregation mode."""
