"""Strategies that several tests share: page-shaped numbers, and the numbers a hostile program tries."""

from __future__ import annotations

from hypothesis import settings, strategies as st

PAGE = 4096
#: Always the same examples, however slow the machine is.
calm = settings(deadline=None, derandomize=True)
#: What a map can be asked to allow.
PROTS = st.sampled_from((2, 4, 6))
#: Numbers at which widths, signs and page counts end.
EDGES = (
    *(0, 1, 2, 3, 7, 8, 0x7FF, 0x800, 0xFFF, 0x1000, 0x1001, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000),
    *(2**32 - 1, 2**32, 2**47 - 4096, 2**47, 2**63 - 1, 2**63, 2**64 - 8192, 2**64 - 4096, 2**64 - 2, 2**64 - 1),
)


def multiples(unit: int, least: int, most: int) -> st.SearchStrategy[int]:
    """Multiples of `unit` from `least` to `most` units."""
    return st.integers(least, most).map(lambda n: n * unit)


def lengths(unit: int, most: int) -> st.SearchStrategy[int]:
    """Lengths in bytes: whole pages twice as often as other multiples of `unit`, up to `most` pages."""
    return st.one_of(multiples(PAGE, 1, most), multiples(PAGE, 1, most), multiples(unit, 1, most * PAGE // unit))
