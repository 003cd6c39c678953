"""What drivers of an older kernel do otherwise, through the ioctls."""

from errno import EINVAL, EOPNOTSUPP
from pathlib import Path

import pytest

import softiommu
from softiommu.abi.iommufd import HwInfoType, HwptArmSmmuv3, HwptDataType, ViommuType
from softiommu.abi.smmuv3_extension import VIOMMU_ALLOC_BTM, ViommuBtm
from softiommu.machine import description
from softiommu.machine.assemble import Machine
from softiommu.machine.description import parse

NEST_PARENT = 1


def refused(call, *args, **more):
    with pytest.raises(OSError, match=r"Errno \d+") as caught:
        call(*args, **more)
    return caught.value.errno


@pytest.mark.parametrize("kernel", ["6.12", "7.2", "7.3"])
@pytest.mark.parametrize("machine", ["amd", "smmuv3", "vtd-nested", "riscv"])
def test_pasids_are_told_where_they_can_be_used(machine, kernel):
    with softiommu.open(machine, kernel=kernel) as iommufd:
        told = [iommufd.device(node).hw_info().pasid_bits for node in sorted(set(iommufd.backend.nodes.values()))]
    assert any(told) == (kernel != "6.12")


@pytest.mark.parametrize("kernel", ["6.12", "7.2"])
def test_amds_driver_nests_and_tells_of_the_hardware_since_then(kernel):
    with softiommu.open("amd", kernel=kernel) as iommufd, iommufd.ioas() as ioas, iommufd.device("edu0") as device:
        info = device.hw_info()
        if kernel == "6.12":
            assert (info.type, len(info.data)) == (HwInfoType.NONE, 0)
            assert refused(device.hwpt, ioas, NEST_PARENT) == EOPNOTSUPP
        else:
            assert info.type == HwInfoType.AMD
            device.hwpt(ioas, NEST_PARENT).destroy()


def test_a_vtd_takes_no_table_of_another_make():
    with softiommu.open("vtd-nested") as iommufd, iommufd.device("edu0") as device:
        parent = device.hwpt(iommufd.ioas(), NEST_PARENT)
        other = (HwptDataType.ARM_SMMUV3, HwptArmSmmuv3(1, 0))
        assert refused(device.hwpt, parent, data=other) == EOPNOTSUPP


@pytest.mark.parametrize("machine", ["smmuv3", "vtd"])
def test_a_device_that_cannot_wait_may_have_a_fault_queue_by_smmuv3s_driver(machine):
    with softiommu.open(machine) as iommufd, iommufd.device("edu0") as device:
        hwpt = device.hwpt(iommufd.ioas(), faults=iommufd.fault_queue())
        if machine == "smmuv3":
            device.attach(hwpt)
            device.detach()
        else:
            assert refused(device.attach, hwpt)


def test_a_viommu_with_queues_that_is_refused_leaves_nothing_at_its_parent():
    text = (Path(description.__file__).parent / "builtin" / "smmuv3-btm.toml").read_text()
    text = text.replace('model = "smmuv3"', 'model = "smmuv3"\nunit = "tegra241"', 1)
    with softiommu.open(Machine(parse(text, "lab"))) as iommufd, iommufd.device("edu0") as device:
        parent = device.hwpt(iommufd.ioas(), NEST_PARENT)
        for data in (None, bytearray(8)):
            assert refused(device.viommu, ViommuType.TEGRA241_CMDQV, parent, data) == EINVAL
        for vmid in (3, 4):
            asked = bytearray(ViommuBtm(vmid).to_bytes())
            device.viommu(ViommuType.ARM_SMMUV3, parent, asked, VIOMMU_ALLOC_BTM).destroy()
