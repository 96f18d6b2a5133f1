"""The audit: who believes nobody replays a log, and says what does not add up."""
