"""The driver of AMD's IOMMU."""
