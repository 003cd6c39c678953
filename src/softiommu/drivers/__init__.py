"""What a kernel's vendor drivers do, behind one protocol."""
