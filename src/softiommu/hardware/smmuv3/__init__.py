"""Arm SMMUv3: the non-secure programming interface."""
