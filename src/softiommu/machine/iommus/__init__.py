"""How a description becomes an IOMMU: one module for each model."""
