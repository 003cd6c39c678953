"""Machines with an SMMUv3 in front of the test device (stream 0x28) and the teaching device (0x20)."""

from softiommu.machine.assemble import Machine
from softiommu.machine.description import parse

_TEXT = """
name = "arm"

[[iommu]]
name = "smmu0"
model = "smmuv3"
{lines}

[[device]]
name = "pcitest0"
address = "0000:00:05.0"
model = "pcitest"
pasid_bits = 16

[[device]]
name = "edu0"
address = "0000:00:04.0"
model = "edu"
dma_bits = 64
"""


def arm(*lines):
    """A machine whose description has these lines for the IOMMU."""
    return Machine(parse(_TEXT.format(lines="\n".join(lines)), "arm"))
