"""QEMU's IOMMUs as independent walkers: the same bytes in its memory and in ours give the same address or fault.

Every rig (`rigs.py`) is a machine of QEMU with an e1000 behind an IOMMU, and our model with the same registers and the
same memory. A round makes random tables, spoils some of their entries, and lets the card read and write at mapped,
nearly mapped and any addresses: where it comes to, or what is recorded, must be what our model says. Where QEMU 10.0
does otherwise than the architecture, that is a `Deviation` with a name, or a bit that is not spoiled, with the reason.
"""
