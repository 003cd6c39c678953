"""What the numbers in VFIO's structures mean, for the call log. Loaded when a program uses VFIO."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from softiommu.abi import vfio

#: A class of the ABI for a structure's field.
MEANINGS: dict[tuple[str, str], type[IntEnum] | type[IntFlag]] = {
    ("GroupStatus", "flags"): vfio.GroupFlags,
    ("DeviceInfo", "flags"): vfio.DeviceFlags,
    ("RegionInfo", "flags"): vfio.RegionFlags,
    ("RegionInfo", "index"): vfio.PciRegion,
    ("IrqInfo", "flags"): vfio.IrqFlags,
    ("IrqInfo", "index"): vfio.PciIrq,
    ("IrqSet", "flags"): vfio.IrqSetFlags,
    ("IrqSet", "index"): vfio.PciIrq,
    ("DeviceFeature", "flags"): vfio.FeatureFlags,
    ("PciHotResetInfo", "flags"): vfio.HotResetFlags,
    ("IommuType1Info", "flags"): vfio.IommuInfoFlags,
    ("IommuType1DmaMap", "flags"): vfio.DmaMapFlags,
    ("IommuType1DmaUnmap", "flags"): vfio.DmaUnmapFlags,
}
