"""Drivers: what the manager may ask of them."""
