"""Models and data to try Folkmoot with, each an ordinary Lightning pair."""
