"""What the kernel's headers say: structures, numbers, flags. Layouts only."""
