"""The driver of a virtio-iommu: it negotiates features, sets two virtqueues up, and sends requests.

It does what a kernel's driver does. An endpoint is never left without a domain, since the device may then let it reach
all memory: one that is blocked is attached to a domain in which nothing is mapped.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from errno import ENOSPC

from softiommu.drivers.driver import Range
from softiommu.drivers.function import Bus, Function
from softiommu.drivers.virtio.device import VirtioDevice
from softiommu.drivers.virtio.domain import VirtioDomain
from softiommu.drivers.virtio.faults import FaultLog
from softiommu.drivers.virtio.requests import RequestQueue
from softiommu.errors import ModelError, UapiError
from softiommu.hardware.virtio.commands import Attach, Probe, Type
from softiommu.hardware.virtio.common import Status
from softiommu.hardware.virtio.registers import Features, Registers
from softiommu.memory.physical import PhysicalMemory

#: What the driver can make use of.
_KNOWN = Features.of(INPUT_RANGE=1, DOMAIN_RANGE=1, MAP_UNMAP=1, PROBE=1, MMIO=1, BYPASS_CONFIG=1, VERSION_1=1)


@dataclass(frozen=True)
class Quirks:
    """How a kernel's driver behaves where versions differ."""

    #: A domain gets its number and its aperture at its first attach; until then its aperture is one byte.
    late_domains: bool = False


LINUX_6_12 = Quirks(late_domains=True)
LINUX_7_2 = Quirks()


class VirtioDriver:
    """One device, set up and running."""

    def __init__(self, memory: PhysicalMemory, bus: Bus, quirks: Quirks = LINUX_7_2) -> None:
        self.memory, self.quirks, self._bus = memory, quirks, bus
        self._status(Status(0))
        self._status(Status.of(ACKNOWLEDGE=1))
        self._status(Status.of(ACKNOWLEDGE=1, DRIVER=1))
        self.features = self._negotiate()
        self._read_limits()
        self.requests = RequestQueue(memory, bus, self._probe_size)
        self.faults = FaultLog(memory, bus)
        self._status(Status.of(ACKNOWLEDGE=1, DRIVER=1, FEATURES_OK=1, DRIVER_OK=1))
        self.faults.fill()
        self._attached: dict[int, VirtioDomain] = {}
        self._free: list[int] = []
        self.blocking = VirtioDomain(self)

    def _status(self, status: Status) -> None:
        self._bus.write(Registers.DEVICE_STATUS.offset, 1, status)

    def _negotiate(self) -> Features:
        """Accept what is offered and known (virtio 3.1). ModelError: the device does not work so."""
        offered = 0
        for half in (0, 1):
            self._bus.write(Registers.DEVICE_FEATURE_SELECT.offset, 4, half)
            offered |= self._bus.read(Registers.DEVICE_FEATURE.offset, 4) << 32 * half
        features = Features(offered & _KNOWN)
        if not features.MAP_UNMAP or not features.VERSION_1:
            raise ModelError(f"this driver needs MAP_UNMAP and VERSION_1: {Features(offered)!r}")
        for half in (0, 1):
            self._bus.write(Registers.DRIVER_FEATURE_SELECT.offset, 4, half)
            self._bus.write(Registers.DRIVER_FEATURE.offset, 4, features >> 32 * half & (1 << 32) - 1)
        self._status(Status.of(ACKNOWLEDGE=1, DRIVER=1, FEATURES_OK=1))
        if not Status(self._bus.read(Registers.DEVICE_STATUS.offset, 1)).FEATURES_OK:
            raise ModelError(f"the device does not work with {features!r}")
        return features

    def _read_limits(self) -> None:
        """The device configuration; what no feature tells of is unlimited (virtio 5.13.4)."""
        bus, features = self._bus, self.features
        self.page_sizes = bus.read(Registers.PAGE_SIZE_MASK.offset, 8)
        if not self.page_sizes:
            raise ModelError("the device has no page size")
        self.aperture, numbers = Range(0, (1 << 64) - 1), Range(0, (1 << 32) - 1)
        if features.INPUT_RANGE:
            self.aperture = Range(bus.read(Registers.INPUT_START.offset, 8), bus.read(Registers.INPUT_END.offset, 8))
        if features.DOMAIN_RANGE:
            numbers = Range(bus.read(Registers.DOMAIN_START.offset, 4), bus.read(Registers.DOMAIN_END.offset, 4))
        self._next, self._last = numbers
        self._probe_size = bus.read(Registers.PROBE_SIZE.offset, 4) if features.PROBE else 0

    def take_number(self) -> int:
        """A free domain number. ENOSPC."""
        if self._free:
            return heapq.heappop(self._free)
        if self._next > self._last:
            raise UapiError(ENOSPC, "every domain number is used")
        self._next += 1
        return self._next - 1

    def give_number(self, number: int) -> None:
        """A domain is gone."""
        heapq.heappush(self._free, number)

    def attach(self, sids: Sequence[int], domain: VirtioDomain) -> None:
        """Move endpoints to a domain. When the device refuses one (UapiError), all are back where they were."""
        moved: list[tuple[int, VirtioDomain]] = []
        try:
            for sid in sids:
                moved.append((sid, self._attached.get(sid, self.blocking)))
                self._attach(sid, domain)
        except UapiError:
            for sid, old in reversed(moved):
                self._attach(sid, old)
            raise

    def _attach(self, sid: int, domain: VirtioDomain) -> None:
        self.requests.send(Attach.of(TYPE=Type.ATTACH, DOMAIN=domain.settle(), ENDPOINT=sid))
        old = self._attached.get(sid)
        if old is domain:
            return
        if old is not None:
            old.sids.discard(sid)
        is_first = not domain.sids
        domain.sids.add(sid)
        self._attached[sid] = domain
        if is_first:
            domain.replay()

    def device(self, function: Function) -> VirtioDevice:
        """A function behind this device, blocked. UapiError: the device does not know it."""
        properties = b""
        if self._probe_size:
            probe = Probe.of(TYPE=Type.PROBE, ENDPOINT=function.sids[0])
            properties = self.requests.probe(probe)
        for sid in function.sids:
            if sid not in self._attached:
                self._attach(sid, self.blocking)
        return VirtioDevice(self, function, properties)
