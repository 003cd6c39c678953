"""`python -m softiommu.cli`."""

from softiommu.cli import main

main()
