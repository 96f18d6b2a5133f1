"""The verifiable log: hashing, tree, proofs, blocks, checkpoints.

Knows bytes, not meanings. No I/O, clock, randomness or logging.
"""
