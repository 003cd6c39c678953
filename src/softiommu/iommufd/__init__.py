"""The I/O address-space manager: objects and commands of /dev/iommu."""
