"""Global models as files that others run: made, measured, claimed."""
