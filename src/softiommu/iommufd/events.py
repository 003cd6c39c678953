"""Queues to the program: I/O page faults with their answers, and a vIOMMU's events. Each is a file descriptor."""

from __future__ import annotations

from collections import deque
from errno import EEXIST, EINVAL, EOPNOTSUPP, ESPIPE
from itertools import count as numbers
from typing import TYPE_CHECKING, NamedTuple

from softiommu.abi import iommufd as abi
from softiommu.drivers.driver import PageFault, PageResponse
from softiommu.errors import UapiError
from softiommu.iommufd.context import Context
from softiommu.iommufd.dispatch import Answer
from softiommu.iommufd.ioas import refuse
from softiommu.iommufd.objects import Object
from softiommu.memory.files import POLLIN, POLLOUT, File

if TYPE_CHECKING:
    from softiommu.iommufd.context import Services
    from softiommu.iommufd.device import DeviceObject
    from softiommu.iommufd.hwpt import Hwpt
    from softiommu.iommufd.viommu import ViommuObject
    from softiommu.memory.client import Caller

_FAULT = abi.HwptPgfault.SIZE
_RESPONSE = abi.HwptPageResponse.SIZE
_HEADER = abi.VeventHeader.SIZE
_PASID_VALID, _LAST_PAGE = 1, 2
_LOST = 1
_MAX_DEPTH = 1 << 19
_SEQUENCE = 2**31 - 1


class EventFile(File):
    """The descriptor of a queue: it keeps the queue busy and the iommufd alive."""

    has_data = True

    def __init__(self, ctx: Context, queue: FaultQueue | VeventQueue) -> None:
        super().__init__()
        self.ctx, self.queue = ctx, queue
        self.kind = queue.kind
        self.always_empty = not ctx.services.has_devices
        queue.users += 1
        queue.file = self
        ctx.hold()

    def read(self, caller: Caller, va: int, count: int, offset: int | None = None) -> int:
        """Whole entries only; never blocks: 0 when nothing waits. ESPIPE: not seekable, or a cut entry."""
        if offset is not None:
            raise UapiError(ESPIPE, f"a {self.kind} has no offsets")
        self.ctx.services.poll()
        return self.queue.read(caller, va, count)

    def write(self, caller: Caller, va: int, count: int, offset: int | None = None) -> int:
        """Answers to page faults."""
        if offset is not None:
            raise UapiError(ESPIPE, f"a {self.kind} has no offsets")
        self.ctx.services.poll()
        return self.queue.write(caller, va, count)

    def poll(self) -> int:
        """IN while something waits."""
        return self.queue.poll()

    def release(self) -> None:
        """The last descriptor is closed."""
        self.queue.users -= 1
        self.queue.file = None
        self.ctx.put()


class FaultGroup(NamedTuple):
    """Faults that one response answers."""

    device: DeviceObject
    #: What is attached where the faults came from: a PASID, or None for the RID.
    route: int | None
    faults: tuple[PageFault, ...]
    #: When the machine's clock shows this, the answer is FAILURE.
    deadline: int | None = None


class Unanswered(NamedTuple):
    """A group of page faults that the program did not answer in time."""

    device: str
    #: The last of them, and how many they are.
    fault: PageFault
    pages: int

    def __str__(self) -> str:
        """One line for the kernel's log."""
        with_pasid = "" if self.fault.pasid is None else f" with PASID {self.fault.pasid:#x}"
        what = f"{self.pages} page fault{'s' if self.pages > 1 else ''} of {self.device}{with_pasid}"
        return f"{what}, group {self.fault.group}, the last at {self.fault.addr:#x}: no answer in time, so FAILURE"


