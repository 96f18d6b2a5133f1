"""What parties of aggregation MPC keep on disk, and how they connect."""
