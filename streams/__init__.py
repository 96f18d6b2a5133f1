"""Faust: thin processors, no rules of their own."""
