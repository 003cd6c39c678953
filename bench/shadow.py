"""Software nesting: what a change of the parent costs, while the shadow above it grows 1000 times.

    python bench/shadow.py            # prints one line of JSON

A guest maps 100 to 100,000 pages; as many leaves as ever lead to the page that the host takes away and gives back. The
figure is the time of one such pair for one dependent leaf, and how many leaves it reached. Beside it: what merging one
leaf costs, and what reading one page again costs after the guest changed it.
"""

from __future__ import annotations

import json
import statistics
import time

from softiommu.drivers.driver import DomainFlags, Prot
from softiommu.drivers.function import Function
from softiommu.drivers.shadow import ShadowDevice, ShadowDriver
from softiommu.drivers.shadow_parent import ParentDomain
from softiommu.drivers.vtd import VtdDriver
from softiommu.hardware.vtd.model import Unit
from softiommu.hardware.vtd.presets import LEGACY
from softiommu.memory.physical import PhysicalMemory

PAGE, RW = 4096, Prot.READ | Prot.WRITE
SIZES = (100, 1_000, 10_000, 100_000)
#: Leaves that lead to the page that changes.
DEPENDENT, ROUNDS = 10, 200
GUEST = 1 << 30


def shadowed(leaves: int) -> tuple[ShadowDriver, ShadowDevice, ParentDomain, float]:
    """A child with so many leaves of a page each, and how long it took to merge one of them."""
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
    return driver, device, parent, (time.perf_counter() - start) / leaves


def change(driver: ShadowDriver, parent: ParentDomain) -> tuple[float, float]:
    """Seconds for one dependent leaf, the median of many rounds, and how many a round reached."""
    before, times = driver.work.reached, []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        parent.unmap(0, PAGE)
        parent.flush()
        parent.map(0, 2 << 30, PAGE, RW)
        times.append(time.perf_counter() - start)
    return statistics.median(times) / DEPENDENT, (driver.work.reached - before) / ROUNDS


def main() -> None:
    """Measure each size."""
    found = {}
    for leaves in SIZES:
        driver, _, parent, merge = shadowed(leaves)
        took, reached = change(driver, parent)
        found[leaves] = {
            "merge_us": round(merge * 1e6, 1),
            "parent_change_us_per_dependent": round(took * 1e6, 1),
            "reached": reached,
        }
    first, last = (found[size]["parent_change_us_per_dependent"] for size in (SIZES[0], SIZES[-1]))
    print(json.dumps({"shadows": found, "growth_at_1000_times_the_shadow": round(last / first, 2)}))


if __name__ == "__main__":
    main()
