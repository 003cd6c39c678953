"""VFIO consumers."""
