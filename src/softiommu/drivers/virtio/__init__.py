"""The driver of virtio-iommu."""
