"""Where the manager and the vendor drivers meet: what each side may ask of the other.

A driver gives `Device`s; a device makes domains and vIOMMUs; the manager (iommufd) maps, attaches and invalidates
through them, and hears of faults through `Device.on_fault`. The roles are those of the kernel's iommu_ops,
iommu_domain_ops and iommufd_viommu_ops. Refusals are UapiErrors, with the errno the kernel's driver would choose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, Flag, auto
from errno import EOPNOTSUPP
from typing import NamedTuple, Protocol, runtime_checkable

from softiommu.drivers.user_data import Handled, UserArray, UserData
from softiommu.errors import UapiError


class Prot(Flag):
    """What a mapping lets a device do."""

    NONE = 0
    READ = auto()
    WRITE = auto()

    @property
    def readable(self) -> bool:
        """Whether it has READ (a plain bit test: the `in` of enum costs ten times as much)."""
        return bool(self._value_ & 1)

    @property
    def writable(self) -> bool:
        """Whether it has WRITE."""
        return bool(self._value_ & 2)


class Range(NamedTuple):
    """An inclusive range of I/O addresses."""

    first: int
    last: int


class ReservedKind(Enum):
    """Why a device keeps a range for itself (enum iommu_resv_type)."""

    DIRECT = "direct"
    DIRECT_RELAXABLE = "direct-relaxable"
    RESERVED = "reserved"
    MSI = "msi"
    SW_MSI = "sw-msi"


class Reserved(NamedTuple):
    """A range that no mapping may use while the device is attached."""

    first: int
    last: int
    kind: ReservedKind


class DomainFlags(Flag):
    """What a paging domain must be able to do (IOMMU_HWPT_ALLOC_*)."""

    NONE = 0
    NEST_PARENT = auto()
    DIRTY_TRACKING = auto()
    PASID = auto()


class DirtyReport(Protocol):
    """Where a domain reports what was written."""

    def record(self, iova: int, length: int) -> None:
        """The device wrote somewhere in `iova`..`iova+length-1`."""
        ...


class Domain(Protocol):
    """What a device can be attached to."""

    @property
    def owner(self) -> object:
        """The driver that made it: devices of another driver refuse it."""
        ...


class PagingDomain(Domain, Protocol):
    """A page table the manager fills (iommu_domain_ops)."""

    @property
    def page_sizes(self) -> int:
        """Bitmap of the leaf sizes: bit n for 2**n bytes."""
        ...

    @property
    def aperture(self) -> Range:
        """The I/O addresses it can translate."""
        ...

    @property
    def flags(self) -> DomainFlags:
        """What it was made for."""
        ...

    @property
    def cache_coherent(self) -> bool:
        """Whether DMA through it is always coherent with the caches (VFIO_DMA_CC_IOMMU)."""
        ...

    def map(self, iova: int, pa: int, length: int, prot: Prot) -> None:
        """Map a physically contiguous run. All three are multiples of the smallest page size. ENOMEM."""
        ...

    def unmap(self, iova: int, length: int) -> int:
        """Remove what is mapped; the bytes removed (more than asked when a large leaf is cut)."""
        ...

    def flush(self) -> None:
        """Complete the invalidations that `unmap` gathered (iotlb_sync). Pages may be reused afterwards."""
        ...

    def iova_to_pa(self, iova: int) -> int | None:
        """The physical address the table gives for `iova`, or None."""
        ...

    def enforce_cache_coherency(self) -> bool:
        """Make DMA coherent whatever the device asks for; False when the hardware cannot."""
        ...

    def set_dirty_tracking(self, enable: bool) -> None:
        """Start or stop recording writes. Only on a domain made with DIRTY_TRACKING."""
        ...

    def read_dirty(self, window: Range, report: DirtyReport | None, clear: bool) -> None:
        """Report (and clear) the written leaves that meet `window`; None only clears."""
        ...

    def free(self) -> None:
        """Give the tables back. Nothing is attached any more."""
        ...


class NestedDomain(Domain, Protocol):
    """A guest's page table over a paging domain (or made on a vIOMMU)."""

    def invalidate(self, entries: UserArray, handled: Handled) -> None:
        """Carry out invalidation entries in order; EOPNOTSUPP when only the vIOMMU takes them."""
        ...

    def free(self) -> None:
        """Nothing is attached any more."""
        ...


class PageFault(NamedTuple):
    """One I/O page fault; `group` and `last` say which faults one response answers (struct iopf_fault)."""

    pasid: int | None
    group: int
    last: bool
    perm: int
    addr: int


class PageResponse(Enum):
    """How a group of page faults was answered (enum iommu_page_response_code)."""

    SUCCESS = 0
    INVALID = 1
    FAILURE = 2


class HwInfo(NamedTuple):
    """What GET_HW_INFO shows of a device's IOMMU: a type number and its raw structure."""

    type: int
    data: bytes


