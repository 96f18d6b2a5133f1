"""Global models as files for others to run: exported, measured, claimed."""
