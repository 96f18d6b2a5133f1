"""Faust: thin processors without rules of their own."""
