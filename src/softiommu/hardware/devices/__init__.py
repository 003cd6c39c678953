"""Devices that do DMA."""
