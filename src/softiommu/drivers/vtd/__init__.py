"""The driver of Intel's VT-d."""
