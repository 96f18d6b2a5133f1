"""The composition root: `moot` and the local stack."""
