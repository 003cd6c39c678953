"""Requests of the virtio-iommu driver: they are gathered in the ring, and each sync waits for all of them."""

from __future__ import annotations

from errno import EFAULT, EINVAL, EIO, ENOENT, ENOMEM, ENOSYS, ERANGE

from softiommu.drivers.function import Bus
from softiommu.drivers.virtio.queue import DriverQueue
from softiommu.errors import ModelError, UapiError
from softiommu.hardware.virtio.commands import Code, Probe, Request, Tail, size_of, to_bytes
from softiommu.hardware.virtio.registers import REQUESTS
from softiommu.hardware.virtio.tables import Descriptor
from softiommu.memory.physical import PhysicalMemory

_ERRNOS = {
    Code.UNSUPP: ENOSYS,
    Code.INVAL: EINVAL,
    Code.RANGE: ERANGE,
    Code.NOENT: ENOENT,
    Code.FAULT: EFAULT,
    Code.NOMEM: ENOMEM,
}
#: A request and its tail, each with room to spare.
_SLOT, _ANSWER = 128, 96
_TAIL = size_of(Tail)
#: What a tail is until the device writes it.
_UNANSWERED = to_bytes(Tail.of(STATUS=Code.IOERR))


class RequestQueue:
    """The queue of requests. Request n of a batch has descriptors 2n and 2n + 1."""

    def __init__(self, memory: PhysicalMemory, bus: Bus, probe_size: int) -> None:
        self._memory, self._probe_size = memory, probe_size
        self._queue = DriverQueue(memory, bus, REQUESTS, interrupts=False)
        self._most = self._queue.size // 2
        self._slots = memory.alloc(_SLOT * self._most)
        self._properties = memory.alloc(probe_size + _TAIL)
        self._waiting: list[Request] = []

    def add(self, request: Request) -> None:
        """Put a request in the ring; when that is full, sync first."""
        if len(self._waiting) == self._most:
            self.sync()
        at = self._slots + _SLOT * len(self._waiting)
        self._put(request, at, at + _ANSWER, _TAIL)

    def _put(self, request: Request, at: int, answer: int, length: int) -> None:
        """Describe a request at an address, and the answer to it."""
        head, data = 2 * len(self._waiting), to_bytes(request)
        self._memory.write(at, data)
        self._memory.write(answer + length - _TAIL, _UNANSWERED)
        self._queue.describe(head, Descriptor.of(ADDR=at, LEN=len(data), NEXT=1, NEXT_INDEX=head + 1))
        self._queue.describe(head + 1, Descriptor.of(ADDR=answer, LEN=length, WRITE=1))
        self._queue.offer(head)
        self._waiting.append(request)

    def sync(self) -> None:
        """Wait until the device has carried all of them out. ModelError: it refuses one that nobody waits for."""
        waiting = self._drain()
        for number, request in enumerate(waiting):
            code = self._code(self._slots + _SLOT * number + _ANSWER)
            if code != Code.OK:
                raise ModelError(f"the device answers {code.name} to {request!r}")

    def _drain(self) -> list[Request]:
        """Ring the doorbell, and take back what was used."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._queue.notify()
        for number, request in enumerate(waiting):
            done = self._queue.done()
            if done is None or done.head != 2 * number:
                raise ModelError(f"the device did not carry {request!r} out")
        return waiting

    def _code(self, at: int) -> Code:
        return Code(Tail(self._memory.read_u32(at)).STATUS)

    def send(self, request: Request) -> None:
        """Send a request behind those that wait, and wait for it. UapiError: the device refuses it."""
        self.sync()
        self.add(request)
        self._drain()
        self._check(request, self._code(self._slots + _ANSWER))

    def probe(self, request: Probe) -> bytes:
        """The properties of an endpoint. UapiError: the device refuses."""
        self.sync()
        self._put(request, self._slots, self._properties, self._probe_size + _TAIL)
        self._drain()
        self._check(request, self._code(self._properties + self._probe_size))
        return self._memory.read(self._properties, self._probe_size)

    @staticmethod
    def _check(request: Request, code: Code) -> None:
        if code != Code.OK:
            raise UapiError(_ERRNOS.get(code, EIO), f"the device answers {code.name} to {request!r}")
