"""Physical Region Pages: where a command's data lies in the host's memory. NVM Express 1.4, section 4.3."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise, repeat
from operator import eq, or_

from softiommu.hardware.devices.nvme.commands import CommandError, Status

_ENTRY = 8
_DWORD = 4


def segments(read: Callable[[int, int], bytes], prp1: int, prp2: int, length: int, page: int) -> list[tuple[int, int]]:
    """The pieces (iova, bytes) of `length` bytes of data; neighbours are one where there are many. `read` reads lists,
    `page` is the memory page's size.

    CommandError: an offset where there must be none.
    """
    if prp1 % _DWORD:
        raise CommandError(Status.PRP_OFFSET_INVALID, f"PRP1 is {prp1:#x}, no multiple of {_DWORD}")
    first = min(length, page - prp1 % page)
    rest = length - first
    if rest <= 0:
        return [(prp1, first)]
    if rest <= page:
        entries: Sequence[int] = (prp2,)
        _check(entries, page)
    else:
        entries = _listed(read, prp2, -(-rest // page), page)
    starts = (prp1, *entries)
    ends = [prp1 + first, *[entry + page for entry in entries]]
    ends[-1] = starts[-1] + (rest - 1) % page + 1
    if 4 * sum(map(eq, ends, entries)) < len(entries):  # pages as Linux has them after some time: joining costs more
        return [(prp1, first), *zip(entries[:-1], repeat(page), strict=False), (starts[-1], ends[-1] - starts[-1])]
    cuts = [number for number, (end, start) in enumerate(zip(ends, entries, strict=False), 1) if end != start]
    return [(starts[one], ends[next - 1] - starts[one]) for one, next in pairwise((0, *cuts, len(starts)))]


def _check(entries: Sequence[int], page: int) -> None:
    """CommandError: an entry is no page's first address."""
    if reduce(or_, entries, 0) % page:
        bad = next(entry for entry in entries if entry % page)
        raise CommandError(Status.PRP_OFFSET_INVALID, f"a page's entry is {bad:#x}, no multiple of {page:#x}")


def _listed(read: Callable[[int, int], bytes], at: int, count: int, page: int) -> Sequence[int]:
    """`count` entries of the list at `at`. The last slot of a page leads to the next page, if more entries follow."""
    if at % _ENTRY:
        raise CommandError(Status.PRP_OFFSET_INVALID, f"a list is at {at:#x}, no multiple of {_ENTRY}")
    found: tuple[int, ...] = ()
    while True:
        slots = (page - at % page) // _ENTRY
        here = min(count, slots)
        entries = struct.unpack(f"<{here}Q", read(at, here * _ENTRY))
        if count <= slots:
            _check(entries, page)
            return found + entries
        *pages, at = entries
        _check(pages, page)
        found += tuple(pages)
        count -= len(pages)
        if at % page:
            raise CommandError(Status.PRP_OFFSET_INVALID, f"a list goes on at {at:#x}, no multiple of {page:#x}")
