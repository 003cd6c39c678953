"""What a table entry can be, what an access can want, and how a walk can end."""

from __future__ import annotations

from typing import NamedTuple

#: Kinds of entries, as a format's `load` tells them.
EMPTY, TABLE, LEAF, BAD = 0, 1, 2, 3

#: Rights of a leaf, and wants of an access: the bits of drivers.driver.Prot, and execute.
READ, WRITE, EXECUTE = 1, 2, 4

#: Ends of a walk: translated; nothing there; reserved bits or encoding; a table outside memory; a right is missing.
OK, NOT_MAPPED, MALFORMED, BAD_TABLE, FORBIDDEN, OUT_OF_RANGE = 0, 1, 2, 3, 4, 5

#: Ends of a map: done; something is mapped there; no memory for a table.
ALREADY_MAPPED, NO_MEMORY = 6, 7


class Table(NamedTuple):
    """One variant of a format: how many levels, and how wide each is. Plain numbers, so that kernels can take it.

    Level 0 holds leaves of one granule. `top` is the root's level, `top_bits` the bits of input address it takes
    (more than `bits` where root tables are concatenated). `leaf_top`: the highest level with leaves.
    """

    fmt: int
    top: int
    granule_lg2: int
    bits: int
    top_bits: int
    leaf_top: int
    #: Bits of the input and of the output address.
    input_bits: int
    output_bits: int
    #: A choice that the format itself understands (stage, large pages, accessed and dirty flags).
    option: int = 0


#: The number by which kernels choose among formats.
X86_64, VTDSS, AMDV1, RISCV, ARM64 = 0, 1, 2, 3, 4
