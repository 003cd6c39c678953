"""Software nesting: what a change of the parent costs, while the shadow above it grows 1000 times.

    python bench/shadow.py            # prints one line of JSON

A guest maps 100 to 100,000 pages; as many leaves as ever lead to the page that the host takes away and gives back. The
figure is the time of one such pair for one dependent leaf, and how many leaves it reached. Beside it: what merging one
leaf costs that the program maps; and what one leaf costs of a guest's whole table, when a device is attached to it: of
pages that lie together, and of pages that do not.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import NamedTuple

from softiommu.drivers.driver import DomainFlags, Prot, Range
from softiommu.drivers.function import Function
from softiommu.drivers.shadow.data import Binding
from softiommu.drivers.shadow.domain import BoundDomain
from softiommu.drivers.shadow.driver import ShadowDriver
from softiommu.drivers.shadow.parent import ParentDomain
from softiommu.drivers.vtd.driver import VtdDriver
from softiommu.hardware.vtd.model import Unit
from softiommu.hardware.vtd.presets import LEGACY
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.formats import VARIANTS

PAGE, RW = 4096, Prot.READ | Prot.WRITE
SIZES = (100, 1_000, 10_000, 100_000)
#: Leaves that lead to the page that changes.
DEPENDENT, ROUNDS = 10, 200
GUEST = 1 << 30


class Rig(NamedTuple):
    """A shadow, and how long it took to merge one of its leaves."""

    driver: ShadowDriver
    parent: ParentDomain
    merge: float


def shadowed(leaves: int) -> Rig:
    """A child with so many leaves of a page each."""
    memory = PhysicalMemory(4 << 30)
    driver = ShadowDriver(VtdDriver(memory, Unit(memory, LEGACY.cap, LEGACY.ecap)), memory)
    device = driver.device(Function("edu", (0x20,)))
    parent = device.alloc_paging(DomainFlags.NEST_PARENT, None)
    assert isinstance(parent, ParentDomain)
    parent.map(0, 2 << 30, PAGE, RW)
    parent.map(PAGE, (2 << 30) + PAGE, GUEST - PAGE, RW)
    child = device.alloc_mapped(parent, DomainFlags.NONE)
    device.attach(child, None)
    start = time.perf_counter()
    for number in range(leaves):
        child.map(number * PAGE, 0 if number < DEPENDENT else number * PAGE, PAGE, RW)
    return Rig(driver, parent, (time.perf_counter() - start) / leaves)


def attached(leaves: int, apart: bool) -> float:
    """Seconds for each leaf of a guest's table, until a device is attached to it. Accessed and dirty flags are set."""
    memory, guest = PhysicalMemory(2 << 30), PhysicalMemory(GUEST)
    memory.map_window(2 << 30, guest, 0, GUEST)
    driver = ShadowDriver(VtdDriver(memory, Unit(memory, LEGACY.cap, LEGACY.ecap)), memory)
    device = driver.device(Function("edu", (0x20,)))
    parent = device.alloc_paging(DomainFlags.NEST_PARENT, None)
    parent.map(0, 2 << 30, GUEST, RW)
    table = PageTable(guest, VARIANTS["x86-64-4level"])
    for number in range(leaves):
        # An odd factor: each page once, and none beside the one before.
        page = number * 4099 % leaves if apart else number
        table.map(number * PAGE, page * PAGE, PAGE, RW.value)
    assert isinstance(parent, ParentDomain)
    child = BoundDomain(parent, device.inner.alloc_paging(DomainFlags.NONE, None), bound(table.root), [])
    device.attach(child, None)
    device.detach(None)
    start = time.perf_counter()
    device.attach(child, None)
    return (time.perf_counter() - start) / leaves


def bound(root: int) -> Binding:
    """A guest in caching mode with a table of four levels."""
    return Binding(VARIANTS["x86-64-4level"], root, Range(0, (1 << 47) - 1), caching_mode=True)


def change(parent: ParentDomain) -> float:
    """Seconds of one change for one dependent leaf."""
    start = time.perf_counter()
    parent.unmap(0, PAGE)
    parent.flush()
    parent.map(0, 2 << 30, PAGE, RW)
    return (time.perf_counter() - start) / DEPENDENT


def main() -> None:
    """Build every size, then measure all of them in turns: whatever else runs here disturbs them alike."""
    rigs = {leaves: shadowed(leaves) for leaves in SIZES}
    before = {leaves: rig.driver.work.reached for leaves, rig in rigs.items()}
    times: dict[int, list[float]] = {leaves: [] for leaves in SIZES}
    for _ in range(ROUNDS):
        for leaves, rig in rigs.items():
            times[leaves].append(change(rig.parent))
    found = {
        leaves: {
            "merge_us": round(rig.merge * 1e6, 1),
            "parent_change_us_per_dependent": round(statistics.median(times[leaves]) * 1e6, 1),
            "reached": (rig.driver.work.reached - before[leaves]) / ROUNDS,
        }
        for leaves, rig in rigs.items()
    }
    first, last = (statistics.median(times[size]) for size in (SIZES[0], SIZES[-1]))
    table = {name: round(attached(100_000, name == "apart") * 1e6, 2) for name in ("together", "apart")}
    growth = round(last / first, 2)
    print(json.dumps({"shadows": found, "growth_at_1000_times_the_shadow": growth, "attach_us_per_leaf": table}))


if __name__ == "__main__":
    main()
