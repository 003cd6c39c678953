"""The paravirtual virtio-iommu: mappings are requests in a virtqueue, not tables in memory. Virtio 1.2, 5.13."""
