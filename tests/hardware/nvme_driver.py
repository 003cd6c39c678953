"""A small NVMe driver for tests: it knows registers, queues in memory and doorbells, and nothing of the model."""

import struct
from typing import NamedTuple

CAP, VS, INTMS, INTMC, CC, CSTS, AQA, ASQ, ACQ = 0x00, 0x08, 0x0C, 0x10, 0x14, 0x1C, 0x24, 0x28, 0x30
DELETE_SQ, CREATE_SQ, GET_LOG, DELETE_CQ, CREATE_CQ, IDENTIFY, ABORT, SET_FEATURES, GET_FEATURES, AER, FORMAT = (
    *range(3),
    *range(4, 7),
    *range(8, 11),
    0x0C,
    0x80,
)
FLUSH, WRITE, READ, COMPARE, WRITE_ZEROES, DSM = 0, 1, 2, 5, 8, 9
ENABLE = 4 << 20 | 6 << 16 | 1


class Done(NamedTuple):
    """A completion."""

    dword0: int
    sq_head: int
    sq: int
    cid: int
    #: Status code type and status code.
    status: int
    retry: bool


class Ring:
    """A queue pair. `at` and `completions` are where it lies, for the device; memory is `shift` above that."""

    def __init__(self, id, at, completions, size):
        self.id, self.at, self.completions, self.size = id, at, completions, size
        self.tail = self.head = 0
        self.phase = 1


class Driver:
    """The driver. Addresses that it gives to the device are `shift` below those in memory."""

    def __init__(self, function, memory, shift=0):
        self.function, self.memory, self.shift = function, memory, shift
        self.rings = {}
        self.cid = 0
        function.write_config(4, 2, 0x6)

    def read(self, offset, width=4):
        return self.function.read_bar(0, offset, width)

    def write(self, offset, value, width=4):
        self.function.write_bar(0, offset, width, value)

    def alloc(self, size=4096, align=4096):
        """Where memory lies, for the device."""
        return self.memory.alloc(size, align) - self.shift

    def load(self, at, length):
        return self.memory.read(at + self.shift, length)

    def store(self, at, data):
        self.memory.write(at + self.shift, data)

    def enable(self, size=16, cc=ENABLE):
        self.rings = {0: Ring(0, self.alloc(size * 64), self.alloc(size * 16), size)}
        self.write(AQA, size - 1 << 16 | size - 1)
        self.write(ASQ, self.rings[0].at, 8)
        self.write(ACQ, self.rings[0].completions, 8)
        self.write(CC, cc)
        return self.read(CSTS)

    def make_queues(self, id=1, size=16, vector=0, interrupts=1, cq=None):
        ring = Ring(id, self.alloc(size * 64), self.alloc(size * 16), size)
        if cq is None:
            flags = vector << 16 | interrupts << 1 | 1
            done = self.run(0, CREATE_CQ, prp1=ring.completions, dword10=size - 1 << 16 | id, dword11=flags)
            assert done.status == 0
        done = self.run(0, CREATE_SQ, prp1=ring.at, dword10=size - 1 << 16 | id, dword11=(cq or id) << 16 | 1)
        assert done.status == 0
        self.rings[id] = ring

    def push(self, ring, opcode, nsid=0, prp1=0, prp2=0, dword0=0, cid=None, **dwords):
        """Put a command into the queue, without the doorbell; its id."""
        self.cid = (self.cid + 1) % 0xFFFF if cid is None else cid
        rest = [dwords.pop(f"dword{number}", 0) for number in range(10, 16)]
        assert not dwords
        raw = struct.pack("<IIQQQQ6I", self.cid << 16 | dword0 | opcode, nsid, 0, 0, prp1, prp2, *rest)
        self.store(ring.at + 64 * ring.tail, raw)
        ring.tail = (ring.tail + 1) % ring.size
        return self.cid

    def ring_doorbell(self, ring):
        self.write(0x1000 + 8 * ring.id, ring.tail)

    def peek(self, ring):
        """The completion at the head, or None."""
        dword0, _, head, sq, cid, status = struct.unpack("<IIHHHH", self.load(ring.completions + 16 * ring.head, 16))
        if status & 1 != ring.phase:
            return None
        return Done(dword0, head, sq, cid, status >> 1 & 0x7FF, not status >> 15)

    def pop(self, ring, doorbell=True):
        """The next completion, consumed; or None."""
        done = self.peek(ring)
        if done is not None:
            ring.head = (ring.head + 1) % ring.size
            ring.phase ^= ring.head == 0
            if doorbell:
                self.write(0x1004 + 8 * ring.id, ring.head)
        return done

    def run(self, id, opcode, nsid=0, **fields):
        """One command and its completion."""
        ring = self.rings[id]
        cid = self.push(ring, opcode, nsid, **fields)
        self.ring_doorbell(ring)
        done = self.pop(ring)
        assert done is not None
        assert (done.cid, done.sq) == (cid, id)
        return done

    def prps(self, pages):
        """PRP1 and PRP2 for these pages: lists of them as needed."""
        if len(pages) <= 2:
            return (*pages, 0)[:2] if len(pages) == 1 else tuple(pages)
        rest, slots = list(pages[1:]), 512
        lists, chunks = [], []
        while rest:
            take = len(rest) if len(rest) <= slots else slots - 1
            chunks.append(rest[:take])
            lists.append(self.alloc())
            rest = rest[take:]
        for number, chunk in enumerate(chunks):
            following = lists[number + 1 : number + 2]
            self.store(lists[number], struct.pack(f"<{len(chunk) + len(following)}Q", *chunk, *following))
        return pages[0], lists[0]

    def identify(self, cns, nsid=0):
        at = self.alloc()
        done = self.run(0, IDENTIFY, nsid, prp1=at, dword10=cns)
        return done.status, self.load(at, 4096)

    def log(self, page, length=512, rae=0, offset=0):
        at = self.alloc(length)
        pages = [at + n for n in range(0, length, 4096)]
        prp1, prp2 = self.prps(pages)
        dword10 = (length // 4 - 1) << 16 | rae << 15 | page
        done = self.run(0, GET_LOG, prp1=prp1, prp2=prp2, dword10=dword10, dword12=offset)
        return done.status, self.load(at, length)

    def io(self, opcode, lba, count, pages, nsid=1, queue=1, dword12=0):
        """A command that moves blocks."""
        prp1, prp2 = self.prps(pages)
        fields = {"dword10": lba & 0xFFFFFFFF, "dword11": lba >> 32, "dword12": count - 1 | dword12}
        return self.run(queue, opcode, nsid, prp1=prp1, prp2=prp2, **fields)
