"""The driver of the RISC-V IOMMU."""
