"""The compiled kernels: they do what the plain ones do, bit for bit, and index nothing that is not there."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from softiommu.memory.physical import CHUNK, PhysicalMemory
from softiommu.memory.shared import SharedMemory
from softiommu.pagetable import batch, formats, jit, nested, walk
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.kinds import ASK, HW_ACCESSED, HW_DIRTY, OK, READ, WRITE
from softiommu.pagetable.nested import Stage
from softiommu.pagetable.walk import Tree

RAM = CHUNK
FLAGS = HW_ACCESSED | HW_DIRTY


def hostile(seed, ram=RAM):
    """Random entries that lead into memory, out of it and around in it, with every kind of low and high bits."""
    chance = np.random.default_rng(seed)
    words = chance.integers(0, 1 << 64, ram // 8, np.uint64)
    inside = (words & np.uint64(ram - 1 & ~0xFFF)) | words & np.uint64(0xFFF) | np.uint64(1)
    keep = chance.random(len(words))
    return np.where(keep < 0.85, inside, np.where(keep < 0.92, words, words & np.uint64((1 << 44) - 1)))


def memory_of(words):
    memory = PhysicalMemory(len(words) * 8)
    memory.write(0, words.tobytes())
    return memory


def both(words, run):
    """`run` with the plain kernels and with the compiled: what each gave, and the memory it left."""
    results = []
    for compiled in (False, True):
        memory = memory_of(words)
        results.append((run(memory, compiled), memory.read(0, memory.size)))
    return results


@pytest.mark.parametrize("name", sorted(formats.VARIANTS))
@pytest.mark.parametrize("want", [0, READ | WRITE])
def test_walks_over_hostile_tables_are_the_same_in_every_bit(name, want):
    table = formats.VARIANTS[name]._replace(option=formats.VARIANTS[name].option | FLAGS)
    chance = random.Random(name)
    iovas = [chance.getrandbits(table.input_bits) for _ in range(300)] + [(1 << 64) - 1, 0]
    signed = np.array(iovas, np.uint64).view(np.int64)

    def run(memory, compiled):
        if not compiled:
            oas, ends = [0] * len(iovas), [0] * len(iovas)
            return walk.walk_many(Tree(table, memory.space, 0x1000), signed.tolist(), want, oas, ends), oas, ends
        oas, ends = np.zeros(len(iovas), np.int64), np.zeros(len(iovas), np.uint8)
        good = jit.walk_many(Tree(table, memory.arrays, 0x1000), signed, want, oas, ends)
        return good, oas.tolist(), ends.tolist()

    plain, compiled = both(hostile(len(name)), run)
    assert plain == compiled


@pytest.mark.parametrize(
    ("first", "second"),
    [("x86-64-4level", "vtdss-48"), ("arm64-4k-48-s1", "arm64-16k-40-s2"), ("riscv-sv48", "riscv-sv39x4")],
)
def test_nested_walks_are_the_same_in_every_bit(first, second):
    t1 = formats.VARIANTS[first]._replace(option=formats.VARIANTS[first].option | FLAGS)
    t2 = formats.VARIANTS[second]._replace(option=formats.VARIANTS[second].option | FLAGS)
    chance = random.Random(first)
    iovas = [chance.getrandbits(t1.input_bits) for _ in range(300)]
    words = hostile(len(first))
    first_root = PageTable(memory_of(words), t2).root

    def run(memory, compiled):
        host = PageTable(memory, t2, compiled=compiled)
        assert host.root == first_root
        host.map(0, 0, RAM // 2, READ | WRITE)
        signed = np.array(iovas, np.uint64).view(np.int64)
        oas, ends = np.zeros(len(iovas), np.int64), np.zeros(len(iovas), np.uint8)
        space = memory.arrays if compiled else memory.space
        trees = Tree(t1, space, 0x80000), Tree(t2, space, host.root)
        if compiled:
            jit.nested_many(*trees, signed, READ, oas, ends)
        else:
            nested.nested_many(*trees, signed.tolist(), READ, oas, ends)
        return oas.tolist(), ends.tolist()

    plain, compiled = both(words, run)
    assert plain == compiled
    assert len(set(plain[0][1])) >= 2


@pytest.mark.parametrize("name", sorted(formats.VARIANTS))
def test_changes_leave_the_same_memory_and_say_the_same(name):
    table = formats.VARIANTS[name]._replace(option=formats.VARIANTS[name].option | FLAGS)
    granule, top = 1 << table.granule_lg2, 1 << table.input_bits

    def run(memory, compiled):
        pages, chance, said = PageTable(memory, table, compiled=compiled), random.Random(name), []
        for _ in range(12):
            iova = chance.choice(
                [0, min(512 * granule, top - granule), chance.randrange(top)]
            ) & -granule * chance.choice([1, 16])
            length = min(granule * chance.choice([1, 15, 16, 300, 513, 600]), top - iova)
            said.append(pages.map(iova, iova & (1 << 38) - 1, length, READ | WRITE))
            pages.translate(iova + chance.randrange(length), WRITE)
            said.append(pages.harvest(0, top - 1, clear=True))
            said.append(pages.unmap(iova + chance.randrange(length) // granule * granule, granule))
            pages.free_tables(said[-1].tables)
        said.append(pages.unmap(0, top))
        pages.free_tables(said[-1].tables)
        pages.destroy()
        return said, memory.given

    plain, compiled = both(np.zeros(16 << 17, np.uint64), run)
    assert plain == compiled
    assert plain[0][1] == 0, "every table came back"


def test_a_change_of_many_pages_is_compiled_and_the_same():
    pages = PageTable(PhysicalMemory(16 << 20), formats.VARIANTS["vtdss-48"])
    pages.sizes = 1 << 12
    assert pages.map(0x1000, 0x200000, 5000 << 12, READ) == (OK, 5000 << 12)
    assert pages.translate(0x1000 + (4999 << 12)).oa == 0x200000 + (4999 << 12)
    removed = pages.unmap(0, 1 << 30)
    assert [tuple(run) for run in removed.ranges] == [(0x1000, 5000 << 12, 12)]
    assert sorted(table.level for table in removed.tables) == [0] * 10 + [1, 2]
    assert {(table.iova, table.last) for table in removed.tables if not table.level} == {
        (n << 21, (n + 1 << 21) - 1) for n in range(10)
    }


@pytest.mark.parametrize("count", [100, 5000])
def test_batches_translate_through_every_kind_of_memory(count):
    """The leaf tables lie in RAM, in a file that is indexed in place, in one that is asked, and nowhere."""
    memory = PhysicalMemory(CHUNK)
    places = {}
    for number, seals in enumerate((2, 0)):
        fd = os.memfd_create("tables", os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, CHUNK)
        import fcntl

        fcntl.fcntl(fd, 1033, seals)
        places[(1 << 40) + number * CHUNK] = SharedMemory(fd)
    for pa, file in places.items():
        memory.map_window(pa, file, 0, CHUNK)
    table = formats.VARIANTS["vtdss-39"]
    root, middle, inside = (memory.alloc(4096) for _ in range(3))
    memory.write_u64(root, middle | 3)
    for number, leaves in enumerate([inside, *places, 1 << 50]):
        memory.write_u64(middle + 8 * number, leaves | 3)
        if leaves != 1 << 50:
            memory.write(
                leaves, b"".join((0x10000000 * number + n * 4096 | 3).to_bytes(8, "little") for n in range(512))
            )
    iovas = np.random.default_rng(count).integers(0, 5 << 21, count).astype(np.uint64)
    oas, ends = batch.translate_many(table, memory, root, iovas, READ)
    singles = [walk.walk(table, memory, root, int(iova), READ) for iova in iovas]
    assert oas.tolist() == [found.oa for found in singles]
    assert ends.tolist() == [found.status for found in singles]
    assert ASK not in ends
    assert len(set(ends.tolist())) == 3
    host = PageTable(memory, formats.VARIANTS["vtdss-48"])
    host.map(0, 0, CHUNK, READ | WRITE)
    host.map(1 << 40, 1 << 40, 2 * CHUNK, READ | WRITE)
    stages = Stage(table, root), Stage(host.table, host.root)
    oas, ends = batch.translate_nested(*stages, memory, iovas, READ)
    pairs = [nested.nested_walk(*stages, memory, int(iova), READ) for iova in iovas]
    assert oas.tolist() == [found.pa for found in pairs]
    assert ends.tolist() == [found.status for found in pairs]


def test_kernels_stay_inside_their_arrays():
    """Once more with bounds checked, in a process of its own: Numba reads the wish when it compiles."""
    if os.environ.get("NUMBA_BOUNDSCHECK"):
        pytest.skip("this is that process")
    wanted = "hostile or nested or (changes and (x86-64-4level or amdv1-6level or arm64-16k-40-s2 or riscv-sv48x4))"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", wanted, __file__],
        env=os.environ | {"NUMBA_BOUNDSCHECK": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_kernels_compile_where_nothing_can_be_kept(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    double = jit.kernel(lambda number: number * 2)
    assert double(21) == 42
    assert not (tmp_path / "file").is_dir()


def test_the_cache_folder_is_named_by_the_sources_and_by_whether_bounds_are_checked(monkeypatch):
    plain = jit.cache_folder()
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1" if not os.environ.get("NUMBA_BOUNDSCHECK") else "")
    assert jit.cache_folder() != plain
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert jit.cache_folder().startswith("/elsewhere/softiommu/")
