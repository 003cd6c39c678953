"""How a description becomes a device: one module for each model."""
