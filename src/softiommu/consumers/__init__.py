"""Who uses address spaces: VFIO devices and groups over iommufd."""
