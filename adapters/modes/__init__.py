"""What particular aggregation modes need of the outside world."""
