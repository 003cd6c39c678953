"""What a program is told of regions that it can map, and which mappings are refused."""

import struct
from errno import EINVAL

import pytest

from consumers.mapped_rig import PENDING, PRIVATE, TABLE, opened, request
from softiommu.abi import vfio
from softiommu.consumers.vfio.regions import offset_of
from softiommu.errors import UapiError

READ, WRITE, MMAP, CAPS = 1, 2, 4, 8
SPARSE, MSIX_MAPPABLE = 1, 3


def info(rig, file, region, argsz):
    """The answer's fields (argsz, flags, capability offset, size, offset), and the bytes behind it."""
    raw = struct.pack("<IIIIQQ", argsz, 0, region, 0, 0, 0).ljust(max(argsz, 32), b"\xaa")
    _, after = rig.raw(file, vfio.DEVICE_GET_REGION_INFO, raw)
    size, flags, _, caps, length, offset = struct.unpack("<IIIIQQ", after[:32])
    return (size, flags, caps, length, offset), after[32:]


def test_a_bar_of_memory_can_be_mapped_with_its_msix_table():
    rig, file, _ = opened()
    answer, caps = info(rig, file, 0, 64)
    assert answer == (64, READ | WRITE | MMAP | CAPS, 32, 0x4000, offset_of(0))
    assert caps == struct.pack("<HHI", MSIX_MAPPABLE, 1, 0).ljust(32, b"\xaa")


def test_a_bar_smaller_than_a_page_can_be_mapped_for_no_other_is_in_its_page():
    rig, file, _ = opened()
    assert info(rig, file, 2, 32)[0] == (32, READ | WRITE | MMAP, 0, 0x100, offset_of(2))
    file.mmap(rig.caller, request(2, 0, 0x1000))


def test_of_a_bar_that_can_be_mapped_in_part_the_part_is_told():
    rig, file, _ = opened()
    answer, caps = info(rig, file, 3, 64)
    assert answer == (64, READ | WRITE | MMAP | CAPS, 32, 0x10000, offset_of(3))
    assert caps == struct.pack("<HHIIIQQ", SPARSE, 1, 0, 1, 0, 0x1000, 0x2000)


@pytest.mark.parametrize(("region", "needed"), [(0, 40), (3, 64)])
@pytest.mark.parametrize("short", [1, 8])
def test_without_room_for_the_capabilities_argsz_says_what_they_need(region, needed, short):
    rig, file, _ = opened()
    (argsz, flags, caps, _, _), after = info(rig, file, region, max(needed - short, 32))
    assert (argsz, flags & CAPS, caps) == (needed, CAPS, 0)
    assert set(after) <= {0xAA}
    assert info(rig, file, region, argsz)[0][:3] == (needed, READ | WRITE | MMAP | CAPS, 32)


@pytest.mark.parametrize("region", [4, 5])
def test_a_bar_whose_model_does_not_allow_it_cannot_be_mapped(region):
    rig, file, _ = opened()
    assert info(rig, file, region, 64)[0][1:3] == (READ | WRITE, 0)


def test_where_accesses_cannot_be_trapped_their_bar_cannot_be_mapped_and_the_host_says_why():
    rig, file, _ = opened(can_trap=False)
    reports = []
    rig.services.report = reports.append
    assert info(rig, file, 3, 64)[0][1:3] == (READ | WRITE, 0)
    assert info(rig, file, 0, 64)[0][1] & MMAP
    assert reports == ["0000:00:09.0: a BAR cannot be mapped: not today"]
    with pytest.raises(UapiError) as error:
        file.mmap(rig.caller, request(3, 0x1000, 0x1000))
    assert error.value.errno == EINVAL


@pytest.mark.parametrize(
    ("region", "at", "length", "flags"),
    [
        (0, 0, 0x4000, PRIVATE),
        (0, 0, 0x5000, 1),
        (0, 0x3000, 0x2000, 1),
        (0, 0x4000, 0x1000, 1),
        (0, (1 << 40) - 0x1000, 0x2000, 1),
        (1, 0, 0x1000, 1),
        (2, 0x1000, 0x1000, 1),
        (3, 0, 0x1000, 1),
        (3, 0x1000, 0x3000, 1),
        (3, 0x3000, 0x1000, 1),
        (4, 0, 0x1000, 1),
        (5, 0, 0x1000, 1),
        (6, 0, 0x1000, 1),
        (7, 0, 0x1000, 1),
        (8, 0, 0x1000, 1),
        (9, 0, 0x1000, 1),
        (1 << 20, 0, 0x1000, 1),
    ],
)
def test_a_mapping_is_shared_and_inside_of_what_can_be_mapped(region, at, length, flags):
    rig, file, _ = opened()
    with pytest.raises(UapiError) as error:
        file.mmap(rig.caller, request(region, at, length, flags))
    assert error.value.errno == EINVAL


@pytest.mark.parametrize(
    ("region", "at", "length"), [(0, TABLE, 0x1000), (0, 0x1000, 0x2000), (0, PENDING, 0x1000), (3, 0x1000, 0x2000)]
)
def test_any_part_can_be_mapped_also_the_page_of_the_msix_table(region, at, length):
    rig, file, _ = opened()
    file.mmap(rig.caller, request(region, at, length))
    file.mmap(rig.caller, request(region, at, length))


def test_nothing_is_mapped_of_a_device_that_is_not_bound():
    rig, _, _ = opened()
    with pytest.raises(UapiError) as error:
        rig.cdev("mapped").mmap(rig.caller, request(0, 0, 0x1000))
    assert error.value.errno == EINVAL


def test_a_load_and_a_store_of_a_trapped_bar_are_one_access_of_the_bus():
    _, file, _ = opened()
    assert file.is_trapped(offset_of(3) + 0x1000)
    assert not any(file.is_trapped(offset_of(region)) for region in (0, 1, 2, 4, 5, 6, 7, 9))
    file.store(offset_of(3) + 0x1000, 4, 0x11223344)
    assert file.load(offset_of(3) + 0x1000, 8) == 0xEEEEEEEE11223344
    assert file.load(offset_of(3) + 0x1002, 4) == 0xEEEE1122
