"""How a VMM may treat a field of an ID register: the four steps, and the words that the baseline tables are written in.

GET_HW_INFO reports raw registers. A field may be forwarded to a guest only so: (1) it needs software in the kernel: a
capability bit of the kernel tells that it is there; (2) it needs what firmware tables say: a capability bit again;
(3) it is turned on for each VM: by a request when the vIOMMU is allocated; (4) otherwise it is read from the register.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, Flag, auto
from typing import NamedTuple

from softiommu.abi.smmuv3_extension import HW_CAP_BTM, HW_CAP_HTTU, VIOMMU_ALLOC_BTM


class Capability(Flag):
    """What a kernel can be known to do. `TOLD` says how each is known."""

    DIRTY_TRACKING = auto()
    PASID_EXEC = auto()
    PASID_PRIV = auto()
    PASID = auto()
    ATS = auto()
    NESTING = auto()
    SUPERVISOR = auto()
    EXTENDED_ACCESSED = auto()
    PAGE_FAULTS = auto()
    VCMDQ = auto()
    BTM = auto()
    HTTU = auto()


class Request(Flag):
    """What a VMM turns on when it allocates a vIOMMU. `ASKED` says how."""

    VCMDQ = auto()
    BTM = auto()


#: How the kernel lets a VMM know of a capability.
TOLD = {
    Capability.DIRTY_TRACKING: "out_capabilities: IOMMU_HW_CAP_DIRTY_TRACKING",
    Capability.PASID_EXEC: "out_capabilities: IOMMU_HW_CAP_PCI_PASID_EXEC",
    Capability.PASID_PRIV: "out_capabilities: IOMMU_HW_CAP_PCI_PASID_PRIV",
    Capability.PASID: "out_max_pasid_log2 is not 0",
    Capability.ATS: "out_capabilities: IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED is clear, as older kernels have it",
    Capability.NESTING: "tried: a nested HWPT can be attached, or the vIOMMU for one be allocated",
    Capability.SUPERVISOR: "tried: a nested HWPT with IOMMU_VTD_S1_SRE can be attached",
    Capability.EXTENDED_ACCESSED: "tried: a nested HWPT with IOMMU_VTD_S1_EAFE can be attached",
    Capability.PAGE_FAULTS: "tried: an HWPT with a fault queue can be attached",
    Capability.VCMDQ: "tried: a vIOMMU of type TEGRA241_CMDQV can be allocated",
    Capability.BTM: "out_capabilities: bit 62, an extension",
    Capability.HTTU: "out_capabilities: bit 63, an extension",
}

#: Bits of out_capabilities that no released kernel has, far from those that they have.
EXTENSIONS = {Capability.BTM: HW_CAP_BTM, Capability.HTTU: HW_CAP_HTTU}

#: How a VMM makes a request.
ASKED = {
    Request.VCMDQ: "VIOMMU_ALLOC with type IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV",
    Request.BTM: "VIOMMU_ALLOC with bit 31 of flags, an extension",
}

#: The flags of VIOMMU_ALLOC that make a request; a released kernel has none, and refuses each.
REQUEST_FLAGS = {Request.BTM: VIOMMU_ALLOC_BTM}


class Step(Enum):
    """Which of the first three steps a need is."""

    SOFTWARE = "kernel software"
    FIRMWARE = "a firmware table"
    ENABLE = "to be turned on for the VM"


class Need(NamedTuple):
    """What must be there before a field is forwarded. `by` None: no kernel has a bit that says so."""

    step: Step
    what: str
    by: Capability | Request | None = None

    def met(self, kernel: Capability, requests: Request) -> bool:
        """Whether it is there."""
        if isinstance(self.by, Capability):
            return self.by in kernel
        return self.by is not None and self.by in requests

    def __str__(self) -> str:
        return f"{self.step.value}: {self.what} ({self.name or 'no kernel has a bit for it'})"

    @property
    def name(self) -> str:
        """The name of the capability or the request."""
        if isinstance(self.by, Request):
            return f"request {self.by.name}"
        return "" if self.by is None else str(self.by.name)

    @property
    def known_by(self) -> str | None:
        """How a VMM learns that it is there, or sees to it."""
        if isinstance(self.by, Request):
            return ASKED[self.by]
        return None if self.by is None else TOLD[self.by]


#: Whether a guest can be offered the first value where the second is what there is.
Order = Callable[[int, int], bool]


def subset(offered: int, most: int) -> bool:
    """Each bit is a feature of its own."""
    return not offered & ~most


def at_most(offered: int, most: int) -> bool:
    """A larger number is more."""
    return offered <= most


def demand(offered: int, most: int) -> bool:
    """A set bit asks something of software: it is not hidden."""
    return offered >= most


def equal(offered: int, most: int) -> bool:
    """No value is less than another."""
    return offered == most


def choice(*values: int) -> Order:
    """The first value allows all the others."""

    def among(offered: int, most: int) -> bool:
        return offered == most or (most == values[0] and offered in values)

    return among


class Kind(Enum):
    """Where a field's value comes from."""

    READ = "read"
    OWN = "own"
    MASK = "mask"


@dataclass(frozen=True)
class Rule:
    """What a VMM does with one field. `absent` is the value that says that the feature is not there."""

    kind: Kind
    why: str
    source: str
    order: Order = subset
    needs: tuple[Need, ...] = ()
    absent: int = 0
    #: What the kernel's documentation says to take for granted, whatever the register says.
    assumed: int | None = None

    def allows(self, offered: int, most: int) -> bool:
        """Whether a guest can be offered a value where `most` is what it may have. What has needs can be left out."""
        return self.kind is Kind.OWN or self.order(offered, most) or (bool(self.needs) and offered == self.absent)


#: A rule for each field of a register.
Table = Mapping[str, Rule]


def read(why: str, source: str, order: Order = subset, needs: tuple[Need, ...] = ()) -> Rule:
    """The register's value, as soon as what it needs is there."""
    return Rule(Kind.READ, why, source, order, needs)


def own(why: str, source: str) -> Rule:
    """The VMM emulates this part by itself, and says so as it likes."""
    return Rule(Kind.OWN, why, source)


def mask(why: str, source: str) -> Rule:
    """Not for guests."""
    return Rule(Kind.MASK, why, source)
