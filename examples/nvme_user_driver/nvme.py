"""An NVMe driver over a BAR, DMA memory and eventfds: NVM Express Base Specification 1.4.

The host puts commands of 64 bytes into submission queues and rings a doorbell; the controller fetches them by DMA,
moves the data that their PRP entries name, puts completions of 16 bytes into completion queues, and interrupts.
"""

import struct
import time

from vfio import PAGE, AddressSpace, Dma, DriverError, PciDevice, Region, wait_for_event

CLASS = 0x010802
CAP, CC, CSTS, AQA, ASQ, ACQ, DOORBELLS = 0x00, 0x14, 0x1C, 0x24, 0x28, 0x30, 0x1000
#: CC: enable, entries of 64 (2**6) and 16 (2**4) bytes, pages of 4 KiB; a normal shutdown.
ENABLE, ENTRY_SIZES, SHUT_DOWN = 1, 6 << 16 | 4 << 20, 1 << 14
READY, FATAL, SHUTDOWN_MASK, SHUTDOWN_DONE = 1, 2, 3 << 2, 2 << 2
DELETE_SQ, CREATE_SQ, DELETE_CQ, CREATE_CQ, IDENTIFY = 0x00, 0x01, 0x04, 0x05, 0x06
FLUSH, WRITE, READ = 0x00, 0x01, 0x02
CONTIGUOUS, INTERRUPTS = 1, 2
SUBMISSION, COMPLETION = struct.Struct("<BBHIQQQQ6I"), struct.Struct("<IIHHHH")
ENTRIES = 32
#: One page of PRP entries for each command: so many bytes can one command move.
MOST = (PAGE // 8) * PAGE
GONE = 0xFFFFFFFF
#: Memory, an offset in it, and a length in bytes.
Data = tuple[Dma, int, int]
STATUS = {
    0x001: "Invalid Command Opcode",
    0x002: "Invalid Field in Command",
    0x004: "Data Transfer Error",
    0x007: "Command Abort Requested",
    0x00B: "Invalid Namespace or Format",
    0x013: "PRP Offset Invalid",
    0x080: "LBA Out of Range",
    0x101: "Invalid Queue Identifier",
    0x102: "Invalid Queue Size",
    0x108: "Invalid Interrupt Vector",
    0x280: "Write Fault",
    0x281: "Unrecovered Read Error",
}


class Queue:
    """A queue pair: a ring of commands, a ring of completions, and a page of PRP entries for each command."""

    def __init__(self, controller: "Controller", number: int, entries: int, event: int | None) -> None:
        self.controller, self.number, self.entries, self.event = controller, number, entries, event
        self.submissions = controller.space.allocate(entries * SUBMISSION.size)
        self.completions = controller.space.allocate(entries * COMPLETION.size)
        self.lists = controller.space.allocate(entries * PAGE)
        self.tail = self.head = 0
        self.phase = 1
        #: The commands that are not completed, by their identifiers; each has its page of PRP entries.
        self.waiting: dict[int, str] = {}

    def submit(self, what: str, opcode: int, nsid: int = 0, data: Data | None = None, *dwords: int) -> None:
        """Put a command into the ring, and ring the doorbell."""
        cid = next(n for n in range(self.entries) if n not in self.waiting)
        prp1, prp2 = self._prps(cid, *data) if data else (0, 0)
        command = SUBMISSION.pack(opcode, 0, cid, nsid, 0, 0, prp1, prp2, *dwords, *[0] * (6 - len(dwords)))
        at = self.tail * SUBMISSION.size
        self.submissions.memory[at : at + SUBMISSION.size] = command
        self.tail = (self.tail + 1) % self.entries
        self.waiting[cid] = what
        # On a weakly ordered CPU a write barrier belongs here: the command must be in memory before the doorbell.
        self.controller.ring(2 * self.number, self.tail)

    def _prps(self, cid: int, dma: Dma, offset: int, length: int) -> tuple[int, int]:
        """PRP1 and PRP2: the first page, and the second one, or a list of all but the first (4.3)."""
        first = dma.iova + offset
        pages = range((first // PAGE + 1) * PAGE, first + length, PAGE)
        if len(pages) < 2:
            return first, pages[0] if pages else 0
        self.lists.memory[cid * PAGE : cid * PAGE + 8 * len(pages)] = struct.pack(f"<{len(pages)}Q", *pages)
        return first, self.lists.iova + cid * PAGE

    @property
    def full(self) -> bool:
        """Whether there is room for no more commands: a ring never fills its last entry."""
        return len(self.waiting) == self.entries - 1

    def reap(self) -> int:
        """Take the completions that are there: how many. DriverError: a command failed."""
        done, memory = 0, self.completions.memory
        while memory[self.head * COMPLETION.size + 14] & 1 == self.phase:  # the phase first, then the rest
            _, _, _, _, cid, status = COMPLETION.unpack_from(memory, self.head * COMPLETION.size)
            self.head = (self.head + 1) % self.entries
            self.phase ^= self.head == 0
            done += 1
            self.controller.ring(2 * self.number + 1, self.head)
            code = status >> 1 & 0x7FF
            what = self.waiting.pop(cid, f"command {cid}, which nobody gave,")
            if code:
                raise DriverError(f"{what} failed: {STATUS.get(code, 'status')} ({code:#05x})")
        return done

    def wait(self, until: int = 0, seconds: float = 10) -> None:
        """Wait until at most `until` commands are not completed: by interrupt, or by looking all the time."""
        end = time.monotonic() + seconds
        while len(self.waiting) > until:
            if self.reap():
                continue
            self.controller.check_alive()
            left = end - time.monotonic()
            if left <= 0:
                raise DriverError(f"{', '.join(self.waiting.values())}: no completion within {seconds:g} s")
            if self.event is not None:
                wait_for_event(self.event, min(left, 1))

    def run(self, what: str, opcode: int, nsid: int = 0, data: Data | None = None, *dwords: int) -> None:
        """One command, to its end."""
        self.submit(what, opcode, nsid, data, *dwords)
        self.wait()


class Controller:
    """The controller at a PCI address, reset and enabled, with one I/O queue pair. `poll`: without interrupts."""

    def __init__(self, address: str, poll: bool = False) -> None:
        self.space = AddressSpace()
        self.device = PciDevice(address, self.space)
        if self.device.class_code != CLASS:
            raise DriverError(f"{address} is no NVMe controller: its class is {self.device.class_code:#08x}")
        self.bar = Region(self.device.fd, 0)
        capabilities = self.bar.read(CAP, 8)
        self._stride = 4 << (capabilities >> 32 & 0xF)
        self._ready_seconds = max((capabilities >> 24 & 0xFF) * 0.5, 1)
        if capabilities >> 48 & 0xF:
            raise DriverError(f"the controller's pages are at least {4 << (capabilities >> 48 & 0xF)} KiB, not 4")
        events = [] if poll else self.device.enable_vectors(min(self.device.vectors(), 2))
        self.interrupts = len(events)
        self._enable(events[0] if events else None)
        self._scratch = self.space.allocate(PAGE)
        self._identify()
        entries = min(ENTRIES, (capabilities & 0xFFFF) + 1)
        self.io = self._make_queue(entries, events[-1] if events else None)

    # Life

    def _enable(self, event: int | None) -> None:
        """A reset, then the admin queue's registers, then EN (7.6.1)."""
        self.bar.write(CC, 4, 0)
        self._wait_for("be disabled", READY, 0)
        self.admin = Queue(self, 0, ENTRIES, event)
        self.bar.write(AQA, 4, ENTRIES - 1 << 16 | ENTRIES - 1)
        self.bar.write(ASQ, 8, self.admin.submissions.iova)
        self.bar.write(ACQ, 8, self.admin.completions.iova)
        self.bar.write(CC, 4, ENTRY_SIZES | ENABLE)
        self._wait_for("become ready", READY, READY)

    def _identify(self) -> None:
        data = (self._scratch, 0, PAGE)
        self.admin.run("Identify Controller", IDENTIFY, 0, data, 1)
        raw = self._scratch.memory[:]
        self.serial, self.model = raw[4:24].decode("ascii").strip(), raw[24:64].decode("ascii").strip()
        #: How many bytes one command may move: MDTS counts pages, 0 means any number.
        self.most = min(MOST, PAGE << raw[77]) if raw[77] else MOST
        self.admin.run("Identify Namespace 1", IDENTIFY, 1, data, 0)
        raw = self._scratch.memory[:]
        self.blocks = struct.unpack_from("<Q", raw, 0)[0]
        if not self.blocks:
            raise DriverError("the controller has no namespace 1")
        self.block = 1 << raw[128 + 4 * (raw[26] & 0xF) + 2]

    def _make_queue(self, entries: int, event: int | None) -> Queue:
        """I/O queue pair 1: the completion queue first, since the other one names it (5.3, 5.4)."""
        queue, size = Queue(self, 1, entries, event), entries - 1 << 16 | 1
        vector = max(self.interrupts - 1, 0) << 16 | (INTERRUPTS if event is not None else 0) | CONTIGUOUS
        for what, opcode, dma, dword11 in (
            ("Create I/O Completion Queue", CREATE_CQ, queue.completions, vector),
            ("Create I/O Submission Queue", CREATE_SQ, queue.submissions, 1 << 16 | CONTIGUOUS),
        ):
            self.admin.run(what, opcode, 0, (dma, 0, PAGE), size, dword11)
        return queue

    def close(self) -> None:
        """Delete the queues, let the controller shut down (7.6.2), and give the device back."""
        self.admin.run("Delete I/O Submission Queue", DELETE_SQ, 0, None, 1)
        self.admin.run("Delete I/O Completion Queue", DELETE_CQ, 0, None, 1)
        self.bar.write(CC, 4, self.bar.read(CC, 4) | SHUT_DOWN)
        self._wait_for("shut down", SHUTDOWN_MASK, SHUTDOWN_DONE)
        self.bar.write(CC, 4, 0)
        self._wait_for("be disabled", READY, 0)
        self.device.close()
        self.space.close()

    # Registers

    def ring(self, doorbell: int, value: int) -> None:
        """Tell the controller of a queue's new tail, or head."""
        self.bar.write(DOORBELLS + doorbell * self._stride, 4, value)

    def check_alive(self) -> int:
        """The controller's status. DriverError: it is gone, or says that it cannot go on."""
        status = self.bar.read(CSTS, 4)
        if status == GONE:
            raise DriverError(f"the controller at {self.device.address} does not answer any more: it reads as all ones")
        if status & FATAL:
            raise DriverError("the controller reports a fatal error (CSTS.CFS): it needs a reset")
        return status

    def _wait_for(self, what: str, mask: int, value: int) -> None:
        end = time.monotonic() + self._ready_seconds
        while self.check_alive() & mask != value:
            if time.monotonic() > end:
                raise DriverError(f"the controller does not {what} within {self._ready_seconds:g} s")
            time.sleep(0.001)

    # Blocks

    def read(self, offset: int, dma: Dma, at: int, length: int) -> int:
        """Bytes of the namespace into memory: how many commands it took. Offsets and length are whole blocks."""
        return self._transfer("read", READ, offset, (dma, at, length))

    def write(self, offset: int, dma: Dma, at: int, length: int) -> int:
        """Memory to the namespace, in the same way."""
        return self._transfer("write", WRITE, offset, (dma, at, length))

    def flush(self) -> None:
        """What was written stays, whatever happens."""
        self.io.run("flush", FLUSH, 1)

    def _transfer(self, verb: str, opcode: int, offset: int, data: Data) -> int:
        """As many commands at a time as the queue takes."""
        if (offset | data[2]) % self.block:
            raise DriverError(f"offset {offset:#x} and length {data[2]:#x} must be multiples of {self.block} bytes")
        commands = 0
        for done in range(0, data[2], self.most):
            if self.io.full:
                self.io.wait(self.io.entries - 2)
            length = min(self.most, data[2] - done)
            lba, blocks = (offset + done) // self.block, length // self.block
            what = f"a {verb} of {blocks} blocks at block {lba}"
            piece = (data[0], data[1] + done, length)
            self.io.submit(what, opcode, 1, piece, lba & GONE, lba >> 32, blocks - 1)
            commands += 1
        self.io.wait()
        return commands
