"""The IOMMU models: one translation by a Python call, and invalidation commands through the queue.

    python bench/models.py            # prints one line of JSON

Each machine's driver maps 4 MiB in pages of 4 KiB (every second physical page, so that nothing joins). A miss is a
translation that walks the tables, since more pages are asked for than the IOTLB holds; a hit is one that it holds.
Nested, a guest's tables of such pages lie over a host's, which are pages of 4 KiB, too: a miss is 24 entries read.
Commands are what the driver submits for one page, 500 at a time; `in the model` counts the doorbell alone. Targets:
10 us a miss, 3 us a hit, 100,000 commands per second. Best of many short runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from softiommu.abi.iommufd import HwptArmSmmuv3, HwptDataType, HwptVtdS1, ViommuType
from softiommu.abi.riscv_extension import HWPT_DATA, HwptRiscv
from softiommu.drivers.driver import DomainFlags, PagingDomain, Prot
from softiommu.drivers.riscv.nested import GuestTa, GuestTc
from softiommu.drivers.user_data import UserData
from softiommu.hardware.riscv.tables import FirstMode, Iosatp
from softiommu.hardware.smmuv3.tables import Cd0, Cd1, Config, Ste0, Ste1
from softiommu.machine.assemble import machine
from softiommu.machine.hardware import Wired
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.formats import VARIANTS
from softiommu.pagetable.kinds import READ

MACHINES = ("vtd", "vtd-sm", "vtd-flts", "smmuv3", "amd", "riscv", "viommu")
#: By machine: the guest's format.
NESTED = {"vtd-nested": "x86-64-4level", "smmuv3": "arm64-4k-48-s1", "riscv": "riscv-sv48"}
PAGES, SLICE, ROUNDS, BATCH = 1024, 32, 10, 500
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
    """Microseconds of a miss and of a hit. Of each slice of the pages its best time counts."""
    slices = range(0, PAGES, SLICE)
    best_of = dict.fromkeys(slices, 1.0)
    for _ in range(5 * ROUNDS):
        for first in slices:
            start = time.perf_counter()
            for number in range(first, first + SLICE):
                unit.translate(sid, IOVA + number * PAGE, READ)
            best_of[first] = min(best_of[first], time.perf_counter() - start)

    def hits() -> None:
        for _ in range(SLICE):
            unit.translate(sid, IOVA, READ)

    hit = min(best(hits) for _ in range(10)) / SLICE
    return {"miss us": round(sum(best_of.values()) / PAGES * 1e6, 2), "hit us": round(hit * 1e6, 2)}


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


class Bytes:
    """A program whose memory is one structure."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def read(self, va: int, length: int) -> bytes:
        """Its bytes."""
        return self._raw[:length]


class NoEvents:
    """A manager whom nobody asks for events."""

    def report_event(self, type: int, data: bytes) -> None:
        """It is lost."""


def guest_data(name: str, root: int, contexts: int) -> tuple[Any, int]:
    """What a guest says of its tables, and the type of that."""
    if name == "vtd-nested":
        return HwptVtdS1(0, root, 48), HwptDataType.VTD_S1
    if name == "riscv":
        return HwptRiscv(
            GuestTc.of(V=1), GuestTa.of(PSCID=1), Iosatp.of(MODE=FirstMode.SV48, PPN=root >> 12)
        ), HWPT_DATA
    return HwptArmSmmuv3(Ste0.of(V=1, CONFIG=Config.S1, S1CONTEXTPTR=contexts >> 6), Ste1(0)), HwptDataType.ARM_SMMUV3


def measure_nested(name: str) -> dict[str, float]:
    """The figures of one machine with two stages. The host's shows all at the same addresses."""
    built = machine(name)
    assert built.hardware is not None, "these machines have hardware"
    wired: Wired = built.hardware.devices[0]
    memory = built.hardware.memory
    guest, contexts = PageTable(memory, VARIANTS[NESTED[name]]), memory.alloc(PAGE)
    for number in range(PAGES):
        guest.map(IOVA + number * PAGE, PA + 2 * number * PAGE, PAGE, READ)
    words = Cd0.of(T0SZ=16, EPD1=1, V=1, IPS=5, AA64=1, R=1, A=1, ASET=1, ASID=1), Cd1.of(TTB0=guest.root >> 4)
    for number, word in enumerate(words):
        memory.write_u64(contexts + 8 * number, word)
    parent = wired.device.alloc_paging(DomainFlags.NEST_PARENT, None)
    for first, step in ((guest.root & ~0xFFFFF, PAGE), (PA, 2 * PAGE)):
        for number in range(PAGES):
            parent.map(first + number * step, first + number * step, PAGE, Prot.READ | Prot.WRITE)
    described, kind = guest_data(name, guest.root, contexts)
    raw = described.to_bytes()
    data: Any = UserData(Bytes(raw), 4096, len(raw), kind)
    if name == "smmuv3":
        viommu = wired.device.alloc_viommu(ViommuType.ARM_SMMUV3, parent, NoEvents(), None)
        viommu.add_vdevice(wired.device, 0)
        wired.device.attach(viommu.alloc_nested(wired.device, 0, data), None)
    else:
        wired.device.attach(wired.device.alloc_nested(parent, 0, data), None)
    unit, _ = built.hardware.iommus[str(wired.pci.iommu)]
    return translations(unit, wired.place.sid)


if __name__ == "__main__":
    found = {name: measure(name) for name in MACHINES}
    found |= {f"{name}, two stages": measure_nested(name) for name in NESTED}
    print(json.dumps(found, indent=2))
