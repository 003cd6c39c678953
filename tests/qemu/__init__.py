"""QEMU's IOMMUs as independent walkers: the same bytes in its memory and in ours give the same address or fault."""
