"""What was counted on a machine while a guest ran, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: Calls that map, and calls that unmap: of iommufd, and of VFIO's containers.
_MAPS = ("IOAS_MAP", "IOAS_MAP_FILE", "VFIO_IOMMU_MAP_DMA")
_UNMAPS = ("IOAS_UNMAP", "VFIO_IOMMU_UNMAP_DMA")


def lines(told: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a report about `Counts.told()`."""
    calls = told["calls"]
    maps, unmaps = (sum(calls.get(name, 0) for name in names) for names in (_MAPS, _UNMAPS))
    yield f"QEMU made {sum(calls.values()):,} ioctls: {maps:,} mapped memory, {unmaps:,} unmapped some"
    if calls.get("HWPT_INVALIDATE"):
        entries = told["invalidated"]
        yield f"it passed on {entries:,} invalidations of its guest, in {calls['HWPT_INVALIDATE']:,} calls"
    for name, counts in told["iommus"].items():
        if "walked" in counts:
            yield (
                f"{name} found {counts['found']:,} translations in its IOTLB, walked tables for {counts['walked']:,}, "
                f"and forgot {counts['forgotten']:,} when it was told to"
            )
        if counts.get("nested_walks"):
            yield (
                f"{name} walked both stages {counts['nested_walks']:,} times, and read "
                f"{counts['first_stage_tables']:,} of the guest's tables for that"
            )
        if "software" in counts:
            work = ", ".join(f"{what.replace('_', ' ')} {count:,}" for what, count in counts["software"].items())
            yield f"{name}'s driver nested in software: {work}"
