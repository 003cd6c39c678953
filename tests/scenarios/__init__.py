"""What the design promises, one file for each promise, on every model."""
