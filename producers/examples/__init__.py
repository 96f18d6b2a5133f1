"""Models and data to try Folkmoot with; each is an ordinary Lightning pair."""
