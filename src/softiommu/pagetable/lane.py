"""The fast lane of batch walks: what usual entries look like, found out by asking the format.

A batch of walks meets the same few kinds of entries over and over: links and leaves that allow what is wanted, with
their flags set. For those a walk is a mask, a comparison and a shift at each level. Which bits must be how is not
written down here: the format's own functions are asked about a usual entry with each bit, and each pair of bits,
changed. Whatever looks unusual leaves the lane and is walked in full.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from softiommu.pagetable.formats import leaf, link, sizes, used
from softiommu.pagetable.kinds import DESCEND, LEAF, OK, PRIVILEGED, READ, RIGHTS, TABLE, Table
from softiommu.pagetable.walk import after, entry, grant, signed, span_lg2

if TYPE_CHECKING:
    from softiommu.memory.physical import Space

#: The lane is left.
UNUSUAL = -1
#: A mask and a value that no entry meets.
_NEVER = (0, 1)


#: top, lg2 of the granule, bits of a level, of the root and of the input; where an entry's address is, its shift up.
Layout = tuple[int, int, int, int, int, int, int]


class Lane(NamedTuple):
    """Usual entries of one variant, for one want. `usual` has, for each level: mask and value of links, of leaves."""

    layout: Layout
    usual: Any

    def compiled(self) -> Lane:
        """The same with an array, as compiled kernels take it."""
        import numpy as np

        return Lane(self.layout, np.array(self.usual, np.int64))


class _Shape(NamedTuple):
    """What was found out about one kind of entry: bits that matter, their value, bits of the address, its shift."""

    mask: int
    value: int
    address: int
    up: int


@lru_cache(maxsize=256)
def lane(t: Table, want: int) -> Lane | None:
    """The fast lane of a variant; None where the format has none for this want."""
    if t.input_bits > 62:
        return None
    pages = [_leaf_shape(t, level, want) for level in range(t.top + 1)]
    links = [_link_shape(t, level, want) for level in range(1, t.top + 1)]
    page = pages[0]
    if page is None or None in links:
        return None
    address, up = page.address, page.up
    rows = []
    for level, shapes in enumerate(zip([None, *links], pages, strict=True)):
        row: list[int] = []
        for shape in shapes:
            row += _test(shape, address & ~(span_mask(t, level) >> up) if shape in pages else address, up)
        rows += row
    return Lane((t.top, t.granule_lg2, t.bits, t.top_bits, t.input_bits, address, up), tuple(rows))


def nested_lanes(first: Table, second: Table, want: int) -> tuple[Lane, Lane, Lane] | None:
    """The lanes of two stages: the first's, the second's for reads of the first's tables, and for the output."""
    inner, fetched, output = lane(first, want), lane(second, READ), lane(second, want)
    if inner is None or fetched is None or output is None or fetched.layout != output.layout:
        return None
    return inner, fetched, output


def span_mask(t: Table, level: int) -> int:
    """The low bits that one entry of a level translates."""
    return (1 << span_lg2(t, level)) - 1


def _test(shape: _Shape | None, address: int, up: int) -> tuple[int, int]:
    """Mask and value of a kind of entry, if its address is where the lane expects it."""
    if shape is None or shape.up != up:
        return _NEVER
    # Address bits elsewhere than in a page must be 0; those that a page has and this kind has not, too.
    mask = (shape.mask | (shape.address ^ address) & (shape.address | address)) & ~(shape.address & address)
    return signed(mask & (1 << 64) - 1), signed(shape.value & mask & (1 << 64) - 1)


def _leaf_shape(t: Table, level: int, want: int) -> _Shape | None:
    lg2 = span_lg2(t, level)
    if not sizes(t) >> lg2 & 1 or level > t.leaf_top:
        return None
    usual = used(t, LEAF, leaf(t, level, 0, lg2, want & (RIGHTS | PRIVILEGED) | READ), want)
    above = used(t, TABLE, link(t, t.top, 0), want)

    def ask(pte: int) -> tuple[int, int] | None:
        status, oa, size, _ = entry(t, level, 0, pte)
        if status != OK or size != lg2:
            return None
        status, allowed = grant(t, pte, above, above, want)
        return None if status != OK or after(t, OK, pte, want, allowed) != pte else (oa, 0)

    return _shape(usual, ask)


def _link_shape(t: Table, level: int, want: int) -> _Shape | None:
    usual = used(t, TABLE, link(t, level, 0), want)
    page = used(t, LEAF, leaf(t, 0, 0, t.granule_lg2, want & (RIGHTS | PRIVILEGED) | READ), want)

    def ask(pte: int) -> tuple[int, int] | None:
        status, oa, _, below = entry(t, level, 0, pte)
        if status != DESCEND or after(t, DESCEND, pte, want, 0) != pte:
            return None
        return None if grant(t, page, pte, pte, want)[0] != OK else (oa, below)

    return _shape(usual, ask)


