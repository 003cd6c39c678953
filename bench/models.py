"""The IOMMU models: one translation by a Python call, and invalidation commands through the queue.

    python bench/models.py            # prints one line of JSON

Each machine's driver maps 4 MiB in pages of 4 KiB (every second physical page, so that nothing joins). A miss is a
translation that walks the tables, since more pages are asked for than the IOTLB holds; a hit is one that it holds.
Commands are what the driver submits for one page, 500 at a time; `in the model` counts the doorbell alone. Targets:
10 us a miss, 3 us a hit, 100,000 commands per second. Best of several runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from softiommu.drivers.driver import DomainFlags, PagingDomain, Prot
from softiommu.machine.assemble import machine
from softiommu.machine.hardware import Wired
from softiommu.pagetable.kinds import READ

MACHINES = ("vtd", "vtd-sm", "vtd-flts", "smmuv3", "amd", "riscv", "viommu")
PAGES, ROUNDS, BATCH = 1024, 5, 500
IOVA, PA, PAGE = 0x1000_0000, 0x2000_0000, 4096


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def translations(unit: Any, sid: int) -> dict[str, float]:
    """Microseconds of a miss and of a hit."""

    def misses() -> None:
        for number in range(PAGES):
            unit.translate(sid, IOVA + number * PAGE, READ)

    def hits() -> None:
        for _ in range(PAGES):
            unit.translate(sid, IOVA, READ)

    misses()
    return {"miss us": round(best(misses) / PAGES * 1e6, 2), "hit us": round(best(hits) / PAGES * 1e6, 2)}


def command_for_a_page(queue: Any, domain: PagingDomain) -> Any:
    """What the driver submits first when one page was unmapped."""
    seen: list[Any] = []
    submit = queue.submit
    queue.submit = lambda *commands: (seen.extend(commands), submit(*commands))
    domain.unmap(IOVA, PAGE)
    domain.flush()
    queue.submit = submit
    domain.map(IOVA, PA, PAGE, Prot.READ | Prot.WRITE)
    return seen[0]


def commands(unit: Any, queue: Any, domain: PagingDomain) -> dict[str, int]:
    """Commands per second: submitted by the driver, and in the model alone."""
    batch = [command_for_a_page(queue, domain)] * BATCH
    inside = [0.0]
    write = unit.write

    def timed(offset: int, width: int, value: int) -> None:
        start = time.perf_counter()
        write(offset, width, value)
        inside[-1] += time.perf_counter() - start

    unit.write = timed

    def submit() -> None:
        inside.append(0.0)
        queue.submit(*batch)

    whole = best(submit)
    unit.write = write
    return {"commands/s": round(BATCH / whole), "commands/s in the model": round(BATCH / min(inside[1:]))}


def requests(domain: PagingDomain) -> dict[str, int]:
    """What takes the place of commands in virtio: requests per second, to unmap and to map a page."""

    def pairs() -> None:
        for number in range(BATCH):
            domain.unmap(IOVA + number * PAGE, PAGE)
            domain.flush()
            domain.map(IOVA + number * PAGE, PA, PAGE, Prot.READ | Prot.WRITE)

    return {"requests/s": round(2 * BATCH / best(pairs))}


def measure(name: str) -> dict[str, float]:
    """The figures of one machine."""
    built = machine(name)
    assert built.hardware is not None, "these machines have hardware"
    wired: Wired = built.hardware.devices[0]
    unit, driver = built.hardware.iommus[str(wired.pci.iommu)]
    domain = wired.device.alloc_paging(DomainFlags.NONE, None)
    wired.device.attach(domain, None)
    for number in range(PAGES):
        domain.map(IOVA + number * PAGE, PA + 2 * number * PAGE, PAGE, Prot.READ | Prot.WRITE)
    found: dict[str, float] = dict(translations(unit, wired.place.sid))
    queue = getattr(driver, "queue", None)
    return found | (commands(unit, queue, domain) if queue is not None else requests(domain))


if __name__ == "__main__":
    print(json.dumps({name: measure(name) for name in MACHINES}, indent=2))
