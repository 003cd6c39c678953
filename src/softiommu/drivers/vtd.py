"""The driver of Intel VT-d in legacy mode: context entries, second-stage tables, queued invalidation.

It does what a kernel's driver does: it writes tables in physical memory, puts descriptors in the queue, rings the
doorbell and waits for the status word. It knows the hardware by its registers alone (`Bus`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import EINVAL, ENOMEM

from softiommu.abi.iommufd import HwInfoType, HwInfoVtd, HwInfoVtdFlags
from softiommu.drivers.driver import (
    Device,
    DeviceFeatures,
    Domain,
    DomainFlags,
    HwInfo,
    NestedDomain,
    PageFault,
    PageResponse,
    PagingDomain,
    Reserved,
    ReservedKind,
    UserData,
    Viommu,
    ViommuHost,
    unsupported,
)
from softiommu.drivers.function import Bus
from softiommu.drivers.vtd_domain import VtdDomain
from softiommu.errors import ModelError, UapiError
from softiommu.hardware.vtd.commands import Context, Iotlb0, Range, Type, Wait0, Wait1
from softiommu.hardware.vtd.registers import Cap, Ecap, Gcmd, Iqa, Registers, Rtaddr
from softiommu.hardware.vtd.tables import ContextHigh, ContextLow, RootEntry
from softiommu.memory.physical import PhysicalMemory

_QUEUE_LG2 = 0  # one page: 256 descriptors
_MSI = (0xFEE00000, 0xFEEFFFFF)
_GLOBAL, _DOMAIN, _DEVICE_OR_PAGE = 1, 2, 3


class VtdDriver:
    """One remapping hardware unit, set up and running."""

    def __init__(self, memory: PhysicalMemory, bus: Bus) -> None:
        self.memory, self._bus = memory, bus
        self.cap = Cap(bus.read(Registers.CAP.offset, 8))
        self.ecap = Ecap(bus.read(Registers.ECAP.offset, 8))
        if not self.ecap.QI:
            raise ModelError("this driver needs queued invalidation")
        self._root = memory.alloc(4096)
        self._queue = memory.alloc(4096 << _QUEUE_LG2)
        self._status = memory.alloc(4096)
        self._tail = 0
        self._tickets = 0
        self._dids = set(range(1, 1 << 4 + 2 * self.cap.ND))
        self._start()

    def _start(self) -> None:
        """Root table, queue, global invalidation, translation on (VT-d 3.14, 6.6)."""
        self._bus.write(Registers.RTADDR.offset, 8, Rtaddr.of(RTA=self._root >> 12))
        self._command(0, Gcmd.of(SRTP=1))
        self._bus.write(Registers.IQA.offset, 8, Iqa.of(QS=_QUEUE_LG2, IQA=self._queue >> 12))
        self._bus.write(Registers.IQT.offset, 8, 0)
        self._command(0, Gcmd.of(QIE=1))
        self.submit((Context.of(TYPE=Type.CONTEXT, G=_GLOBAL), 0), (Iotlb0.of(TYPE=Type.IOTLB, G=_GLOBAL), 0))
        self._command(Gcmd.QIE.mask, Gcmd.of(TE=1))

    def _command(self, levels: int, bits: int) -> None:
        self._bus.write(Registers.GCMD.offset, 4, levels | bits)
        if self._bus.read(Registers.GSTS.offset, 4) & bits != bits:
            raise ModelError(f"the hardware does not take the global command {bits:#x}")

    # The queue

    def submit(self, *descriptors: tuple[int, int]) -> None:
        """Put descriptors in the queue, and return when the hardware has carried them out."""
        for descriptor in descriptors:
            self._put(*descriptor)
        self._tickets = self._tickets % 0xFFFF + 1
        self._put(Wait0.of(TYPE=Type.WAIT, SW=1, DATA=self._tickets), Wait1.of(ADDR=self._status >> 2))
        self._bus.write(Registers.IQT.offset, 8, self._tail)
        done = self.memory.read_u64(self._status) & 0xFFFFFFFF
        if done != self._tickets:
            raise ModelError(f"the invalidation queue stopped (FSTS {self._bus.read(Registers.FSTS.offset, 4):#x})")

    def _put(self, low: int, high: int) -> None:
        self.memory.write_u64(self._queue + self._tail, int(low))
        self.memory.write_u64(self._queue + self._tail + 8, int(high))
        self._tail = (self._tail + 16) % (4096 << _QUEUE_LG2)

    def flush_domain(self, did: int) -> None:
        """Forget every translation of a domain."""
        self.submit((Iotlb0.of(TYPE=Type.IOTLB, G=_DOMAIN, DID=did), 0))

    def flush_pages(self, did: int, ranges: Sequence[tuple[int, int]], leaves_only: bool) -> None:
        """Forget the translations of 2**am pages from each page-aligned address (address, am)."""
        low = Iotlb0.of(TYPE=Type.IOTLB, G=_DEVICE_OR_PAGE, DID=did)
        self.submit(*((low, Range.of(ADDR=at >> 12, AM=am, IH=int(leaves_only))) for at, am in ranges))

    # Context entries

    def context(self, sid: int) -> int:
        """The address of a device's context entry; its context table is made where it is missing. ENOMEM."""
        at = self._root + 16 * (sid >> 8)
        root = RootEntry(self.memory.read_u64(at))
        if not root.P:
            try:
                table = self.memory.alloc(4096)
            except MemoryError as error:
                raise UapiError(ENOMEM, "no memory for a context table") from error
            root = RootEntry.of(P=1, CTP=table >> 12)
            self.memory.write_u64(at, root)
        return (root.CTP << 12) + 16 * (sid & 0xFF)

    def set_context(self, sid: int, domain: VtdDomain | None) -> None:
        """Route a device through a domain, or block it. The hardware never sees half of an entry: it is not present
        and forgotten while it changes."""
        at = self.context(sid)
        old = ContextLow(self.memory.read_u64(at))
        if old.P:
            did = ContextHigh(self.memory.read_u64(at + 8)).DID
            self.memory.write_u64(at, 0)
            self.submit(
                (Context.of(TYPE=Type.CONTEXT, G=_DEVICE_OR_PAGE, DID=did, SID=sid), 0),
                (Iotlb0.of(TYPE=Type.IOTLB, G=_DOMAIN, DID=did), 0),
            )
        if domain is not None:
            self.memory.write_u64(at + 8, ContextHigh.of(AW=domain.aw, DID=domain.did))
            self.memory.write_u64(at, ContextLow.of(P=1, SSPTPTR=domain.pages.root >> 12))

    def take_did(self) -> int:
        """A free domain id. ENOMEM: all are used."""
        if not self._dids:
            raise UapiError(ENOMEM, "every domain id is used")
        did = min(self._dids)
        self._dids.remove(did)
        return did

    def give_did(self, did: int) -> None:
        """A domain is gone, and forgotten."""
        self._dids.add(did)

    def device(self, name: str, sid: int, group: object | None = None) -> VtdDevice:
        """A device behind this unit. Devices of one `group` cannot be isolated from one another."""
        return VtdDevice(self, name, sid, group)


