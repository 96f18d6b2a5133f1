"""The audit: replays a log, believes nobody, and says what does not add up."""