class DeviceFeatures(NamedTuple):
    """What a device and its IOMMU can do together."""

    #: DMA that asks for it is coherent with the caches (IOMMU_CAP_CACHE_COHERENCY).
    cache_coherent: bool = True
    #: The IOMMU can make all DMA coherent, whatever the device asks for (IOMMU_CAP_ENFORCE_CACHE_COHERENCY).
    enforces_coherency: bool = False
    dirty_tracking: bool = False
    nesting: bool = False
    #: The driver has an operation for nested domains, whether the hardware can nest or not.
    nested_domains: bool = True
    page_faults: bool = False
    #: Its HWPT may have a fault queue though it makes no page requests.
    ignores_fault_queues: bool = False
    ats: bool = False
    max_pasids: int = 0
    pasid_exec: bool = False
    pasid_priv: bool = False
    isolated_msi: bool = True
    #: Of extensions (docs/extensions.md): bits of out_capabilities, and flags that VIOMMU_ALLOC takes.
    capabilities: int = 0
    viommu_flags: int = 0


class Viommu(Protocol):
    """A slice of a physical IOMMU that a guest owns (iommufd_viommu_ops)."""

    def alloc_nested(self, device: Device, flags: int, data: UserData) -> NestedDomain:
        """A nested domain on this vIOMMU; `flags` are the HWPT_ALLOC flags that were given."""
        ...

    def invalidate(self, entries: UserArray, handled: Handled) -> None:
        """Carry out cache invalidation commands in order."""
        ...

    def add_vdevice(self, device: Device, virt_id: int) -> None:
        """The guest calls this device `virt_id`. The manager has checked that both are free."""
        ...

    def remove_vdevice(self, device: Device) -> None:
        """The guest's name for the device is gone."""
        ...

    def hw_queue_types(self) -> Sequence[int]:
        """The HW_QUEUE_ALLOC types it takes."""
        ...

    def add_hw_queue(self, index: int, iova: int, pa: int, length: int) -> int | None:
        """Start queue `index`; the index of the queue that it needs and keeps busy, if any."""
        ...

    def remove_hw_queue(self, index: int) -> None:
        """Stop queue `index`."""
        ...

    def free(self) -> None:
        """Nothing of it is left."""
        ...


class ViommuHost(Protocol):
    """What the manager does for a vIOMMU while the driver makes it, and later."""

    #: Those of VIOMMU_ALLOC.
    flags: int

    def mmap_region(self, length: int, poll: Callable[[], bool] | None = None) -> int:
        """Pages that the VMM can map from the iommufd file: their offset in it. `poll` is called now and then, since
        nobody is told of stores into mapped pages: at every call of the machine that may depend on them. It says
        whether it found a store."""
        ...

    def store(self, offset: int, data: bytes) -> None:
        """Write into a region given by `mmap_region`."""
        ...

    def load(self, offset: int, length: int) -> bytes:
        """Read from a region given by `mmap_region`."""
        ...

    def report_event(self, type: int, data: bytes) -> None:
        """Queue an event for the guest; EOPNOTSUPP when no event queue of this type exists."""
        ...


@runtime_checkable
class Device(Protocol):
    """A device behind an IOMMU, as its driver shows it."""

    #: Set by the manager while the device is bound: where page faults go. None drops them.
    on_fault: Callable[[PageFault], None] | None

    @property
    def name(self) -> str:
        """The device's name in the machine: a PCI address, or a mock number."""
        ...

    @property
    def driver(self) -> object:
        """The driver that serves it."""
        ...

    @property
    def iommu(self) -> object:
        """The IOMMU instance it sits behind; vIOMMUs and vdevices stay inside one."""
        ...

    @property
    def group(self) -> object:
        """Equal for devices that cannot be isolated from one another."""
        ...

    @property
    def features(self) -> DeviceFeatures:
        """What the device and its IOMMU can do together."""
        ...

    def reserved_regions(self) -> Sequence[Reserved]:
        """Ranges that mappings must leave free while the device is attached."""
        ...

    def hw_info(self, type: int) -> HwInfo | None:
        """The structure of this type (0 asks for the default one); None when there is none."""
        ...

    def alloc_paging(self, flags: DomainFlags, data: UserData | None) -> PagingDomain:
        """An empty paging domain. EOPNOTSUPP for flags or data the driver does not have."""
        ...

    def alloc_nested(self, parent: PagingDomain, flags: int, data: UserData) -> NestedDomain:
        """A nested domain straight on `parent`; `flags` are the HWPT_ALLOC flags that were given."""
        ...

    def viommu_types(self) -> Sequence[int]:
        """The VIOMMU_ALLOC types it takes."""
        ...

    def alloc_viommu(self, type: int, parent: PagingDomain, host: ViommuHost, data: UserData | None) -> Viommu:
        """A vIOMMU over `parent`."""
        ...

    def attach(self, domain: Domain, pasid: int | None) -> None:
        """Route (RID) or (RID, PASID) through `domain`, in place of whatever it had. EINVAL: cannot work together.
        When it raises, the old route stays."""
        ...

    def detach(self, pasid: int | None) -> None:
        """Block (RID) or (RID, PASID)."""
        ...

    def page_response(self, faults: Sequence[PageFault], code: PageResponse) -> None:
        """Answer a group of faults, which a PageFault with `last` closed."""
        ...


@runtime_checkable
class SoftwareNesting(Protocol):
    """A device that can also be attached to tables which the program fills, nested on others."""

    def alloc_mapped(self, parent: PagingDomain, flags: DomainFlags) -> PagingDomain:
        """An empty table whose mappings lead to addresses of `parent`."""
        ...


def unsupported(what: str) -> UapiError:
    """The kernel's answer for a driver operation that is missing."""
    return UapiError(EOPNOTSUPP, what)
