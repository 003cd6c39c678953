"""The formats, and the choice among them by `t.fmt`: kernels take a variant as plain numbers.

A format is seven functions of one entry: `load`, `rights` and `used` serve walks, `leaf` and `link` maps, `dirty` and
`clean` dirty tracking.
"""

from __future__ import annotations

from softiommu.pagetable.formats import amdv1, arm64, riscv, vtdss, x86_64
from softiommu.pagetable.kinds import AMDV1, ARM64, RISCV, VTDSS, X86_64, Table

MODULES = (x86_64, vtdss, amdv1, riscv, arm64)
#: Every variant that tests run, by name.
VARIANTS: dict[str, Table] = {name: table for module in MODULES for name, table in module.VARIANTS.items()}


def sizes(t: Table) -> int:
    """Bitmap of the leaf sizes of a variant."""
    if t.fmt == ARM64:
        return arm64.sizes(t)
    found = {X86_64: x86_64.SIZES, VTDSS: vtdss.SIZES, AMDV1: amdv1.SIZES, RISCV: riscv.SIZES}[t.fmt]
    largest = t.granule_lg2 + t.bits * t.leaf_top
    if t.fmt == AMDV1:
        largest = min(largest + t.bits - 1, t.input_bits)
    return found & (1 << largest + 1) - 1


def load(t: Table, level: int, pte: int) -> tuple[int, int, int, int]:
    """-> kind, output address, lg2 of the leaf, level of the next table"""
    if t.fmt == X86_64:
        return x86_64.load(t, level, pte)
    if t.fmt == VTDSS:
        return vtdss.load(t, level, pte)
    if t.fmt == AMDV1:
        return amdv1.load(t, level, pte)
    if t.fmt == RISCV:
        return riscv.load(t, level, pte)
    return arm64.load(t, level, pte)


def rights(t: Table, pte: int, every: int, some: int) -> int:
    """What a leaf allows users and privileged accesses, and GLOBAL.

    `every` has the bits that all tables on the way have, `some` those that any of them has.
    """
    if t.fmt == X86_64:
        return x86_64.rights(t, pte, every, some)
    if t.fmt == VTDSS:
        return vtdss.rights(t, pte, every, some)
    if t.fmt == AMDV1:
        return amdv1.rights(t, pte, every, some)
    if t.fmt == RISCV:
        return riscv.rights(t, pte, every, some)
    return arm64.rights(t, pte, every, some)


def used(t: Table, kind: int, pte: int, want: int) -> int:
    """The entry with the flags that an access by it sets."""
    if t.fmt == X86_64:
        return x86_64.used(t, kind, pte, want)
    if t.fmt == VTDSS:
        return vtdss.used(t, kind, pte, want)
    if t.fmt == AMDV1:
        return amdv1.used(t, kind, pte, want)
    if t.fmt == RISCV:
        return riscv.used(t, kind, pte, want)
    return arm64.used(t, kind, pte, want)


def leaf(t: Table, level: int, oa: int, lg2: int, prot: int) -> int:
    """The entry of a leaf."""
    if t.fmt == X86_64:
        return x86_64.leaf(t, level, oa, lg2, prot)
    if t.fmt == VTDSS:
        return vtdss.leaf(t, level, oa, lg2, prot)
    if t.fmt == AMDV1:
        return amdv1.leaf(t, level, oa, lg2, prot)
    if t.fmt == RISCV:
        return riscv.leaf(t, level, oa, lg2, prot)
    return arm64.leaf(t, level, oa, lg2, prot)


def run_step(t: Table, span_lg2: int) -> int:
    """How far apart the addresses in the entries of one leaf are: in an Arm run each has its own, else all are one."""
    return 1 << span_lg2 if t.fmt == ARM64 else 0


def link(t: Table, level: int, table: int) -> int:
    """The entry of a table."""
    if t.fmt == X86_64:
        return x86_64.link(t, level, table)
    if t.fmt == VTDSS:
        return vtdss.link(t, level, table)
    if t.fmt == AMDV1:
        return amdv1.link(t, level, table)
    if t.fmt == RISCV:
        return riscv.link(t, level, table)
    return arm64.link(t, level, table)


def dirty(t: Table, pte: int) -> int:
    """Not 0: the leaf was written."""
    if t.fmt == X86_64:
        return x86_64.dirty(t, pte)
    if t.fmt == VTDSS:
        return vtdss.dirty(t, pte)
    if t.fmt == AMDV1:
        return amdv1.dirty(t, pte)
    if t.fmt == RISCV:
        return riscv.dirty(t, pte)
    return arm64.dirty(t, pte)


def clean(t: Table, pte: int) -> int:
    """The leaf, not written."""
    if t.fmt == X86_64:
        return x86_64.clean(t, pte)
    if t.fmt == VTDSS:
        return vtdss.clean(t, pte)
    if t.fmt == AMDV1:
        return amdv1.clean(t, pte)
    if t.fmt == RISCV:
        return riscv.clean(t, pte)
    return arm64.clean(t, pte)
