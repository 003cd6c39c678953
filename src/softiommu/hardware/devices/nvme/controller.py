"""The controller: its registers, its queues, interrupts, and how a command runs. NVM Express 1.4, sections 3 and 7.

A command runs when its doorbell is written. It is not fetched while its completion queue is full. A controller that
asks software for missing pages does nothing until it is answered, and fetches the command anew then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

from softiommu.errors import ModelError
from softiommu.hardware.bus import DmaError, Port, Transfer
from softiommu.hardware.devices.nvme import admin, io, logs, prp
from softiommu.hardware.devices.nvme.commands import (
    COMPLETION_SIZE,
    NAMES_BLOCKS,
    RETRYABLE,
    SUBMISSION_SIZE,
    Command,
    CommandError,
    Completion,
    CompletionStatus,
    ErrorEvent,
    EventDword0,
    EventType,
    Status,
)
from softiommu.hardware.devices.nvme.events import AsyncEvents
from softiommu.hardware.devices.nvme.features import Features
from softiommu.hardware.devices.nvme.identify import MDTS, Subsystem
from softiommu.hardware.devices.nvme.logs import Logs
from softiommu.hardware.devices.nvme.namespace import Namespace
from softiommu.hardware.devices.nvme.queues import CompletionQueue, SubmissionQueue
from softiommu.hardware.devices.nvme.registers import (
    BAR_SIZE,
    MAX_PAIRS,
    MSIX_PENDING,
    MSIX_TABLE,
    Configuration,
    ControllerStatus,
    Doorbell,
    Registers,
    Shutdown,
)
from softiommu.hardware.iommu import AtsIommu
from softiommu.hardware.paging import PageMissing, PagingPort
from softiommu.hardware.pci import Bar, Features as PciFeatures, Function, Identity, Mapping, MsixPlace

IDENTITY = Identity(0x1B36, 0x0010, 0x010802, 2, 0x1AF4, 0x1100)

_MIN_PAGE_LG2 = 12
#: Commands that run before others have their turn.
_SLICE = 16
_MEDIA_ERRORS = {Status.WRITE_FAULT, Status.UNRECOVERED_READ_ERROR}
#: Page requests that may be open at a time, where it makes any.
_PAGE_REQUESTS = 1
#: What the host asked for is no error.
_UNLOGGED = {Status.SUCCESS, Status.ABORT_REQUESTED}


class Nvme:
    """The controller, with `pairs` I/O queue pairs and a vector for each of them and for the admin queue. `ats`: the
    IOMMU in front of it, if it is to ask that for translations and pages."""

    def __init__(
        self,
        port: Port,
        namespaces: Sequence[Namespace],
        serial: str = "SOFTIOMMU0001",
        pairs: int = 8,
        vectors: int | None = None,
        ats: AtsIommu | None = None,
    ) -> None:
        if not 1 <= pairs <= MAX_PAIRS:
            raise ModelError(f"{pairs} I/O queue pairs: 1..{MAX_PAIRS} have doorbells")
        self.pairs = pairs
        self.registers = Registers(self, pairs)
        place = MsixPlace(pairs + 1 if vectors is None else vectors, 0, MSIX_TABLE, MSIX_PENDING)
        self.subsystem = Subsystem(
            IDENTITY.vendor, IDENTITY.subsystem_vendor, serial, "softiommu NVMe", tuple(namespaces)
        )
        self.features = Features(pairs, place.vectors, len(namespaces))
        self.logs = Logs()
        self.events = AsyncEvents(self._tell)
        self.sqs: dict[int, SubmissionQueue] = {}
        self.cqs: dict[int, CompletionQueue] = {}
        #: Bytes of a memory page (CC.MPS).
        self.page = 1 << _MIN_PAGE_LG2
        self._masked = 0
        self._working = False
        #: Rounds through the queues that are left, here or in the background.
        self._rounds = 0
        #: Whether commands run: what CSTS says, in short.
        self._alive = False
        bars = {0: Bar(BAR_SIZE, self.registers, is_64=True, mapping=Mapping.LEVEL)}
        features = PciFeatures(msix=place, ats=ats is not None, pri=_PAGE_REQUESTS if ats is not None else 0)
        self.function = Function(port, IDENTITY, bars, features, self.reset)
        self._port = port if ats is None else PagingPort(self.function, ats, self._work)

    @property
    def vectors(self) -> int:
        """How many interrupt vectors the host chose among: INTx is one."""
        msix = self.function.msix
        return len(msix.vectors) if msix is not None and msix.enabled else 1

    # Life

    def reset(self) -> None:
        """As after power-on; namespaces keep their blocks."""
        self._stop()
        self.registers.reset()
        if isinstance(self._port, PagingPort):
            self._port.reset()

    def on_write_CC(self, old: Configuration, new: Configuration) -> None:
        """Enable, disable and shut down (3.1.5, 7.6.1, 7.6.2)."""
        status = self.registers.CSTS
        # A host that maps the registers waits for nothing between EN=0 and EN=1 while RDY is 0: only the last is seen.
        if new.EN and (not old.EN or (status.CFS and not status.RDY)):
            self._start(new)
        elif old.EN and not new.EN:
            self._stop()
        if new.SHN and not old.SHN:
            self._shut_down()

    def _start(self, configuration: Configuration) -> None:
        """Make the admin queues; a configuration that cannot be is fatal."""
        cap, aqa = self.registers.CAP, self.registers.AQA
        supported = not configuration.CSS and not configuration.AMS
        if not supported or not cap.MPSMIN <= configuration.MPS <= cap.MPSMAX or not aqa.ASQS or not aqa.ACQS:
            self._fail(f"it cannot be enabled with {configuration!r} and {aqa!r}")
            return
        self.page = 1 << _MIN_PAGE_LG2 + configuration.MPS
        cq = CompletionQueue(0, int(self.registers.ACQ), aqa.ACQS + 1, vector=0, interrupts=True)
        self.cqs[0], self.sqs[0] = cq, SubmissionQueue(0, int(self.registers.ASQ), aqa.ASQS + 1, cq)
        self._report(ControllerStatus.of(RDY=1))

    def _stop(self) -> None:
        """A controller reset (7.3.2): what is left are the admin queues' registers."""
        self.sqs, self.cqs = {}, {}
        self.events.reset()
        self.features.reset()
        self.logs.temperature_warning = False
        self._masked = 0
        self._report(ControllerStatus(0))
        self.refresh_line()

    def _shut_down(self) -> None:
        try:
            for namespace in self.subsystem.namespaces:
                namespace.flush()
        except CommandError as error:
            self._log(logs.NO_COMMAND, logs.NO_COMMAND, error.status, 0, 0)
        self._report(self.registers.CSTS.replace(SHST=Shutdown.COMPLETE))

    def _fail(self, why: str) -> None:
        """Nothing goes on until the controller is reset (9.5). It is ready (3.1.6) if it was before."""
        self.function.on_refusal(f"a fatal error (CSTS.CFS): {why}")
        self._report(self.registers.CSTS.replace(CFS=1))

    def _report(self, status: ControllerStatus) -> None:
        self.registers.CSTS = status
        self._alive = bool(status.RDY and not status.CFS and status.SHST == Shutdown.NONE)
        self.function.changed()

    # Doorbells

    def on_write_DOORBELL(self, index: int, old: Doorbell, new: Doorbell) -> None:
        """A submission queue's tail, or a completion queue's head."""
        if not self._alive:
            return
        id, completes = divmod(index, 2)
        queues: dict[int, CompletionQueue] | dict[int, SubmissionQueue] = self.cqs if completes else self.sqs
        queue = queues.get(id)
        if queue is None:
            self._bad_doorbell(ErrorEvent.INVALID_DOORBELL, f"doorbell {index} belongs to no queue")
        elif not self._move(queue, new.INDEX):
            self._bad_doorbell(ErrorEvent.INVALID_DOORBELL_VALUE, f"doorbell {index} cannot become {new.INDEX}")
        self._work()

    def on_show_DOORBELL(self, index: int) -> int:
        """What was stored last and counted, as memory; 0 where there is no queue, so that a new one starts there."""
        id, completes = divmod(index, 2)
        if completes:
            return self.cqs[id].head if id in self.cqs else 0
        return self.sqs[id].tail if id in self.sqs else 0

    @staticmethod
    def _move(queue: CompletionQueue | SubmissionQueue, value: int) -> bool:
        """Take a doorbell's new value; False: it cannot be (5.2.1, figure 146)."""
        old, limit = (queue.tail, queue.free) if isinstance(queue, SubmissionQueue) else (queue.head, queue.used)
        moved = (value - old) % queue.size
        if value >= queue.size or not 1 <= moved <= limit:
            return False
        if isinstance(queue, SubmissionQueue):
            queue.tail = value
        else:
            queue.head = value
        return True

    def _bad_doorbell(self, what: ErrorEvent, why: str) -> None:
        self.function.on_refusal(why)
        self.logs.error(logs.NO_COMMAND, logs.NO_COMMAND, 0)
        self.events.happened(EventType.ERROR, what)

    # Commands

    def _work(self) -> None:
        """Post what waits, tell events, and run commands, one of each queue in turn, until nothing can go on: here, or
        in the background."""
        if self._working:
            return  # a command wrote a doorbell: the loop below sees it
        # No queue holds more commands than rounds: what a command adds by DMA to a doorbell waits for another one.
        in_background, self._rounds = self._rounds > 0, max((sq.size for sq in self.sqs.values()), default=0) + 1
        if not in_background:
            self.function.carry_on(self._go_on)

    def _go_on(self) -> bool:
        """Do a slice of that; whether there is more to do."""
        self._working = True
        try:
            self._drain()
        except PageMissing:
            self._rounds = 0  # its answer calls again
        except DmaError as error:
            self._rounds = 0
            self._fail(f"a queue cannot be reached: {error}")
        finally:
            self._working = False
        self.refresh_line()
        return self._rounds > 0

    def _drain(self) -> None:
        done = 0
        while self._rounds and done < _SLICE:
            self._rounds -= 1
            self._post_waiting()
            ready = [sq for sq in self.sqs.values() if self._can_run(sq)]
            for sq in ready:
                if self._can_run(sq):  # still: the one before may have reset the controller
                    self._run(sq)
            done += len(ready)
            if not ready:
                self._rounds = 0

    def _post_waiting(self) -> None:
        for cq in list(self.cqs.values()):
            while cq.waiting and not cq.full and self._alive:
                self._post(cq, cq.waiting[0])
                cq.waiting.popleft()
        if self._alive:
            self.events.tell()

    def _can_run(self, sq: SubmissionQueue) -> bool:
        """Whether a queue has a command, room for its completion, and is still there."""
        ready = self._alive and sq.head != sq.tail and not sq.cq.full and not sq.cq.waiting
        return ready and self.sqs.get(sq.id) is sq

    def _run(self, sq: SubmissionQueue) -> None:
        command = Command.from_bytes(self._port.read(sq.base + sq.head * SUBMISSION_SIZE, SUBMISSION_SIZE))
        head = sq.head
        sq.advance()
        try:
            dword0 = self._execute(sq, command)
        except PageMissing:
            sq.head = head
            raise
        except CommandError as error:
            cid, opcode = command.dword0.CID, command.dword0.OPC
            self.function.on_refusal(f"command {cid:#x} of queue {sq.id} (opcode {opcode:#04x}) fails: {error}")
            lba = command.lba if sq.id and opcode in NAMES_BLOCKS else 0
            self._log(sq.id, cid, error.status, command.nsid, lba)
            self.complete(sq, command.dword0.CID, 0, error.status)
        else:
            if dword0 is not None:
                self.complete(sq, command.dword0.CID, dword0, Status.SUCCESS)

    def _execute(self, sq: SubmissionQueue, command: Command) -> int | None:
        handler = (io.HANDLERS if sq.id else admin.HANDLERS).get(command.dword0.OPC)
        if not sq.id and command.dword0.CID in self.events.requests:
            raise CommandError(Status.COMMAND_ID_CONFLICT)
        if handler is None:
            raise CommandError(Status.INVALID_OPCODE)
        if command.dword0.FUSE or command.dword0.PSDT:
            raise CommandError(Status.INVALID_FIELD)
        return handler(self, command)

    def _log(self, sq_id: int, cid: int, status: Status, nsid: int, lba: int) -> None:
        self.logs.error(sq_id, cid, _status(status), nsid, lba, media=status in _MEDIA_ERRORS)

    def complete(self, sq: SubmissionQueue, cid: int, dword0: int, status: Status) -> None:
        """Post the completion of a command, or keep it until there is room. DmaError.

        A command whose DMA reset the controller has no completion.
        """
        if not self._alive or self.cqs.get(sq.cq.id) is not sq.cq:
            return
        completion = Completion(dword0, sq.id, sq.head, cid, _status(status))
        if sq.cq.full or sq.cq.waiting:
            sq.cq.waiting.append(completion)
            return
        try:
            self._post(sq.cq, completion)
        except PageMissing:
            sq.cq.waiting.append(completion)
            raise

    def _post(self, cq: CompletionQueue, completion: Completion) -> None:
        self._port.write(cq.base + cq.tail * COMPLETION_SIZE, completion.to_bytes(cq.phase))
        cq.advance()
        if cq.interrupts:
            self.function.signal(cq.vector)

    def _tell(self, cid: int, dword0: EventDword0) -> None:
        self.complete(self.sqs[0], cid, dword0, Status.SUCCESS)

    # Data

    def check_length(self, length: int) -> None:
        """CommandError: more bytes than one command may move."""
        if length > 1 << MDTS + _MIN_PAGE_LG2:
            raise CommandError(Status.INVALID_FIELD)

    def send(self, command: Command, data: bytes) -> None:
        """Store data where a command's PRPs say. CommandError."""
        with self._reaching():
            self._port.scatter(self._segments(command, len(data)), data)

    def receive(self, command: Command, length: int) -> bytes:
        """The data that a command's PRPs name. CommandError."""
        with self._reaching():
            return self._port.gather(self._segments(command, length))

    def fill(self, command: Command, length: int, fill: Transfer) -> None:
        """Let `fill` store where a command's PRPs say. CommandError."""
        with self._reaching():
            self._port.fill(self._segments(command, length), fill)

    def drain(self, command: Command, length: int, take: Transfer) -> None:
        """Let `take` have the data that a command's PRPs name. CommandError."""
        with self._reaching():
            self._port.drain(self._segments(command, length), take)

    @staticmethod
    @contextmanager
    def _reaching() -> Iterator[None]:
        """Data that cannot be reached is the command's failure."""
        try:
            yield
        except PageMissing:
            raise
        except DmaError as error:
            raise CommandError(Status.DATA_TRANSFER_ERROR, str(error)) from error

    def _segments(self, command: Command, length: int) -> list[tuple[int, int]]:
        return prp.segments(self._port.read, command.prp1, command.prp2, length, self.page)

    # Interrupts

    def on_read_INTMS(self) -> int:
        """The mask."""
        return self._masked

    def on_read_INTMC(self) -> int:
        """The mask."""
        return self._masked

    def on_show_INTMC(self) -> int:
        """Nothing, as memory: so that a store of the mask as it is, which unmasks all, is told from none."""
        return 0

    def on_write_INTMS(self, old: int, new: int) -> None:
        """Mask vectors (3.1.3)."""
        self._masked |= new
        self.function.changed()
        self.refresh_line()

    def on_write_INTMC(self, old: int, new: int) -> None:
        """Unmask vectors (3.1.4)."""
        self._masked &= ~new
        self.function.changed()
        self.refresh_line()

    def refresh_line(self) -> None:
        """INTx is asserted while a queue has entries that the host has not consumed (7.5.1)."""
        for cq in self.cqs.values():
            if cq.head != cq.tail and cq.interrupts:
                self.function.set_intx(not self._masked & 1)
                return
        self.function.set_intx(False)


@cache
def _status(status: Status) -> CompletionStatus:
    """A status as completions have it: whether the error log has more, and whether to try again."""
    again = status in RETRYABLE or status == Status.SUCCESS
    return CompletionStatus.of(SC=status & 0xFF, SCT=status >> 8, M=int(status not in _UNLOGGED), DNR=int(not again))
