"""The outside world behind small ports: Kafka, MinIO, schema registry, keys."""
