"""The language: events, their Avro schemas, topics and reason codes."""