class FaultQueue(Object):
    """Page faults of the devices attached to HWPTs that use it (iommufd_fault)."""

    kind = "fault queue"

    def __init__(self, services: Services) -> None:
        super().__init__()
        self._services = services
        self.file: EventFile | None = None
        self._waiting: deque[FaultGroup] = deque()
        self._answering: dict[int, FaultGroup] = {}
        self._lowest_cookie = 1
        #: No free cookie is below it.
        self._next_cookie = 1
        #: Cookies whose time is over: nobody else has them until their late answer was refused.
        self._late: set[int] = set()

    def add(self, group: FaultGroup) -> None:
        """A group of faults is complete."""
        self._waiting.append(group)
        if group.deadline is not None:
            self._services.pollers[self] = self.expire
        self._changed()

    def expire(self) -> None:
        """Answer FAILURE for the program where its time is over. Groups are in the order of their deadlines."""
        patience = self._services.patience
        if patience is None or not (self._waiting or self._answering):
            return
        now, late = patience.clock.now(), list[FaultGroup]()
        while self._answering and _is_over(next(iter(self._answering.values())), now):
            cookie = next(iter(self._answering))
            late.append(self._answering.pop(cookie))
            self._late.add(cookie)
        while self._waiting and _is_over(self._waiting[0], now):
            late.append(self._waiting.popleft())
        if late:
            self._settled()
            self._changed()
        for group in late:
            self._services.report(str(Unanswered(group.device.device.name, group.faults[-1], len(group.faults))))
            group.device.device.page_response(group.faults, PageResponse.FAILURE)

    def _settled(self) -> None:
        """Groups went: without any there are no deadlines."""
        if not self._waiting and not self._answering:
            self._services.pollers.pop(self, None)

    def read(self, caller: Caller, va: int, count: int) -> int:
        """Groups of 40-byte entries, each group whole and with one cookie."""
        if count % _FAULT:
            raise UapiError(ESPIPE, f"a read of {count} bytes is not a multiple of {_FAULT}")
        done = 0
        while self._waiting:
            group = self._waiting[0]
            size = len(group.faults) * _FAULT
            if size > count - done:
                if done:
                    break
                raise UapiError(EINVAL, f"the first group needs {size} bytes, {count} were given")
            cookie = next(n for n in numbers(self._next_cookie) if n not in self._answering and n not in self._late)
            try:
                caller.write(va + done, b"".join(_entry(group, fault, cookie) for fault in group.faults))
            except UapiError:
                if done:
                    break
                raise
            self._waiting.popleft()
            self._answering[cookie] = group
            self._next_cookie = cookie + 1
            done += size
        if done:
            self._changed()
        return done

    def write(self, caller: Caller, va: int, count: int) -> int:
        """Responses of 8 bytes: a cookie and a code. Stops at a bad one; EINVAL, EFAULT when it is the first."""
        if count % _RESPONSE:
            raise UapiError(ESPIPE, f"a write of {count} bytes is not a multiple of {_RESPONSE}")
        done = 0
        while done < count:
            try:
                self._respond(abi.HwptPageResponse.from_bytes(caller.read(va + done, _RESPONSE)))
            except UapiError:
                if done:
                    break
                raise
            done += _RESPONSE
        return done

    def _respond(self, response: abi.HwptPageResponse) -> None:
        if response.code not in (PageResponse.SUCCESS.value, PageResponse.INVALID.value):
            raise UapiError(EINVAL, f"response code {response.code} is neither SUCCESS nor INVALID")
        group = self._answering.pop(response.cookie, None)
        was_late = response.cookie in self._late
        self._late.discard(response.cookie)
        # The kernel's table of cookies starts at 1, but erasing number 0, which is not in it, frees that number.
        self._lowest_cookie = 0 if response.cookie == 0 else self._lowest_cookie
        if response.cookie == 0 or was_late or group is not None:
            self._next_cookie = min(self._next_cookie, response.cookie)
        if group is None:
            why = "its time is over" if was_late else "no fault waits for it"
            raise UapiError(EINVAL, f"an answer with cookie {response.cookie}: {why}")
        self._settled()
        group.device.device.page_response(group.faults, PageResponse(response.code))

    def drop(self, device: DeviceObject, route: int | None) -> None:
        """The device leaves: its faults are answered INVALID."""

        def leaves(group: FaultGroup) -> bool:
            return group.device is device and group.route == route

        gone = [g for g in (*self._waiting, *self._answering.values()) if leaves(g)]
        self._waiting = deque(g for g in self._waiting if not leaves(g))
        self._answering = {cookie: g for cookie, g in self._answering.items() if not leaves(g)}
        self._next_cookie = self._lowest_cookie
        self._settled()
        for group in gone:
            device.device.page_response(group.faults, PageResponse.INVALID)
        if gone:
            self._changed()

    def poll(self) -> int:
        """OUT always, IN while a group waits."""
        self.expire()
        return POLLOUT | POLLIN if self._waiting else POLLOUT

    def _changed(self) -> None:
        if self.file is not None:
            self.file.poll_changed()

    def destroy(self, ctx: Context) -> None:
        """Everything unanswered is answered INVALID."""
        gone = [*self._waiting, *self._answering.values()]
        self._waiting.clear()
        self._answering.clear()
        self._settled()
        for group in gone:
            group.device.device.page_response(group.faults, PageResponse.INVALID)


def _is_over(group: FaultGroup, now: int) -> bool:
    return group.deadline is not None and group.deadline <= now


def _entry(group: FaultGroup, fault: PageFault, cookie: int) -> bytes:
    flags = (_PASID_VALID if fault.pasid is not None else 0) | (_LAST_PAGE if fault.last else 0)
    return abi.HwptPgfault(
        flags=flags,
        dev_id=group.device.id,
        pasid=fault.pasid or 0,
        grpid=fault.group,
        perm=fault.perm,
        addr=fault.addr,
        cookie=cookie,
    ).to_bytes()


