"""A virtio-iommu: registers, two virtqueues, and translation by what requests mapped. Virtio 1.2, 5.13.

There is nothing to invalidate: a request has taken effect when it is given back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from softiommu.hardware.iommu import ALL, Iommu, Request, Translation, TranslationFaultError
from softiommu.hardware.virtio.commands import (
    REQUESTS,
    Attach,
    Code,
    Detach,
    Head,
    Map,
    Probe,
    Request as Order,
    Subtype,
    Tail,
    Type,
    Unmap,
    size_of,
    to_bytes,
)
from softiommu.hardware.virtio.common import Isr, Number
from softiommu.hardware.virtio.domains import Domain
from softiommu.hardware.virtio.events import Fault, Reason
from softiommu.hardware.virtio.face import Face
from softiommu.hardware.virtio.queue import BrokenQueueError, Chain, Virtqueue
from softiommu.hardware.virtio.registers import EVENTS, REQUESTS as REQUEST_QUEUE
from softiommu.memory.physical import BadAddressError
from softiommu.pagetable.kinds import EXECUTE, READ, WRITE

if TYPE_CHECKING:
    from softiommu.events import EventBus
    from softiommu.hardware.virtio.commands import ResvMem
    from softiommu.hardware.virtio.presets import Offer
    from softiommu.memory.physical import PhysicalMemory

_TAIL = size_of(Tail)
_TAILS = {code: to_bytes(Tail.of(STATUS=code)) for code in Code}
_LONGEST = max(size_of(layout) for layout in REQUESTS.values())


class VirtioIommu(Face):
    """One device. `interrupt` hears the vector of an MSI-X message; `line` the level of the pin, where no vector is
    assigned."""

    def __init__(
        self,
        memory: PhysicalMemory,
        offer: Offer,
        interrupt: Callable[[int], None] | None = None,
        line: Callable[[bool], None] | None = None,
        events: EventBus | None = None,
    ) -> None:
        offer.check()
        super().__init__(memory, offer, interrupt, line, events)
        #: Faults that found no buffer in the event queue.
        self.lost = 0
        self._is_running = False

    def on_write_NOTIFY(self, number: int, old: Number, new: Number) -> None:
        """A queue has something new. Buffers for events are taken when there are events."""
        if number == REQUEST_QUEUE:
            self._run()

    # Queues

    def _run(self) -> None:
        """Carry requests out in order, until none is left. A doorbell that an answer rings finds it at work."""
        if self._is_running:
            return
        self._is_running, queue = True, self.queues[REQUEST_QUEUE]
        is_broken = wanted = False
        try:
            wanted = self._drain(queue)
        except (BrokenQueueError, BadAddressError):
            is_broken = True
        finally:
            self._is_running = False
        if is_broken:
            self._break()
        elif wanted:
            self._tell(queue.vector, Isr.of(QUEUE=1))

    def _drain(self, queue: Virtqueue) -> bool:
        """Carry requests out; whether the driver wants to hear of it. BrokenQueueError, BadAddressError."""
        wanted = False
        while self._runs(queue) and (chain := queue.take()) is not None:
            written = self._carry_out(chain)
            if not self._runs(queue):
                return False  # an answer went to the registers, and reset the device
            wanted |= queue.give(chain, written)
        return wanted

    def _carry_out(self, chain: Chain) -> int:
        """Carry a request out; the bytes written: none where it cannot be told what is asked, or where to answer."""
        raw = chain.read(_LONGEST)
        if len(raw) < size_of(Head) or chain.writable < _TAIL:
            return 0
        kind = Head(int.from_bytes(raw[: size_of(Head)], "little")).TYPE
        if not isinstance(kind, Type) or not self._knows(kind):
            return 0
        layout = REQUESTS[kind]
        raw = raw[: size_of(layout)]
        properties = self._offer.probe_size if kind is Type.PROBE else 0
        if len(raw) < size_of(layout) or chain.writable < properties + _TAIL:
            return self._answer(chain, min(properties, chain.writable - _TAIL), b"", Code.INVAL)
        request = layout(int.from_bytes(raw, "little"))
        if isinstance(request, Probe):
            known = request.ENDPOINT in self._offer.endpoints
            data = b"".join(to_bytes(mem) for mem in self._offer.reserved) if known else b""
            return self._answer(chain, properties, data, Code.OK if known else Code.NOENT)
        return self._answer(chain, 0, b"", self._order(request))

    def _knows(self, kind: Type) -> bool:
        if kind is Type.PROBE:
            return bool(self._offer.features.PROBE)
        return bool(self.features.MAP_UNMAP or kind not in (Type.MAP, Type.UNMAP))

    def _order(self, request: Order) -> Code:
        domains = self.domains
        match request:
            case Attach():
                return domains.attach(request, self.features)
            case Detach():
                return domains.detach(request)
            case Map():
                return domains.map(request, self.features)
            case Unmap():
                return domains.unmap(request)
        return Code.DEVERR

    @staticmethod
    def _answer(chain: Chain, length: int, properties: bytes, code: Code) -> int:
        """Write `length` bytes of properties, padded with zeros, and the tail; how many bytes that is."""
        chain.write(0, properties.ljust(length, b"\0") + _TAILS[code])
        return length + _TAIL

    def _report(self, fault: Fault) -> None:
        """Put a fault in the event queue; without a buffer that has room for it, it is lost."""
        queue, data = self.queues[EVENTS], to_bytes(fault)
        try:
            chain = queue.take() if self._runs(queue) else None
            if chain is None:
                self.lost += 1
                return
            fits = chain.writable >= len(data)
            chain.write(0, data if fits else b"")
            self.lost += not fits
            if queue.give(chain, len(data) if fits else 0):
                self._tell(queue.vector, Isr.of(QUEUE=1))
        except (BrokenQueueError, BadAddressError):
            self._break()

    # Translation

    def translate(
        self, sid: int, iova: int, want: int, pasid: int | None = None, privileged: bool = False
    ) -> Translation:
        """Where a request goes. TranslationFaultError."""
        domains = self.domains
        domain = None if pasid is not None else domains.of(sid)
        if domain is None or domain.is_bypass or domains.reserved(iova, iova) is not None:
            return self._untranslated(Request(sid, iova, want, pasid, privileged), domain)
        mapping = domain.at(iova)
        needed = want & WRITE | (READ if want & (READ | EXECUTE) else 0)
        if mapping is None or needed & ~mapping.allowed:
            raise self._fault(Reason.MAPPING, Request(sid, iova, want, pasid, privileged))
        first, last, pa, allowed = mapping
        pa += iova - first
        return Translation(pa, _block(iova, pa, first, last), allowed | (EXECUTE if allowed & READ else 0))

    def _untranslated(self, request: Request, domain: Domain | None) -> Translation:
        """A request that no mapping is asked for. TranslationFaultError."""
        if request.sid not in self._offer.endpoints:
            # A report has an endpoint that the driver knows.
            raise TranslationFaultError(Reason.DOMAIN, request)
        if request.pasid is not None:
            raise self._fault(Reason.UNKNOWN, request)
        mem = self.domains.reserved(request.iova, request.iova)
        if mem is not None:
            return self._at_reserved(mem, request)
        if domain is None and not self._bypasses_unattached():
            raise self._fault(Reason.DOMAIN, request)
        return self._identity(request.iova)

    def _bypasses_unattached(self) -> bool:
        if self._offer.features.BYPASS_CONFIG:
            return bool(self.registers.BYPASS.ON)
        return bool(self.features.BYPASS)

    def _at_reserved(self, mem: ResvMem, request: Request) -> Translation:
        """Doorbells of interrupts are reached as they are; nothing else that is reserved is reached."""
        if mem.SUBTYPE != Subtype.MSI:
            raise self._fault(Reason.MAPPING, request)
        return Translation(request.iova, _block(request.iova, request.iova, mem.START, mem.END), ALL)

    def _identity(self, iova: int) -> Translation:
        """As it is, up to the next reserved range."""
        low, high = 0, (1 << 64) - 1
        for mem in self._offer.reserved:
            if iova > mem.END:
                low = max(low, mem.END + 1)
            else:
                high = min(high, mem.START - 1)
        return Translation(iova, _block(iova, iova, low, high), ALL)

    def _fault(self, reason: Reason, request: Request) -> TranslationFaultError:
        read = int(bool(request.want & (READ | EXECUTE)))
        write = int(bool(request.want & WRITE))
        self._report(
            Fault.of(REASON=reason, READ=read, WRITE=write, ADDRESS_VALID=1, ENDPOINT=request.sid, ADDRESS=request.iova)
        )
        return TranslationFaultError(reason, request)


def _block(iova: int, pa: int, first: int, last: int) -> int:
    """log2 of the largest aligned block around `iova` in `first`..`last` that lies alike in both address spaces."""
    lg2 = (iova ^ last + 1).bit_length() - 1
    if first:
        lg2 = min(lg2, (iova ^ first - 1).bit_length() - 1)
    other = iova ^ pa
    return min(lg2, (other & -other).bit_length() - 1) if other else lg2


_: type[Iommu] = VirtioIommu
