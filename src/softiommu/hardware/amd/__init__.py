"""AMD IOMMU: DMA remapping by v1 host tables and v2 guest tables, one or both."""
