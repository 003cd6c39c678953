"""Intel VT-d: DMA remapping in legacy and scalable mode."""
