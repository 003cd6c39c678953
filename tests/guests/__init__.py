"""Guests of an unmodified QEMU, with Debian's kernel, on devices that exist only here."""
