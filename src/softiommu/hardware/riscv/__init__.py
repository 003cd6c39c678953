"""RISC-V IOMMU: directories of devices and processes, two stages, MSI page tables."""
