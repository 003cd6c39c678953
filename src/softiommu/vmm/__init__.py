"""What a VMM needs between its guest and iommufd."""
