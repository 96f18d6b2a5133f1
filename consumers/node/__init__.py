"""Ledger nodes and the log server: blocks verified, attested, and served."""
