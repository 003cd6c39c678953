"""The driver of Arm's SMMUv3."""
