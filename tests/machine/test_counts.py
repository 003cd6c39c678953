"""Counts: what a program asked, what its device's IOMMU did, and what nesting in software did for it."""

import mmap

import pytest

import softiommu
from api.test_software_nesting import DATA, IOMMUS, PAGE, machine as one_stage, vm
from softiommu.abi.iommufd import HwptDataType
from softiommu.errors import UapiError
from softiommu.machine.assemble import machine
from softiommu.machine.counts import Counts

PAGES = 8


def mapped(guest):
    for page in range(PAGES):
        guest.map(0x100000 + page * PAGE, DATA + page * PAGE)


def test_hardware_that_nests_walks_the_guests_tables_and_forgets_what_it_is_told_to():
    made = machine("vtd-nested")
    counts = Counts(made)
    with vm(made, HwptDataType.VTD_S1) as guest:
        mapped(guest)
        told = [counts.told()]
        for page in range(PAGES):
            guest.read(0x100000 + page * PAGE)
        told.append(counts.told())
        guest.read(0x100000)
        told.append(counts.told())
        guest.invalidate(0x100000, PAGES)
        told.append(counts.told())
    units = [each["iommus"]["dmar0"] for each in told]
    # Each read is followed by a write of what was read, to an address whose translation stays.
    assert units[1]["nested_walks"] - units[0]["nested_walks"] == PAGES + 1
    assert units[1]["first_stage_tables"] - units[0]["first_stage_tables"] == 4 * (PAGES + 1)
    assert units[1]["walked"] - units[0]["walked"] == PAGES + 1
    assert (units[2]["walked"], units[2]["found"]) == (units[1]["walked"], units[1]["found"] + 2)
    assert units[3]["forgotten"] - units[2]["forgotten"] == PAGES
    assert [each["invalidated"] for each in told] == [1, 1, 1, 2]
    assert "software" not in units[0]


@pytest.mark.parametrize("iommu", IOMMUS)
def test_nesting_in_software_tells_what_it_read_and_merged(iommu):
    made = one_stage(iommu)
    counts = Counts(made)
    with vm(made) as guest:
        mapped(guest)
        before = counts.told()["iommus"]["unit"]["software"]
        guest.invalidate(0x100000, PAGES)
        after = counts.told()["iommus"]["unit"]["software"]
    assert after["merged"] - before["merged"] == PAGES
    assert after["ranges"] - before["ranges"] == 1
    assert after["tables"] - before["tables"] == 4
    assert after["entries"] - before["entries"] == PAGES + 3
    assert counts.told()["iommus"]["unit"]["software"]["dropped"] == PAGES + 1
    assert counts.told()["invalidated"] == 2


def test_calls_are_counted_beside_whoever_heard_them_before():
    made, heard = one_stage(), []
    made.services.on_call = heard.append
    counts = Counts(made)
    with vm(made) as guest:
        guest.map(0x10000, DATA)
        guest.invalidate(0x10000, 1)
        told = counts.told()["calls"]
        assert sum(told.values()) == len(heard)
        with pytest.raises(UapiError):
            guest.ioas.map(guest.ram, iova=0)
        assert len(heard) == sum(told.values()) + 1
    assert told["HWPT_INVALIDATE"] == 2
    assert told["IOAS_MAP"] == counts.told()["calls"]["IOAS_MAP"] == 1


@pytest.mark.parametrize("name", ["vtd", "smmuv3", "amd", "riscv"])
def test_every_iommu_with_an_iotlb_counts(name):
    made = machine(name)
    with softiommu.open(made) as iommufd, iommufd.device("edu0") as device, iommufd.ioas() as ioas:
        with ioas.map(mmap.mmap(-1, PAGE), iova=0x10000):
            device.attach(ioas)
            device.enable()
            for register, value in ((0x80, 0x10000), (0x88, 0x40000), (0x90, 4), (0x98, 1), (0x98, 1)):
                device.write(0, register, 8, value)
        device.detach()
        (told,) = Counts(made).told()["iommus"].values()
    assert min(told["walked"], told["found"], told["forgotten"]) > 0
