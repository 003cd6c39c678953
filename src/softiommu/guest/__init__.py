"""Guests of QEMU on a machine in user space: what they boot, how QEMU is called, and what came of it."""
