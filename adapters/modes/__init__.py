"""What of the outside world single modes of aggregation need."""
