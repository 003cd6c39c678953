"""Page tables: batch walks of every format and of two stages, and maps and unmaps of 4 KiB to 64 GiB.

    python bench/tables.py            # prints one line of JSON

Walks are of random addresses over 128 MiB of pages, compiled, on warm tables; each figure is the best of several runs.
Targets: 100 million single-stage and 10 million nested walks (24 loads) per second and core, 5 ms for 1 GiB in pages
of 4 KiB.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np

from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.batch import translate_many, translate_nested
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.formats import VARIANTS
from softiommu.pagetable.kinds import READ, WRITE
from softiommu.pagetable.nested import Stage

WALKS, ROUNDS = 1_000_000, 5
FORMATS = ("x86-64-4level", "x86-64-5level", "vtdss-39", "vtdss-48", "amdv1-4level", "arm64-4k-48-s1", "arm64-4k-48-s2")
FORMATS += ("arm64-16k-47-s1", "arm64-64k-48-s1", "riscv-sv39", "riscv-sv48", "riscv-sv39x4")
NESTED = (("x86-64-4level", "vtdss-48"), ("arm64-4k-48-s1", "arm64-4k-48-s2"), ("riscv-sv48", "riscv-sv48x4"))
NESTED += (("x86-64-4level", "amdv1-4level"),)
RANGE = 128 << 20
SIZES = {"4 KiB": 4 << 10, "2 MiB": 2 << 20, "1 GiB": 1 << 30, "64 GiB": 64 << 30}


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs, after one that compiles."""
    work()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def paged(memory: PhysicalMemory, name: str, iova: int, oa: int, length: int) -> PageTable:
    """A table of the format's smallest pages only."""
    table = PageTable(memory, VARIANTS[name])
    table.sizes = 1 << table.table.granule_lg2
    table.map(iova, oa, length, READ | WRITE)
    return table


def walks() -> dict[str, float]:
    """Nanoseconds for one walk of a batch."""
    memory = PhysicalMemory(1 << 30)
    chance = np.random.default_rng(1)
    found = {}
    for name in FORMATS:
        table = paged(memory, name, 1 << 36, 1 << 32, RANGE)
        iovas = (chance.integers(0, RANGE, WALKS) + (1 << 36)).astype(np.uint64)
        took = best(lambda: translate_many(table.table, memory, table.root, iovas, READ))  # noqa: B023 - called at once
        found[name] = round(took / WALKS * 1e9, 1)
        table.destroy()
    for first, second in NESTED:
        host = paged(memory, second, 0, 0, 512 << 20)
        guest = paged(memory, first, 1 << 36, 64 << 20, RANGE)
        iovas = (chance.integers(0, RANGE, WALKS) + (1 << 36)).astype(np.uint64)
        stages = Stage(guest.table, guest.root), Stage(host.table, host.root)
        took = best(lambda: translate_nested(*stages, memory, iovas, READ))  # noqa: B023 - called at once
        found[f"{first} over {second}"] = round(took / WALKS * 1e9, 1)
        host.destroy()
        guest.destroy()
    return found


def maps() -> dict[str, dict[str, float]]:
    """Microseconds to map and to unmap, with the largest leaves there are, and in pages of 4 KiB."""
    memory = PhysicalMemory(1 << 30)
    found: dict[str, dict[str, float]] = {}
    for label, length in SIZES.items():
        for pages in (False, True):
            if pages and length > 1 << 30:
                continue
            table = PageTable(memory, VARIANTS["vtdss-48"])
            if pages:
                table.sizes = 1 << 12
            in_all, unmapping = [], []
            for _ in range(ROUNDS + 1):
                start = time.perf_counter()
                table.map(1 << 40, 1 << 36, length, READ | WRITE)
                middle = time.perf_counter()
                removed = table.unmap(1 << 40, length)
                in_all.append(middle - start)
                unmapping.append(time.perf_counter() - middle)
                table.free_tables(removed.tables)
            table.destroy()
            name = f"{label} in pages of 4 KiB" if pages else label
            found[name] = {"map us": round(min(in_all) * 1e6, 1), "unmap us": round(min(unmapping) * 1e6, 1)}
    return found


if __name__ == "__main__":
    print(json.dumps({"walk ns": walks(), "maps": maps()}, indent=2))
