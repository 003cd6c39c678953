"""What a table entry can be, what an access can want, and how a walk can end. Plain numbers, for kernels."""

from __future__ import annotations

from typing import NamedTuple

#: Kinds of entries, as a format's `load` tells them. BAD: reserved bits, or an encoding that has no meaning.
EMPTY, TABLE, LEAF, BAD = 0, 1, 2, 3

#: Rights of a leaf and wants of an access: the bits of drivers.driver.Prot, and execute.
READ, WRITE, EXECUTE = 1, 2, 4
RIGHTS = READ | WRITE | EXECUTE

#: Beside them in a want. The access is privileged; a missing right is told but is no fault (ATS).
#: An access that wants no right at all only looks: it leaves no trace in accessed and dirty flags.
PRIVILEGED, LENIENT = 16, 32

#: A format tells rights twice: for user accesses, and from bit PRIVILEGED_LOW for privileged ones. GLOBAL beside them:
#: the translation is the same in every address space of its tag.
PRIVILEGED_LOW, GLOBAL = 3, 64
ALL_RIGHTS = RIGHTS | RIGHTS << PRIVILEGED_LOW

#: Ends of a walk: translated; nothing there; reserved bits or encoding; a table outside memory; a right is missing;
#: the input address is too wide.
OK, NOT_MAPPED, MALFORMED, BAD_TABLE, FORBIDDEN, OUT_OF_RANGE = 0, 1, 2, 3, 4, 5
#: More of them: the output address is too wide; the accessed or dirty flag must be set by software.
ADDRESS_SIZE, NOT_ACCESSED = 8, 9
#: No end: go on with the next table; the kernel may not index this memory, its owner must be asked.
DESCEND, ASK = 10, 11

#: Ends of a map: done (OK); something is mapped there; no memory for a table; the kernel needs more tables.
ALREADY_MAPPED, NO_MEMORY, NEED_TABLES = 6, 7, 12

#: Options that every format has: hardware sets the accessed and the dirty flag. A format's own ones start at 16.
HW_ACCESSED, HW_DIRTY = 1, 2
#: And that the system has no atomic accesses for that: where a flag would be set, the access to the entry fails.
NO_ATOMICS = 4


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
    #: Choices: HW_ACCESSED, HW_DIRTY, and those that the format itself understands.
    option: int = 0


#: The number by which kernels choose among formats.
X86_64, VTDSS, AMDV1, RISCV, ARM64 = 0, 1, 2, 3, 4
