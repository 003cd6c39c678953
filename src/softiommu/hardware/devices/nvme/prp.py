"""Physical Region Pages: where a command's data lies in the host's memory. NVM Express 1.4, section 4.3."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from softiommu.hardware.devices.nvme.commands import CommandError, Status
from softiommu.pagetable.walk import new

_ENTRY = 8
_DWORD = 4


class Segment(NamedTuple):
    """A contiguous piece of the data."""

    iova: int
    length: int


def segments(read: Callable[[int, int], bytes], prp1: int, prp2: int, length: int, page: int) -> list[Segment]:
    """The pieces of `length` bytes of data; neighbours are one. `read` reads lists, `page` is the memory page's size.

    CommandError: an offset where there must be none.
    """
    if prp1 % _DWORD:
        raise CommandError(Status.PRP_OFFSET_INVALID, f"PRP1 is {prp1:#x}, no multiple of {_DWORD}")
    first = min(length, page - prp1 % page)
    rest = length - first
    if rest <= 0:
        return [Segment(prp1, first)]
    found: list[Segment] = []
    entries = iter([prp2]) if rest <= page else _listed(read, prp2, -(-rest // page), page)
    start, size = prp1, first
    for entry in entries:
        if entry % page:
            raise CommandError(Status.PRP_OFFSET_INVALID, f"a page's entry is {entry:#x}, no multiple of {page:#x}")
        if start + size != entry:
            found.append(new(Segment, (start, size)))
            start, size = entry, 0
        size += min(rest, page)
        rest -= page
    found.append(Segment(start, size))
    return found


def _listed(read: Callable[[int, int], bytes], at: int, count: int, page: int) -> Iterator[int]:
    """`count` entries of the list at `at`. The last slot of a page leads to the next page, if more entries follow."""
    if at % _ENTRY:
        raise CommandError(Status.PRP_OFFSET_INVALID, f"a list is at {at:#x}, no multiple of {_ENTRY}")
    while True:
        slots = (page - at % page) // _ENTRY
        here = min(count, slots)
        raw = read(at, here * _ENTRY)
        entries = struct.unpack(f"<{here}Q", raw)
        if count <= slots:
            yield from entries
            return
        yield from entries[:-1]
        count -= slots - 1
        at = entries[-1]
        if at % page:
            raise CommandError(Status.PRP_OFFSET_INVALID, f"a list goes on at {at:#x}, no multiple of {page:#x}")