class VtdDevice:
    """A device behind a VT-d unit in legacy mode."""

    def __init__(self, driver: VtdDriver, name: str, sid: int, group: object | None) -> None:
        self.name, self.sid = name, sid
        self.on_fault: Callable[[PageFault], None] | None = None
        self.driver: object = driver
        self.iommu: object = driver
        self.group: object = self if group is None else group
        self.features = DeviceFeatures(enforces_coherency=bool(driver.ecap.SC))
        self._vtd = driver

    def reserved_regions(self) -> Sequence[Reserved]:
        """Writes to the interrupt range are interrupts."""
        return (Reserved(*_MSI, ReservedKind.MSI),)

    def hw_info(self, type: int) -> HwInfo | None:
        """The raw capability registers."""
        if type not in (HwInfoType.DEFAULT, HwInfoType.INTEL_VTD):
            return None
        # The kernel's driver sets the erratum bit whatever the hardware is.
        flags = int(HwInfoVtdFlags.ERRATA_772415_SPR17)
        data = HwInfoVtd(flags, 0, int(self._vtd.cap), int(self._vtd.ecap))
        return HwInfo(HwInfoType.INTEL_VTD, data.to_bytes())

    def alloc_paging(self, flags: DomainFlags, data: UserData | None) -> PagingDomain:
        """A second-stage domain as wide as the hardware. EOPNOTSUPP: flags or data."""
        if flags or data is not None:
            raise unsupported("legacy mode has plain second-stage domains only")
        return VtdDomain(self._vtd)

    def alloc_nested(self, parent: PagingDomain, flags: int, data: UserData) -> NestedDomain:
        """Nesting needs scalable mode."""
        raise unsupported("legacy mode has no nesting")

    def viommu_types(self) -> Sequence[int]:
        """None."""
        return ()

    def alloc_viommu(self, type: int, parent: PagingDomain, host: ViommuHost, data: UserData | None) -> Viommu:
        """There is no vIOMMU of this IOMMU."""
        raise unsupported("VT-d has no vIOMMU")

    def attach(self, domain: Domain, pasid: int | None) -> None:
        """Route the device through a domain. EINVAL: a domain of another unit; EOPNOTSUPP: a PASID."""
        if pasid is not None:
            raise unsupported("legacy mode has no PASIDs")
        if not isinstance(domain, VtdDomain) or domain.owner is not self._vtd:
            raise UapiError(EINVAL, f"the domain is not of the IOMMU of {self.name}")
        self._vtd.set_context(self.sid, domain)

    def detach(self, pasid: int | None) -> None:
        """Block the device."""
        if pasid is None:
            self._vtd.set_context(self.sid, None)

    def page_response(self, faults: Sequence[PageFault], code: PageResponse) -> None:
        """Never asked: the device reports no faults."""


_: type[Device] = VtdDevice
