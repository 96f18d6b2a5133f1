"""The local stack: its programs, its processes, its services."""