def fault_queue_alloc(ctx: Context, cmd: abi.FaultAlloc) -> Answer:
    """IOMMU_FAULT_QUEUE_ALLOC."""
    refuse(cmd.flags, "flags")
    queue = ctx.new(FaultQueue(ctx.services))
    cmd.out_fault_id = queue.id
    return Answer(lambda: EventFile(ctx, queue))


def deliver(device: DeviceObject, hwpt: Hwpt | None, route: int | None, fault: PageFault) -> None:
    """A device reported a fault for what is attached (None: nothing): queue its group, or answer INVALID.

    Groups that are not complete are kept while the device has a fault queue anywhere, as in the kernel.
    """
    faults = (*device.partial_faults.pop(fault.group, ()), fault)
    if not fault.last:
        if device.recovers:
            device.partial_faults[fault.group] = faults
        return
    if hwpt is None or hwpt.fault_queue is None:
        device.device.page_response(faults, PageResponse.INVALID)
        return
    patience = device.ctx.services.patience
    deadline = None if patience is None else patience.clock.now() + patience.duration
    hwpt.fault_queue.add(FaultGroup(device, route, faults, deadline))


class Event(NamedTuple):
    """An event as it is read; `data` None is the marker of lost events."""

    sequence: int
    data: bytes | None


class VeventQueue(Object):
    """Events of one type of one vIOMMU (iommufd_veventq)."""

    kind = "vEVENTQ"

    def __init__(self, viommu: ViommuObject, type: int, depth: int) -> None:
        super().__init__()
        self.viommu, self.type, self.depth = viommu, type, depth
        self.file: EventFile | None = None
        self._events: deque[Event] = deque()
        self._sequence = 0
        viommu.users += 1
        viommu.event_queues[type] = self

    def add(self, data: bytes) -> None:
        """Queue an event; a full queue gets or moves the marker instead, and the event's number is used up."""
        if self._events and self._events[-1].data is None:
            self._events.pop()
        full = len(self._events) >= self.depth
        self._events.append(Event(self._sequence, None if full else data))
        self._sequence = (self._sequence + 1) & _SEQUENCE
        self._changed()

    def read(self, caller: Caller, va: int, count: int) -> int:
        """A header and data for each event. EINVAL: less than a header, or the first event does not fit."""
        if count < _HEADER:
            raise UapiError(EINVAL, f"a read of {count} bytes is shorter than a header ({_HEADER})")
        done = 0
        while self._events:
            event = self._events[0]
            header = abi.VeventHeader(flags=_LOST if event.data is None else 0, sequence=event.sequence)
            raw = header.to_bytes() + (event.data or b"")
            try:
                if len(raw) > count - done:
                    raise UapiError(EINVAL, f"the first event needs {len(raw)} bytes, {count} were given")
                caller.write(va + done, raw)
            except UapiError:
                if done:
                    break
                raise
            self._events.popleft()
            done += len(raw)
        if done:
            self._changed()
        return done

    def write(self, caller: Caller, va: int, count: int) -> int:
        """Nothing can be written."""
        raise UapiError(EINVAL, "a vEVENTQ cannot be written")

    def poll(self) -> int:
        """IN while an event or a marker waits."""
        return POLLIN if self._events else 0

    def _changed(self) -> None:
        if self.file is not None:
            self.file.poll_changed()

    def destroy(self, ctx: Context) -> None:
        """Events that were not read are lost."""
        del self.viommu.event_queues[self.type]
        self.viommu.users -= 1


def veventq_alloc(ctx: Context, cmd: abi.VeventqAlloc) -> Answer:
    """IOMMU_VEVENTQ_ALLOC."""
    from softiommu.iommufd.viommu import ViommuObject

    refuse(cmd.flags, "flags")
    refuse(cmd.reserved, "reserved")
    if not cmd.type:
        raise UapiError(EOPNOTSUPP, "event queue type 0 does not exist")
    if not 0 < cmd.veventq_depth <= _MAX_DEPTH:
        raise UapiError(EINVAL, f"depth {cmd.veventq_depth} is not in 1..{_MAX_DEPTH}")
    viommu = ctx.objects.get(cmd.viommu_id, ViommuObject)
    if cmd.type in viommu.event_queues:
        raise UapiError(EEXIST, f"vIOMMU {viommu.id} has an event queue of type {cmd.type:#x} already")
    queue = ctx.new(VeventQueue(viommu, cmd.type, cmd.veventq_depth))
    cmd.out_veventq_id = queue.id
    return Answer(lambda: EventFile(ctx, queue))
