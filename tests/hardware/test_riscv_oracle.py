"""RISC-V translations against the privileged architecture's algorithm, written down once more and in no hurry."""

from random import Random

import pytest
from hypothesis import given, settings, strategies as st
from riscv_rig import Rig, context, satp

from softiommu.hardware.riscv import tables
from softiommu.hardware.riscv.events import Cause
from softiommu.pagetable.kinds import EXECUTE, READ, WRITE

RAM = 64 << 20
V, R, W, X, U, A, D = (1 << n for n in (0, 1, 2, 3, 4, 6, 7))
TYPES = {READ: 0, WRITE: 1, READ | WRITE: 1, EXECUTE: 2}
PAGE, GUEST, ACCESS = (13, 15, 12), (21, 23, 20), (5, 7, 1)


class FaultError(Exception):
    """Blocked: by which kind of fault, at which guest address, and by what implicit access."""

    def __init__(self, causes, gpa=0, implicit=0):
        self.causes, self.iotval2 = causes, gpa & ~3 | implicit


class Oracle:
    """The algorithm of chapters "Sv39" and "Two-Stage Address Translation", for one access."""

    def __init__(self, rig, first, second, flags):
        self.rig, self.root1, self.root2 = rig, first, second
        self.sade, self.gade, self.privileged, self.sum = flags
        self.stored = {}

    def load(self, pa):
        if pa + 8 > RAM:
            raise FaultError(ACCESS)
        return self.stored.get(pa, self.rig.memory.read_u64(pa))

    @staticmethod
    def wrong(pte, level):
        """Steps 3 to 6 where they do not depend on the access."""
        reserved = pte >> 54 & 0x1F or pte >> 61 & 3 == 3 or pte & (R | W) == W
        if not pte & V or reserved:
            return True
        ppn = pte >> 10 & (1 << 44) - 1
        if not pte & (R | W | X):
            return level == 0 or pte >> 61 or pte & (A | D | U)
        if pte >> 63:
            return level != 0 or ppn & 15 != 8
        return ppn & (1 << 9 * level) - 1

    @staticmethod
    def target(pte, level, address):
        ppn, low = pte >> 10 & (1 << 44) - 1, 12 + 9 * level
        if pte >> 63:
            ppn, low = ppn & ~15, 16
        return ppn << 12 | address & (1 << low) - 1

    @staticmethod
    def permits(pte, want):
        needed = (READ, R), (WRITE, W), (EXECUTE, X)
        return all(pte & bit for right, bit in needed if want & right)

    def first(self, iova, want):
        if iova >> 38 not in (0, (1 << 26) - 1):
            raise FaultError(PAGE)
        table = self.root1
        for level in (2, 1, 0):
            gpa = table + 8 * (iova >> 12 + 9 * level & 511)
            pte = self.load(self.second(gpa, READ, 1))
            if self.wrong(pte, level):
                raise FaultError(PAGE)
            if pte & (R | W | X):
                break
            table = (pte >> 10 & (1 << 44) - 1) << 12
        user = bool(pte & U)
        allowed = not user or (self.sum and not want & EXECUTE) if self.privileged else user
        if not allowed or not self.permits(pte, want):
            raise FaultError(PAGE)
        new = pte | A | (D if want & WRITE else 0)
        if new != pte:
            if not self.sade:
                raise FaultError(PAGE)
            self.stored[self.second(gpa, WRITE, 3)] = new
        return self.target(pte, level, iova)

    def second(self, gpa, want, implicit=0):
        if self.root2 is None:
            return gpa
        if gpa >> 41:
            raise FaultError(GUEST, gpa, implicit)
        table = self.root2
        for level in (2, 1, 0):
            at = table + 8 * (gpa >> 12 + 9 * level & (2047 if level == 2 else 511))
            pte = self.load(at)
            if self.wrong(pte, level):
                raise FaultError(GUEST, gpa, implicit)
            if pte & (R | W | X):
                break
            table = (pte >> 10 & (1 << 44) - 1) << 12
        if not pte & U or not self.permits(pte, want):
            raise FaultError(GUEST, gpa, implicit)
        new = pte | A | (D if want & WRITE else 0)
        if new != pte:
            if not self.gade:
                raise FaultError(GUEST, gpa, implicit)
            self.stored[at] = new
        return self.target(pte, level, gpa)

    def translate(self, iova, want):
        return self.second(self.first(iova, want), want)


#: Links, and leaves with rights of every kind.
_FLAGS = (*(0,) * 7, *(R | W | X | U | A | D,) * 3, R | W | U | A | D, R | U | A, X | U | A, R | W | X | A | D)


#: Where leaves lead: to what the second stage shows elsewhere.
_SHOWN = (0x20_0000, 0x20_0000, 0x40_0000, 0x20_3000, 0x41_8000, 0x60_0000)


