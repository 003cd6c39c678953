"""Linux iommufd and the IOMMUs under it, in user space."""
