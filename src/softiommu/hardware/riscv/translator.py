"""The process to translate an address, with the caches on its way. RISC-V IOMMU 1.0, "Process to translate an IOVA".

Contexts are cached until IODIR names them, translations until IOTINVAL does: what software did not invalidate stays.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.cache import Cache, Entry, Iotlb, Page, Shape
from softiommu.hardware.iommu import ALL, Request, Translation
from softiommu.hardware.links import Link, Links
from softiommu.hardware.riscv.contexts import NO_ID, Device, Space
from softiommu.hardware.riscv.counters import Counters, Who
from softiommu.hardware.riscv.events import ALWAYS_RECORDED, Cause, Ttyp
from softiommu.hardware.riscv.queue import Selection
from softiommu.hardware.riscv.registers import DdtpMode, EventId, Registers
from softiommu.hardware.riscv.tables import PDT_WIDTH
from softiommu.hardware.riscv.walker import BlockedError, InterruptFile, Step, Walker
from softiommu.pagetable.formats.riscv import SUM, G
from softiommu.pagetable.kinds import EXECUTE, WRITE
from softiommu.pagetable.walk import new

if TYPE_CHECKING:
    from softiommu.memory.physical import PhysicalMemory

#: Who asks: the third tag of a first-stage translation.
_USER, _SUPERVISOR, _SUPERVISOR_WITH_SUM = 0, 1, 2


class Shapes(NamedTuple):
    """How large the caches are: of first- and of second-stage leaves, of links to their tables, of device and of
    process contexts."""

    first: Shape = Shape(16, 8)
    second: Shape = Shape(16, 8)
    links: Shape = Shape(8, 8)
    devices: Shape = Shape(8, 8)
    processes: Shape = Shape(8, 8)


class Kind(Enum):
    """What a device sends: the transaction type of its reads, and the event that is counted."""

    UNTRANSLATED = Ttyp.UNTRANSLATED_READ, EventId.UNTRANSLATED
    TRANSLATED = Ttyp.TRANSLATED_READ, EventId.TRANSLATED
    ATS = Ttyp.ATS_TRANSLATION, EventId.ATS_TRANSLATION
    MESSAGE = Ttyp.MESSAGE, EventId.NONE

    def __init__(self, read: Ttyp, event: EventId) -> None:
        self.read, self.event = read, event

    def ttyp(self, want: int) -> Ttyp:
        """The transaction type of a record."""
        if self in (Kind.ATS, Kind.MESSAGE):
            return self.read
        return Ttyp(self.read - 1 if want & EXECUTE else self.read + 1 if want & WRITE else self.read)


_UNTRANSLATED, _TRANSLATED = Kind.UNTRANSLATED, Kind.TRANSLATED


class Found(NamedTuple):
    """A translation, with what only some ask for."""

    at: Translation
    pbmt: int = 0
    mrif: InterruptFile | None = None


class Translator:
    """Locates contexts and translates, out of caches or tables."""

    def __init__(self, registers: Registers, memory: PhysicalMemory, shapes: Shapes, counters: Counters) -> None:
        self._registers, self._counters = registers, counters
        #: Links to tables, tagged as the walker says.
        self.links = Links(shapes.links)
        self.walker = Walker(memory, registers.CAPABILITIES, self.links)
        #: Tags: GSCID, PSCID, who asks. The output is guest-physical where there is a GSCID.
        self.first = Iotlb(shapes.first)
        #: Tag: GSCID. MSI page table entries, too.
        self.second = Iotlb(shapes.second)
        self.devices: Cache[int, Device] = Cache(shapes.devices)
        #: By device and process id.
        self.processes: Cache[tuple[int, int], Space] = Cache(shapes.processes)
        self.directory_changed()

    def directory_changed(self) -> None:
        """ddtp was written."""
        self._mode = DdtpMode(self._registers.DDTP.MODE)
        self._has_directory = self._mode not in (DdtpMode.OFF, DdtpMode.BARE)
        self._device_bits = self.walker.device_bits(self._registers.DDTP)

    # The process

    def serve(self, request: Request, kind: Kind) -> Found:
        """Translate. BlockedError with the cause of the step that stopped it."""
        if not self._has_directory and self._mode is DdtpMode.BARE:  # step 2
            if kind is not Kind.UNTRANSLATED:
                raise BlockedError(Cause.TRANSACTION_TYPE_DISALLOWED, request)
            return Found(Translation(request.iova, 64, ALL))
        device = self.device(request)
        try:
            return self._translate(device, request, kind)
        except BlockedError as fault:
            fault.quiet = bool(device.tc.DTF) and fault.cause not in ALWAYS_RECORDED
            raise

    def device(self, request: Request) -> Device:
        """The device context (steps 1 to 6, of a mode with a directory)."""
        if request.sid >> self._device_bits or not self._has_directory:
            off = self._mode is DdtpMode.OFF
            raise BlockedError(Cause.ALL_INBOUND_DISALLOWED if off else Cause.TRANSACTION_TYPE_DISALLOWED, request)
        device = self.devices.get(request.sid)
        if device is None:
            self._counters.count(EventId.DEVICE_WALK, Who(request.sid))
            device = self.walker.device(self._registers.DDTP, request)
            self.devices.put(request.sid, device)
        return device

    def _translate(self, device: Device, request: Request, kind: Kind) -> Found:
        tc, pasid, translated = device.tc, request.pasid, kind is _TRANSLATED
        if kind is not _UNTRANSLATED and not tc.EN_ATS:  # step 7a
            raise BlockedError(Cause.TRANSACTION_TYPE_DISALLOWED, request)
        if pasid is not None and (not tc.PDTV or pasid >> PDT_WIDTH[device.pdtp.MODE]):  # steps 7b and 7c
            raise BlockedError(Cause.TRANSACTION_TYPE_DISALLOWED, request)
        if translated and not tc.T2GPA:  # step 8
            return Found(Translation(request.iova, 64, ALL))
        if pasid is None and not translated and tc.DPE:
            request = request._replace(pasid=0)  # step 11; as in the reference model, records have it, too
        space = _GUEST_PHYSICAL if translated else self._space(device, request)
        inner = self._first(device, space, request)
        if device.second is None:
            return new(Found, (new(Translation, inner[:3]), inner.pbmt, None))
        outer = self._second(device, inner.oa, request)
        lg2 = inner.lg2 if inner.lg2 < outer.lg2 else outer.lg2
        # With T2GPA a device caches guest-physical addresses.
        pa = inner.oa if tc.T2GPA and kind is Kind.ATS else outer.oa
        at = new(Translation, (pa, lg2, inner.allowed & outer.allowed))
        return new(Found, (at, inner.pbmt or outer.pbmt, outer.mrif))

    def _space(self, device: Device, request: Request) -> Space:
        """The first stage of a request (steps 10 to 16)."""
        if request.pasid is None or not device.tc.PDTV or not device.pdtp.MODE:
            return device.space
        key = (request.sid, request.pasid)
        space = self.processes.get(key)
        if space is None:
            self._counters.count(EventId.PROCESS_WALK, Who(request.sid, request.pasid, device.gscid))
            space = self.walker.process(device, request.pasid, request)
            self.processes.put(key, space)
        if request.privileged and not space.ens:  # step 15
            raise BlockedError(Cause.TRANSACTION_TYPE_DISALLOWED, request)
        return space

    def _first(self, device: Device, space: Space, request: Request) -> Step:
        """The first stage, cached or walked (step 17)."""
        if space.first is None:
            return Step(request.iova, 64, ALL)
        who = _USER
        if request.privileged:
            who = _SUPERVISOR_WITH_SUM if space.first.table.option & SUM else _SUPERVISOR
        tags = (device.gscid, space.pscid, who)
        cached = self.first.find(tags, request.iova)
        if cached is not None and not request.want & ALL & ~cached[1].allowed:
            return _hit(cached, request.iova)
        if self._counters.counted:
            self._missed(EventId.FIRST_STAGE_WALK, device, space, request)
        step = self.walker.first(device, space, request)
        _keep(self.first, tags, request.iova, step)
        return step

    def _second(self, device: Device, gpa: int, request: Request) -> Step:
        """The second stage or an interrupt file, cached or walked (steps 18 and 19)."""
        tags = (device.gscid,)
        cached = self.second.find(tags, gpa)
        if cached is not None and not request.want & ALL & ~cached[1].allowed:
            return _hit(cached, gpa)
        if self._counters.counted:
            self._missed(EventId.SECOND_STAGE_WALK, device, _GUEST_PHYSICAL, request)
        step = self.walker.second(device, gpa, request)
        if step.mrif is None:
            _keep(self.second, tags, gpa, step)
        return step

    def _missed(self, event: EventId, device: Device, space: Space, request: Request) -> None:
        pasid = NO_ID if request.pasid is None else request.pasid
        who = Who(request.sid, pasid, device.gscid, space.pscid)
        self._counters.count(EventId.TLB_MISS, who)
        self._counters.count(event, who)

    # What commands forget

    def forget_devices(self, device_id: int | None) -> None:
        """Device contexts, and the process contexts under them."""
        self.devices.drop(lambda key, device: device_id is None or key == device_id)
        self.processes.drop(lambda key, space: device_id is None or key[0] == device_id)

    def forget_process(self, device_id: int, process_id: int) -> None:
        """A process context."""
        self.processes.drop(lambda key, space: key == (device_id, process_id))

    def forget_first(self, selection: Selection) -> None:
        """First-stage translations: of host spaces, or of one guest's. With a PSCID, global ones stay."""
        gscid = NO_ID if selection.gscid is None else selection.gscid

        def chosen(page: Page, is_global: bool) -> bool:
            if page.tags[0] != gscid or not _in_window(page, selection):
                return False
            return selection.pscid is None or (page.tags[1] == selection.pscid and not is_global)

        self.first.cache.drop_range(selection.window, lambda page, entry: chosen(page, entry.is_global))
        if not selection.leaves_only:
            self.links.drop(lambda page, link: len(page.tags) == _FIRST and chosen(page, _is_global(link)))

    def forget_second(self, selection: Selection) -> None:
        """Second-stage translations."""

        def chosen(page: Page) -> bool:
            return selection.gscid in (None, page.tags[0]) and _in_window(page, selection)

        self.second.cache.drop_range(selection.window, lambda page, entry: chosen(page))
        if not selection.leaves_only:
            self.links.drop(lambda page, link: len(page.tags) == _SECOND and chosen(page))


#: The first stage of an address that is guest-physical.
_GUEST_PHYSICAL = Space()


#: How many tags the links of a stage have.
_FIRST, _SECOND = 2, 1


def _is_global(link: Link) -> bool:
    """Whether an entry on the way is global, and so everything below it."""
    _, (_, _, _, some) = link
    return bool(some & G)


def _in_window(page: Page, selection: Selection) -> bool:
    return selection.window is None or Iotlb.meets(page, *selection.window)


def _hit(cached: tuple[int, Entry], address: int) -> Step:
    lg2, entry = cached
    return new(Step, (entry.oa | address & (1 << lg2) - 1, lg2, entry.allowed, False, 0, None))


def _keep(iotlb: Iotlb, tags: tuple[int, ...], address: int, step: Step) -> None:
    """Cache what can be used without touching the flags."""
    if step.allowed:
        iotlb.fill(tags, address, step.lg2, Entry(step.oa & -1 << step.lg2, step.allowed, step.is_global))