def garble(random, rig, pages, chance):
    """First-stage tables: the first entries of each page lead to other pages, and every bit of some is changed."""
    for page in pages:
        for number in range(4):
            flags = V | random.choice(
                (0, 0, 0, R | W | U | A | D, R | W | X | U | A | D, R | U | A, X | U | A, R | W | A | D)
            )
            target = random.choice(pages if flags == V else _SHOWN) >> 12
            word = target << 10 | flags
            if flags & R and random.random() < 0.15:
                word = 1 << 63 | (target & ~15 | 8) << 10 | flags
            if random.random() < chance:
                word ^= 1 << random.choice((0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 13, 20, 45, 53, 54, 58, 61, 62, 63))
            rig.memory.write_u64(page + 8 * number, word)


def some_iova(random):
    iova = sum(random.randrange(4) << shift for shift in (12, 21, 30)) | random.getrandbits(12)
    if random.random() < 0.05:
        iova |= random.choice((1 << 38, 1 << 39, (1 << 64) - (1 << 38), 1 << 63))
    return iova


def compare(rig, oracle, iova, want, pasid=None):
    """The same outcome, record and memory; -> the outcome. Nothing is cached before."""
    for command in (1, 1 | 1 << 33 | 9 << 44, 1 | 1 << 7):
        rig.submit(command)
    pages = rig.memory.read(0, 2 << 20)
    try:
        expected, iotval2 = oracle.translate(iova, want), None
    except FaultError as fault:
        expected, iotval2 = Cause(fault.causes[TYPES[want]]), fault.iotval2
    got = rig.pa(iova, want, pasid, oracle.privileged)
    assert (got, isinstance(got, Cause)) == (expected, isinstance(expected, Cause))
    faults = rig.faults()
    if iotval2 is None:
        assert faults == []
    else:
        ((record, where, found),) = faults
        assert (record.CAUSE, where, found if 20 <= expected <= 23 else 0) == (expected, iova, iotval2)
    after = bytearray(pages)
    for pa, word in oracle.stored.items():
        after[pa : pa + 8] = word.to_bytes(8, "little")
    # The queues lie in other pages, which a record changes.
    first = min(rig.tables)
    assert rig.memory.read(first, (2 << 20) - first) == after[first:]
    return expected


def first_alone(random):
    """Processes of all kinds that share a hostile table; -> how each access ended."""
    sade = random.random() < 0.5
    rig = Rig()
    rig.device(context(rig.processes(), PDTV=1, SADE=int(sade)))
    rig.process(0, (1, 0))
    rig.tables = [rig.memory.alloc(4096) for _ in range(5)]
    garble(random, rig, rig.tables, 0.08)
    for pid in range(4):
        ta = tables.ProcessTa.of(V=1, ENS=1, SUM=pid & 1, PSCID=pid)
        rig.process(pid, (ta, tables.Iosatp.of(MODE=8, PPN=rig.tables[0] >> 12)))
    for _ in range(12):
        pid, privileged = random.randrange(4), random.random() < 0.4
        oracle = Oracle(rig, rig.tables[0], None, (sade, False, privileged, pid & 1))
        yield compare(rig, oracle, some_iova(random), random.choice(list(TYPES)), pid)


def both_stages(random):
    """A guest whose hostile tables a damaged second stage shows; -> how each access ended."""
    sade, gade = random.random() < 0.5, random.random() < 0.5
    rig = Rig()
    rig.device(context())
    first, second = rig.pages("riscv-sv39"), rig.pages("riscv-sv39x4")
    tables1 = [first.root, *(rig.memory.alloc(4096) for _ in range(4))]
    garble(random, rig, tables1, 0.06)
    second.sizes = 1 << 12
    for page in tables1:
        second.map(page, page, 0x1000, READ | WRITE | EXECUTE)
    second.sizes = 1 << 12 | 1 << 21
    second.map(0x20_0000, 0x40_0000, 0x40_0000, random.choice((READ, READ | WRITE, READ | WRITE | EXECUTE)))
    for leaf in list(second.leaves(0, 1 << 40)):
        word = leaf.pte & ~(random.choice((0, A, D, A | D)) if random.random() < (0.5 if gade else 0.1) else 0)
        if random.random() < 0.08:
            word ^= 1 << random.choice((0, 1, 2, 3, 4, 6, 7, 13, 54, 61, 63))
        rig.memory.write_u64(leaf.at, word)
    rig.tables = [second.root, *tables1]
    rig.submit(3)
    rig.device(context(satp(first), second, SADE=int(sade), GADE=int(gade)))
    for _ in range(12):
        oracle = Oracle(rig, first.root, second.root, (sade, gade, False, 0))
        yield compare(rig, oracle, some_iova(random), random.choice(list(TYPES)))


@pytest.mark.parametrize("stages", [first_alone, both_stages])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_tables_are_walked_as_the_architecture_says(stages, seed):
    assert len(list(stages(Random(seed)))) == 12


@pytest.mark.parametrize(("stages", "causes"), [(first_alone, {12, 13, 15}), (both_stages, {12, 13, 15, 20, 21, 23})])
def test_the_comparison_meets_addresses_and_faults_of_every_kind(stages, causes):
    ends = {end for seed in range(30) for end in stages(Random(seed))}
    assert {int(end) for end in ends if isinstance(end, Cause)} >= causes
    assert sum(not isinstance(end, Cause) for end in ends) > 8
