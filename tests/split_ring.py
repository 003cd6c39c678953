"""The driver's side of a split virtqueue (virtio 1.2, 2.7), and of a block device's requests (5.2.6)."""

import struct

NEXT, WRITE, INDIRECT = 1, 2, 4
IN, OUT, FLUSH, GET_ID = 0, 1, 4, 8
#: BLK_SIZE, FLUSH, INDIRECT_DESC, VERSION_1, ACCESS_PLATFORM.
FEATURES = 1 << 6 | 1 << 9 | 1 << 28 | 1 << 32 | 1 << 33
OK, IOERR, UNSUPP = 0, 1, 2
NEEDS_RESET = 0x40
ENTRIES = 16
#: Where the parts of the queue lie in its three pages, and headers and status bytes in a fourth.
DESCRIPTORS, AVAILABLE, USED, HEADERS, SIZE = 0x0000, 0x1000, 0x2000, 0x3000, 0x4000


class Ring:
    """A queue at `base` of memory that is reached by `load(at, length)` and `store(at, data)`; `iova` is where the
    device sees it."""

    def __init__(self, load, store, base, iova, kick):
        self.load, self.store, self.base, self.iova, self.kick = load, store, base, iova, kick
        self.clear()

    def clear(self):
        """A new queue."""
        self.store(self.base, bytes(SIZE))
        self.given = self.seen = 0

    @property
    def addresses(self):
        """Entries and addresses, for whoever sets the queue up."""
        return ENTRIES, self.iova + DESCRIPTORS, self.iova + AVAILABLE, self.iova + USED

    def describe(self, index, address, length, flags=0, following=0):
        """Write a descriptor."""
        raw = struct.pack("<QIHH", address & 2**64 - 1, length & 0xFFFFFFFF, flags, following)
        self.store(self.base + DESCRIPTORS + 16 * index, raw)

    def offer(self, head, count=1):
        """Make a chain available, as so many as the index says."""
        self.store(self.base + AVAILABLE + 4 + 2 * (self.given % ENTRIES), struct.pack("<H", head))
        self.given += count
        self.store(self.base + AVAILABLE + 2, struct.pack("<H", self.given & 0xFFFF))
        self.kick()

    def used(self):
        """The chains that came back since it was last asked: head and bytes written."""
        index = struct.unpack("<H", self.load(self.base + USED + 2, 2))[0]
        found = []
        while self.seen & 0xFFFF != index:
            found.append(struct.unpack("<II", self.load(self.base + USED + 4 + 8 * (self.seen % ENTRIES), 8)))
            self.seen += 1
        return found

    def request(self, kind, sector=0, *buffers):
        """One request with buffers of (address, length): its status, and the bytes written; None: no answer."""
        self.store(self.base + HEADERS, struct.pack("<IIQB", kind, 0, sector, 0xFF))
        writes = WRITE if kind in (IN, GET_ID) else 0
        self.describe(0, self.iova + HEADERS, 16, NEXT, 1)
        for number, (address, length) in enumerate(buffers, 1):
            self.describe(number, address, length, NEXT | writes, number + 1)
        self.describe(len(buffers) + 1, self.iova + HEADERS + 16, 1, WRITE)
        self.offer(0)
        done = self.used()
        if not done:
            return None
        assert [head for head, _ in done] == [0]
        return self.load(self.base + HEADERS + 16, 1)[0], done[0][1]
