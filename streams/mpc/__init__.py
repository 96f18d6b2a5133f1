"""What the parties and dealers of aggregation MPC run."""