def _shape(usual: int, ask: Any) -> _Shape | None:
    """Ask about an entry with one bit changed, then with two."""
    base = ask(signed(usual & (1 << 64) - 1))
    if base is None:
        return None
    free, address, ups = [], 0, set()
    for number in range(64):
        got = ask(signed((usual ^ 1 << number) & (1 << 64) - 1))
        if got == base:
            free.append(number)
        elif got is not None and got[1] == base[1]:
            moved = (got[0] ^ base[0]).bit_length() - 1 - number
            ups.add(moved)
            address |= 1 << number
    up = min(ups, default=0)
    # Bits that go elsewhere (an address in two parts), and pairs that matter only together, must be as usual.
    address &= ~sum(1 << n for n in range(64) if address >> n & 1 and _moved(ask, usual, base, n) != up)
    loose = set(free)
    for pair in combinations(free, 2):
        if ask(signed((usual ^ 1 << pair[0] ^ 1 << pair[1]) & (1 << 64) - 1)) != base:
            loose -= set(pair)
    mask = ~(address | sum(1 << number for number in loose)) & (1 << 64) - 1
    return _Shape(mask, usual & mask, address, up)


def _moved(ask: Any, usual: int, base: tuple[int, int], number: int) -> int:
    oa: int = ask(signed((usual ^ 1 << number) & (1 << 64) - 1))[0]
    return (oa ^ base[0]).bit_length() - 1 - number


# Kernels. They take arrays as arguments of their own: compiled, a look into a tuple for one costs more than a level.


def lane_walk(layout: Layout, usual: Any, words: Any, limit: int, root: int, iova: int) -> int:
    """The output address of an address, or UNUSUAL. `limit` is the number of `words`.

    Memory that may not be indexed reads as zeros in the arena, which is nothing usual: so nobody asks what is present.
    """
    top, granule_lg2, bits, top_bits, input_bits, address, up = layout
    if iova >> input_bits:
        return UNUSUAL
    table, row, shift, mask = root >> 3, top << 2, granule_lg2 + bits * top, (1 << top_bits) - 1
    while True:
        at = table + (iova >> shift & mask)
        if at >= limit:
            return UNUSUAL
        pte = words[at]
        if pte & usual[row] != usual[row + 1]:
            break
        table = (pte & address) << up >> 3
        row -= 4
        shift -= bits
        mask = (1 << bits) - 1
    if pte & usual[row + 2] != usual[row + 3]:
        return UNUSUAL
    low = (1 << shift) - 1
    oa: int = (pte & address) << up & ~low | iova & low
    return oa


def lane_many(lane: Lane, mem: Space, root: int, iovas: Any, oas: Any) -> int:
    """`lane_walk` for each of `iovas`, into an array; -> how many left the lane."""
    layout, usual, words, limit = lane.layout, lane.usual, mem.words, mem.limit >> 3
    left = 0
    for number in range(len(iovas)):
        oa = lane_walk(layout, usual, words, limit, root, iovas[number])
        oas[number] = oa
        left += oa == UNUSUAL
    return left


def lane_nested_many(lanes: tuple[Lane, Lane, Lane], mem: Space, roots: tuple[int, int], iovas: Any, oas: Any) -> int:
    """The same by two stages. `lanes`: the first stage's, the second's for its table reads, and for the output."""
    (top, granule_lg2, bits, top_bits, input_bits, address, up), usual = lanes[0].layout, lanes[0].usual
    layout, fetched, output = lanes[1].layout, lanes[1].usual, lanes[2].usual
    words, limit, (first, second) = mem.words, mem.limit >> 3, roots
    left = 0
    for number in range(len(iovas)):
        iova, oa = iovas[number], UNUSUAL
        table, row, shift, mask = first, top << 2, granule_lg2 + bits * top, (1 << top_bits) - 1
        while iova >> input_bits == 0:
            at = lane_walk(layout, fetched, words, limit, second, table + ((iova >> shift & mask) << 3)) >> 3
            if at < 0 or at >= limit:
                break
            pte = words[at]
            if pte & usual[row] == usual[row + 1]:
                table = (pte & address) << up
                row -= 4
                shift -= bits
                mask = (1 << bits) - 1
                continue
            if pte & usual[row + 2] == usual[row + 3]:
                low = (1 << shift) - 1
                ipa = (pte & address) << up & ~low | iova & low
                oa = lane_walk(layout, output, words, limit, second, ipa)
            break
        oas[number] = oa
        left += oa == UNUSUAL
    return left
