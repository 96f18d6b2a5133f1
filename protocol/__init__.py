"""The executable specification: deciders, admission, aggregation. No I/O."""
