"""`python -m softiommu`: the command line."""

from softiommu.cli import main

main()
