"""The processes of aggregation MPC: parties and dealers."""
