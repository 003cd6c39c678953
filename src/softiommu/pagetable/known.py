"""Entries that walks have met: what the format says of one is asked once, and remembered.

The entries of a table are the same few over and over, but for their addresses. So a single walk, which runs as plain
Python, goes from what it knows of one entry to what it knows of the next. It asks the format about a new kind of entry,
also with each bit of its address changed. Only what ends well and sets no flag is remembered: all else is walked in
full.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from softiommu.pagetable.formats import leaf, load
from softiommu.pagetable.kinds import DESCEND, LEAF, OK, READ, Table

#: What an entry means by its level, itself, the bits that all entries above it have, and those that any has ->
#: status, output address, lg2 of the leaf, level below, what is allowed, and whether its flags are as they must be.
Judge = Callable[[int, int, int, int], tuple[int, int, int, int, int, bool]]

#: Of a leaf: lg2, the mask of the bits below, the level, and what is allowed.
Leaf = tuple[int, int, int, int]
#: Leaves whose address says more (their size): the bits that do, how they are, and what the leaf is then.
Odd = list[tuple[int, int, Leaf]]
#: Where a walk stands: shift and mask of its index, and the steps from there by what an entry is but for its address.
State = tuple[int, int, "dict[int, Step]"]
#: The address bits that must be 0, where a link leads, what a leaf is, and what it is if some of these bits are not 0.
Step = tuple[int, int, int, "dict[int, Step] | None", Leaf, Odd]
#: A table on a walk's way: its address and level, the bits that all entries above it have, and those that any has.
Place = tuple[int, int, int, int]
#: The fields of a Walk.
Found = tuple[int, int, int, int, int, int, int]

_MASK = (1 << 64) - 1
#: Only tables of garbage have more kinds of entries.
_MOST = 256
#: Leaves of one kind with different sizes.
_SIZES = 16
#: After so many lessons that taught nothing, one in so many is taken.
_VAIN = 64


def _itself(at: int) -> int:
    return at


class Known:
    """What is known of the entries of one variant, for one want."""

    def __init__(self, t: Table, judge: Judge) -> None:
        self._t, self._judge = t, judge
        #: What was asked about: level, entry without address, the bits above it.
        self._asked: set[tuple[int, int, int, int]] = set()
        #: Lessons in a row that taught nothing.
        self._vain = 0
        self._address, self._up = _address(t)
        self._rest, self._down = ~self._address, 3 - self._up
        self._states: dict[tuple[int, int, int], State] = {}
        self._root = self._state(t.top, -1, 0)

    def find(self, words: Any, root: int, iova: int) -> Found | None:
        """The walk of an address, if it meets only what is known.

        Where memory may not be indexed, `words` has zeros, of which nothing is remembered.
        """
        return None if iova >> self._t.input_bits or root & 7 else self._go(words, root >> 3, self._root, iova)

    def find_from(self, words: Any, place: Place, iova: int) -> Found | None:
        """The same from a table on that an earlier walk came to, for an address that is not too wide."""
        table, level, every, some = place
        state = self._states.get((level, every & self._rest, some & self._rest))
        return None if state is None else self._go(words, table >> 3, state, iova)

    def link(self, words: Any, place: Place, iova: int, entry: int | None = None) -> tuple[int, Place] | None:
        """The entry of a table for an address (or what a cache has in place of it), and where it leads; None: it is no
        link that is known."""
        table, level, every, some = place
        rest = self._rest
        state = self._states.get((level, every & rest, some & rest))
        if state is None:
            return None
        shift, mask, steps = state
        at = (table >> 3) + (iova >> shift & mask)
        if entry is None:
            if at >= len(words):
                return None
            entry = words[at]
        step = steps.get(entry & rest)
        if step is None or step[3] is None or entry & step[0]:
            return None
        return entry, ((entry & self._address) << self._up, level - 1, every & entry, some | entry)

    def _go(self, words: Any, table: int, state: State, iova: int) -> Found | None:
        rest, address, down = self._rest, self._address, self._down
        shift, mask, steps = state
        try:
            while True:
                at = table + (iova >> shift & mask)
                pte = words[at]
                wrong, shift, mask, below, leaf, odd = steps[pte & rest]
                if below is None or pte & wrong:
                    return self._ended(at << 3, pte, wrong, leaf, odd, iova)
                table, steps = (pte & address) >> down, below
        except LookupError:  # the end of memory, or what is not known
            return None

    def nested(
        self, host: Known, words: Any, roots: tuple[int, int], iova: int, shown: list[int] | None = None
    ) -> Found | None:
        """`find` where `host` shows the tables, which are read by it. Its leaves for them are added to `shown`."""
        rest, address, up = self._rest, self._address, self._up
        table, root = roots
        shift, mask, steps = self._root
        if iova >> self._t.input_bits or root & 7:
            return None
        try:
            while True:
                at = table + ((iova >> shift & mask) << 3)
                place = host._entry(words, root >> 3, at)
                if place is None:
                    return None
                if shown is not None:
                    shown.append(place[1])
                pte = words[place[0] >> 3]
                wrong, shift, mask, below, leaf, odd = steps[pte & rest]
                if below is None or pte & wrong:
                    return self._ended(at, pte, wrong, leaf, odd, iova)
                table, steps = (pte & address) << up, below
        except LookupError:
            return None

    def _entry(self, words: Any, table: int, ipa: int) -> tuple[int, int] | None:
        """Where an entry lies that is to be read at an address, and the leaf that says it; LookupError."""
        if ipa >> self._t.input_bits:
            return None
        rest, address, down = self._rest, self._address, self._down
        shift, mask, steps = self._root
        while True:
            pte = words[table + (ipa >> shift & mask)]
            wrong, shift, mask, below, leaf, odd = steps[pte & rest]
            if below is None or pte & wrong:
                break
            table, steps = (pte & address) >> down, below
        if pte & wrong:
            found = self._ended(0, pte, wrong, leaf, odd, ipa)
            return None if found is None or not found[3] & READ else (found[1], pte)
        _, low, _, allowed = leaf
        return ((pte & address) << self._up & ~low | ipa & low, pte) if allowed & READ else None

    def _ended(self, at: int, pte: int, wrong: int, leaf: Leaf, odd: Odd, iova: int) -> Found | None:
        if pte & wrong:
            for bits, value, other in odd:
                if pte & bits == value:
                    leaf = other
                    break
            else:
                return None
        lg2, low, level, allowed = leaf
        return OK, (pte & self._address) << self._up & ~low | iova & low, lg2, allowed, level, at, pte & _MASK

    def place(self, root: int) -> Place:
        """Where walks begin."""
        return root, self._t.top, -1, 0

    def learn(self, words: Any, place: Place, iova: int, shown: Callable[[int], int | None] = _itself) -> None:
        """Ask about what a walk meets from some table on, and remember it. `shown` tells where an entry lies."""
        self._vain += 1
        if self._vain > _VAIN and self._vain % _VAIN:
            return
        table, level, every, some = place
        while True:
            shift, mask, steps = self._state(level, every, some)
            at = shown(table + ((iova >> shift & mask) << 3))
            if at is None or at >> 3 >= len(words):
                return
            pte = words[at >> 3]
            self._ask(steps, level, pte, every & self._rest, some & self._rest)
            step = steps.get(pte & self._rest)
            if step is None or pte & step[0] or step[3] is None:
                return
            table, level, every, some = (pte & self._address) << self._up, level - 1, every & pte, some | pte

    def _ask(self, steps: dict[int, Step], level: int, pte: int, every: int, some: int) -> None:
        """Ask about an entry, if it is new. One without any bit is what is read where memory may not be indexed."""
        if not pte:
            return
        kind = pte & self._rest
        step = steps.get(kind)
        if step is None:
            if len(self._asked) >= _MOST or (level, kind, every, some) in self._asked:
                return
            self._asked.add((level, kind, every, some))
            step = steps[kind] = self._step(level, kind, every, some)
            self._vain = 0
        if pte & step[0] and len(step[5]) < _SIZES and not any(pte & bits == value for bits, value, _ in step[5]):
            found = self._meaning(level, pte, every, some)
            if found is not None and found[1] == OK:
                bits, _, _, leaf = found
                step[5].append((bits, pte & bits, leaf))
                self._vain = 0

    def _state(self, level: int, every: int, some: int) -> State:
        t, key = self._t, (level, every & self._rest, some & self._rest)
        found = self._states.get(key)
        if found is None:
            width = t.top_bits if level == t.top else t.bits
            found = self._states[key] = (t.granule_lg2 + t.bits * level, (1 << width) - 1, {})
        return found

    def _step(self, level: int, kind: int, every: int, some: int) -> Step:
        found = self._meaning(level, kind, every, some)
        if found is None:
            return -1, 0, 0, None, (0, 0, 0, 0), []  # with any address it is odd
        wrong, status, below, leaf = found
        if status == DESCEND:
            return wrong, *self._state(below, every & kind, some | kind), leaf, []
        return wrong, 0, 0, None, leaf, []

    def _meaning(self, level: int, pte: int, every: int, some: int) -> tuple[int, int, int, Leaf] | None:
        """The address bits that say more than an address, OK or DESCEND, the level below, the leaf. None: nothing to be
        remembered."""
        status, oa, lg2, below, allowed, settled = self._judge(level, pte, every, some)
        low = (1 << lg2) - 1
        if status not in (OK, DESCEND) or not settled or (status == DESCEND and below != level - 1):
            return None
        if oa != (pte & self._address) << self._up & ~low:
            return None
        more = 0
        for bit in (1 << number for number in range(64) if self._address >> number & 1):
            expected = status, oa ^ bit << self._up & ~low, lg2, below, allowed, True
            if self._judge(level, pte ^ bit, every ^ bit, some ^ bit) != expected:
                more |= bit
        return more, status, below, (lg2, low, level, allowed)


def _address(t: Table) -> tuple[int, int]:
    """The bits of a page's entry that hold its address, and how far up they go. An address in two parts has one part
    here: the other one must be 0 in what is remembered. No format has it more than 3 up."""
    page = leaf(t, 0, 0, t.granule_lg2, READ)
    ups: dict[int, int] = {}
    for number in range(63):
        kind, oa, lg2, _ = load(t, 0, page ^ 1 << number)
        if kind == LEAF and lg2 == t.granule_lg2 and oa:
            up = oa.bit_length() - 1 - number
            ups[up] = ups.get(up, 0) | 1 << number
    up = min(ups)
    return ups[up], up
