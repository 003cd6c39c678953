"""The kernel's mock IOMMU of tests."""
