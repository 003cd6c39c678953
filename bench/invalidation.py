"""A guest's invalidations through the Python face: in one call of a thousand entries, and in a thousand calls.

    python bench/invalidation.py      # prints one line of JSON

Each entry is for one page. VT-d takes them for a nested HWPT, in its own form and in the generic one; SMMUv3 for a
vIOMMU, as the guest's commands and in the generic form. In each round both ways are timed, one after the other, so that
other work on the machine weighs on both: the ratios are of a round, the microseconds of an entry the medians of all.
Target: a command of SMMUv3 costs in one call at most a twentieth of what it costs alone.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import time
from collections.abc import Callable
from statistics import median

import softiommu
from softiommu.abi import iommufd as abi
from softiommu.abi.generic_invalidation import GENERIC, InvalidateV1, InvalidateV2, Scope, Target
from softiommu.abi.struct import UserStruct
from softiommu.api import Hwpt, VfioDevice, Viommu
from softiommu.hardware.smmuv3.commands import Address1, AtcInv0, AtcInv1, CfgiCd0, Op, Va0

COUNT, ROUNDS, RAM = 1000, 7, 2 << 20
#: Calls with all entries in a round, so that both ways take long enough to be timed.
REPEATS = 5
NEST_PARENT = int(abi.HwptAllocFlags.ALLOC_NEST_PARENT)


def timed(work: Callable[[], object], times: int = 1) -> float:
    """Microseconds of an entry."""
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) * 1e6 / COUNT / times


def entries(target: Hwpt | Viommu, data_type: int, made: list[UserStruct]) -> dict[str, float]:
    """What an entry costs in one call and alone."""

    def alone() -> None:
        for entry in made:
            target.invalidate(data_type, [entry])

    def together() -> None:
        target.invalidate(data_type, made)

    together()
    rounds = [(timed(together, REPEATS), timed(alone)) for _ in range(ROUNDS)]
    ratios = [apart / one for one, apart in rounds]
    return {
        "together us": round(median(one for one, _ in rounds), 2),
        "alone us": round(median(apart for _, apart in rounds), 2),
        "ratio": round(median(ratios), 1),
        "least ratio": round(min(ratios), 1),
    }


def generic(version: type[InvalidateV1 | InvalidateV2]) -> list[UserStruct]:
    """An entry for each page."""
    scope = int(Scope.RANGE_ALL_PASIDS)
    return [version(scope, 12, int(Target.LEAF), addr=page << 12, count=1) for page in range(COUNT)]


def guest(machine: str, name: str, ram: mmap.mmap) -> tuple[VfioDevice, Hwpt]:
    """A device and a nest parent that shows a guest's RAM from 0 on."""
    iommufd = softiommu.open(machine)
    ioas, device = iommufd.ioas(), iommufd.device(name)
    ioas.map(ctypes.addressof(ctypes.c_char.from_buffer(ram)), len(ram), iova=0)
    return device, device.hwpt(ioas, NEST_PARENT)


def vtd(ram: mmap.mmap) -> dict[str, object]:
    """A nested HWPT."""
    device, parent = guest("vtd-nested", "edu0", ram)
    nested = device.hwpt(parent, 0, (int(abi.HwptDataType.VTD_S1), abi.HwptVtdS1(0, 0, 48)))
    device.attach(nested)
    own: list[UserStruct] = [abi.HwptVtdS1Invalidate(page << 12, 1, 1) for page in range(COUNT)]
    return {
        "VT-d's form": entries(nested, 0, own),
        "generic, version 1": entries(nested, GENERIC, generic(InvalidateV1)),
        "generic, version 2": entries(nested, GENERIC, generic(InvalidateV2)),
    }


def smmuv3(ram: mmap.mmap) -> dict[str, object]:
    """A vIOMMU, with a device that has a TLB of its own."""
    device, parent = guest("smmuv3", "pcitest0", ram)
    viommu = device.viommu(int(abi.ViommuType.ARM_SMMUV3), parent)
    viommu.vdevice(device, 1)
    pages = int(Va0.of(OPCODE=Op.TLBI_NH_VA, ASID=1))
    devices, contexts = int(AtcInv0.of(OPCODE=Op.ATC_INV, SID=1)), int(CfgiCd0.of(OPCODE=Op.CFGI_CD, SID=1))
    command = abi.ViommuArmSmmuv3Invalidate
    raw: dict[str, list[UserStruct]] = {
        "TLBI_NH_VA": [command(pages, int(Address1.of(LEAF=1, ADDR=page))) for page in range(COUNT)],
        "ATC_INV": [command(devices, int(AtcInv1.of(ADDR=page))) for page in range(COUNT)],
        "CFGI_CD": [command(int(CfgiCd0(contexts).replace(SSID=ssid)), 1) for ssid in range(COUNT)],
    }
    turns = zip(raw["TLBI_NH_VA"], raw["ATC_INV"], strict=True)
    raw["TLBI_NH_VA and ATC_INV"] = [each for pair in turns for each in pair][:COUNT]
    kind = int(abi.InvalidateDataType.VIOMMU_INVALIDATE_DATA_ARM_SMMUV3)
    return {
        **{name: entries(viommu, kind, commands) for name, commands in raw.items()},
        "generic, version 1": entries(viommu, GENERIC, generic(InvalidateV1)),
    }


if __name__ == "__main__":
    zeros = mmap.mmap(-1, RAM)
    print(json.dumps({"vtd-nested": vtd(zeros), "smmuv3": smmuv3(zeros)}))
