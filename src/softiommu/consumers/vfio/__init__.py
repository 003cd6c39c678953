"""VFIO: devices by their own nodes, and by groups and containers."""
