"""AMD IOMMU: features that can go together are told, and others are refused."""

import pytest
from amd_rig import SID, Rig, answer

from softiommu.errors import ModelError
from softiommu.hardware.amd.commands import Opcode
from softiommu.hardware.amd.events import Code
from softiommu.hardware.amd.model import AmdIommu
from softiommu.hardware.amd.presets import FULL, QEMU, SMALL, Preset, check
from softiommu.hardware.amd.registers import Efr, Efr2, Registers
from softiommu.memory.physical import PhysicalMemory
from softiommu.pagetable.kinds import READ


@pytest.mark.parametrize(
    ("preset", "rule"),
    [
        (Preset(Efr.of(GLXSup=1)), "efr.GLXSup needs efr.GTSup"),
        (Preset(Efr.of(HDSup=1)), "efr.HDSup needs efr.HASup"),
        (Preset(Efr.of(HATS=3)), "efr.HATS 3 is reserved"),
        (Preset(Efr.of(GTSup=1, PASmax=20)), "1 to 20 bits"),
        (Preset(Efr.of(XTSup=1)), "efr.XTSup is not modelled"),
        (Preset(Efr(1 << 5)), "reserved"),
        (Preset(Efr(0), Efr2.of(GCR3TRPModeSup=1)), "needs efr.GTSup"),
        (SMALL._replace(header=SMALL.header.replace(EFRSup=0)), "EFRSup"),
    ],
)
def test_features_that_no_hardware_has_are_refused(preset, rule):
    with pytest.raises(ModelError, match=rule):
        check(preset)


def test_the_presets_are_possible_and_told():
    for preset in (SMALL, QEMU, FULL):
        check(preset)
        iommu = AmdIommu(PhysicalMemory(1 << 20), *preset[:2], header=preset.header)
        assert iommu.read(Registers.EFR.offset, 8) == preset.efr
        assert iommu.capability.read(0, 4) == preset.header


def test_without_device_tlbs_devices_are_not_translated_ahead():
    rig = Rig(header=FULL.header.replace(IotlbSup=0))
    rig.entry(q1={"I": 1})
    for ask in (rig.iommu.ats_translate, rig.iommu.admit_translated):
        assert answer(ask, SID, 0x1000, READ) == Code.INVALID_DEVICE_REQUEST
        assert rig.event()[0].CODE == Code.INVALID_DEVICE_REQUEST
    rig.submit(Opcode.INVALIDATE_IOTLB_PAGES << 60 | SID)
    assert rig.event()[0].CODE == Code.ILLEGAL_COMMAND_ERROR
