"""DMA in place: through leaves of any size, to RAM, windows and holes, a transfer does what its pages would alone."""

import random

import pytest
from hypothesis import given, strategies as st

from softiommu.hardware.bus import DmaError, Port
from softiommu.hardware.iommu import Request, TranslationFaultError
from softiommu.hardware.vtd.events import Reason
from softiommu.memory.physical import BadAddressError, Mmio, PhysicalMemory

PAGE, CHUNK = 4096, 2 << 20
#: RAM that ends amid a chunk.
RAM = 3 * CHUNK + 8 * PAGE
WINDOW = 16 * CHUNK
#: Where device addresses begin.
IOVA = 1 << 32


class Leaves:
    """An IOMMU that knows chunks of IOVA: as one leaf, as pages, or not at all."""

    def __init__(self, places):
        #: Of each chunk: the physical addresses of its leaves, all of one size; None where a leaf is missing.
        self.places = places
        self.asked = 0

    def find(self, iova):
        """-> physical address and log2 of the leaf; None: it is missing."""
        leaves = self.places.get(iova - IOVA >> 21, [None])
        lg2 = 21 if len(leaves) == 1 else 12
        at = leaves[(iova & CHUNK - 1) >> lg2]
        return None if at is None else (at | iova & (1 << lg2) - 1, lg2)

    def translate(self, sid, iova, want, pasid):
        self.asked += 1
        found = self.find(iova)
        if found is None:
            raise TranslationFaultError(Reason.NO_READ, Request(sid, iova, want, pasid))
        return *found, want


@st.composite
def leaves(draw):
    """The leaves of a chunk: one, or pages; RAM, the window, past the end of RAM, or missing."""
    if draw(st.booleans()):
        return [draw(st.sampled_from([None, *range(0, RAM, CHUNK), WINDOW]))]
    seed = random.Random(draw(st.integers(0, 1 << 16)))
    places = [*range(0, RAM, 17 * PAGE), WINDOW, WINDOW + PAGE]
    return [seed.choice(places) if seed.random() < 0.99 else None for _ in range(512)]


@st.composite
def segments(draw):
    """Where a transfer goes: pages in any order, most of them whole, and a few longer pieces."""
    chunks = st.integers(0, 3).map(lambda number: IOVA + number * CHUNK)
    page = st.builds(lambda chunk, n: (chunk + n * PAGE, PAGE), chunks, st.integers(0, 511))
    piece = st.tuples(st.integers(IOVA, IOVA + 4 * CHUNK), st.integers(1, 3 * PAGE))
    long = st.tuples(chunks, st.integers(CHUNK - PAGE, 2 * CHUNK))
    return draw(st.lists(st.one_of(page, page, page, piece, long), min_size=1, max_size=12))


class Platform:
    """Memory with a window that is no memory, and a port to it."""

    def __init__(self, places):
        self.memory = PhysicalMemory(RAM)
        self.window = bytearray(CHUNK)
        self.memory.map_window(WINDOW, Mmio(self.store, lambda at, n: bytes(self.window[at : at + n])), 0, CHUNK)
        self.iommu = Leaves(places)
        self.port = Port(self.memory, 8, self.iommu)
        self.port.bus_master = True

    def store(self, at, data):
        self.window[at : at + len(data)] = data

    def bytes_at(self, segments):
        """Physical addresses of a transfer, page by page, and how many bytes go before it fails."""
        found = []
        for iova, size in segments:
            while size:
                part = min(size, PAGE - iova % PAGE)
                place = self.iommu.find(iova)
                if place is None:
                    return found
                found.append((place[0], part))
                iova, size = iova + part, size - part
        return found


def pattern(number):
    """Bytes that tell where in a transfer they are."""
    return bytes((number * 31 + n // 7) & 0xFF for n in range(PAGE))


PATTERNS = [pattern(number) for number in range(64)]


def reached(platform, segments):
    """What one page after the other would do: pieces before the first that fails, and whether one does."""
    pieces, total = platform.bytes_at(segments), sum(size for _, size in segments)
    good = []
    for pa, size in pieces:
        try:
            platform.memory.read(pa, size)
        except BadAddressError:
            break
        good.append((pa, size))
    return good, sum(size for _, size in good) < total


@given(st.lists(leaves(), min_size=4, max_size=4), segments())
def test_a_drain_takes_what_the_pages_hold(made, where):
    platform = Platform(dict(enumerate(made)))
    for number, start in enumerate(range(0, RAM, PAGE)):
        platform.memory.write(start, PATTERNS[number % 61][:64])
    good, fails = reached(platform, where)
    taken = []
    if fails:
        with pytest.raises(DmaError):
            platform.port.drain(where, taken.extend)
        assert taken == []
    else:
        platform.port.drain(where, taken.extend)
        assert b"".join(taken) == b"".join(platform.memory.read(pa, size) for pa, size in good)


@given(st.lists(leaves(), min_size=4, max_size=4), segments())
def test_a_fill_stores_what_comes_before_a_fault(made, where):
    platform, other = Platform(dict(enumerate(made))), Platform(dict(enumerate(made)))
    offered = []

    def fill(views):
        done = 0
        for view in views:
            data = b"".join(PATTERNS[(done + n) // PAGE % 61] for n in range(0, len(view) + PAGE, PAGE))
            view[:] = data[: len(view)]
            offered.append(data[: len(view)])
            done += len(view)

    good, fails = reached(platform, where)
    if fails:
        with pytest.raises(DmaError):
            platform.port.fill(where, fill)
    else:
        platform.port.fill(where, fill)
    data, at = b"".join(offered), 0
    assert len(data) >= sum(size for _, size in good)
    for pa, size in good:
        other.memory.write(pa, data[at : at + size])
        at += size
    assert platform.memory.read(0, RAM) == other.memory.read(0, RAM)
    assert platform.window == other.window


def test_a_transfer_asks_once_for_each_leaf():
    platform = Platform({0: [CHUNK], 1: [2 * CHUNK]})
    pages = [(IOVA + n % 2 * CHUNK + n * PAGE, PAGE) for n in range(128)]
    platform.port.fill(pages, lambda views: None)
    assert platform.iommu.asked == 2


def test_a_function_that_may_not_master_the_bus_moves_nothing():
    platform = Platform({0: [CHUNK]})
    platform.port.bus_master = False
    for move in (platform.port.fill, platform.port.drain):
        with pytest.raises(DmaError, match="master"):
            move([(IOVA, PAGE)], lambda views: pytest.fail("nothing may be moved"))
    assert platform.iommu.asked == 0
