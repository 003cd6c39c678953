"""The Python face: the same tests on a machine in this process, and on /dev/iommu where there is one.

`softiommu run -- pytest tests/api` shows a /dev/iommu; test_kernel_backend.py does that.
"""

import errno
import gc
import mmap
import os
import weakref

import pytest

import softiommu
from softiommu.abi import iommufd as abi, iommufd_test as test

KERNEL = os.environ.get("SOFTIOMMU_TEST_NODE")


def an_iommufd():
    return softiommu.open_kernel(KERNEL) if KERNEL else softiommu.open("mock")


@pytest.fixture
def iommufd():
    opened = an_iommufd()
    yield opened
    opened.close()
    if not KERNEL:
        physical = opened.backend.machine.physical
        assert physical.accounts.total == 0
        assert not physical.pinned


@pytest.fixture
def buffer():
    return mmap.mmap(-1, 1 << 16)


def test_a_mapping_lives_for_its_block(iommufd, buffer):
    with iommufd.ioas() as ioas:
        with ioas.map(buffer) as mapping:
            assert mapping.iova >= 4096
            assert mapping.last - mapping.iova + 1 == len(buffer)
            with pytest.raises(OSError, match=r"overlaps|exists") as caught:
                ioas.map(buffer, iova=mapping.iova)
            assert caught.value.errno == errno.EEXIST
        with pytest.raises(OSError) as caught:
            mapping.unmap()
        assert caught.value.errno == errno.ENOENT


def test_a_buffer_stays_in_place_while_it_is_mapped(iommufd):
    with iommufd.ioas() as ioas:
        memory = bytearray(8192)
        with ioas.map(memory), pytest.raises(BufferError):
            memory.extend(b"x")
        memory.extend(b"x")


@pytest.mark.parametrize("end", ["unmap", "unmap_all", "copy", "destroy", "close"])
def test_a_buffer_lives_until_it_is_unmapped_whoever_holds_the_mapping(end):
    iommufd = an_iommufd()
    ioas, buffer = iommufd.ioas(), mmap.mmap(-1, 8192)
    alive = weakref.ref(buffer)
    made = ioas.map(buffer, iova=0x10000)
    if end == "copy":
        made = ioas.copy(made, iova=0x80000)
        ioas.unmap(0x10000, 8192)
    del buffer, made
    gc.collect()
    assert alive() is not None
    with pytest.raises(BufferError):
        alive().close()
    {
        "unmap": lambda: ioas.unmap(0x10000, 8192),
        "unmap_all": ioas.unmap_all,
        "copy": ioas.unmap_all,
        "destroy": ioas.destroy,
        "close": iommufd.close,
    }[end]()
    gc.collect()
    assert alive() is None
    if end != "close":
        iommufd.close()


def test_a_copy_shows_the_same_pages_elsewhere(iommufd, buffer):
    with iommufd.ioas() as first, iommufd.ioas() as second:
        source = first.map(buffer, iova=0x100000)
        copy = second.copy(source, iova=0x200000)
        assert (copy.iova, copy.length) == (0x200000, len(buffer))
        assert second.unmap_all() == len(buffer)
        assert first.unmap_all() == len(buffer)


def test_a_memfd_is_mapped_by_offset(iommufd):
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 1 << 16)
    with iommufd.ioas() as ioas, ioas.map_file(fd, 4096, 8192, iova=0x8000) as mapping:
        assert mapping.last == 0x9FFF
    os.close(fd)


def test_ranges_and_alignment_follow_the_device(iommufd):
    with iommufd.ioas() as ioas:
        assert ioas.ranges() == [(0, 2**64 - 1)]
        assert ioas.alignment == 1
        device = iommufd.mock_device(ioas)
        assert ioas.ranges() == [(test.Mock.APERTURE_START, test.Mock.APERTURE_LAST)]
        assert ioas.alignment == test.Mock.PAGE_SIZE
        device.destroy()


def test_more_ranges_than_room_are_all_given(iommufd):
    with iommufd.ioas() as ioas:
        ioas.allow([])
        assert ioas.ranges() == [(0, 2**64 - 1)]


def test_allowed_ranges_bound_the_choice(iommufd, buffer):
    with iommufd.ioas() as ioas:
        ioas.allow([(0x500000, 0x5FFFFF)])
        assert ioas.map(buffer).iova == 0x500000


def test_large_pages_can_be_turned_off(iommufd):
    with iommufd.ioas() as ioas:
        assert ioas.large_pages
        ioas.large_pages = False
        assert not ioas.large_pages
        assert ioas.alignment == 4096


def test_an_object_in_use_cannot_be_destroyed(iommufd):
    ioas = iommufd.ioas()
    device = iommufd.mock_device(ioas)
    with pytest.raises(OSError) as caught:
        ioas.destroy()
    assert caught.value.errno == errno.EBUSY
    device.destroy()
    ioas.destroy()


def test_hw_info_has_the_drivers_structure(iommufd):
    with iommufd.ioas() as ioas:
        device = iommufd.mock_device(ioas)
        info = device.hw_info()
        assert info.type == test.HW_INFO_TYPE_SELFTEST
        assert test.HwInfoSelftest.from_bytes(info.data).test_reg == test.HW_INFO_SELFTEST_REGVAL
        assert abi.HwCapabilities.DIRTY_TRACKING in info.capabilities
        device.destroy()


def test_dirty_pages_are_reported_once(iommufd, buffer):
    with iommufd.ioas() as ioas:
        device = iommufd.mock_device(ioas)
        hwpt = device.hwpt(ioas, flags=int(abi.HwptAllocFlags.ALLOC_DIRTY_TRACKING))
        device.replace(hwpt)
        mapping = ioas.map(buffer, iova=0x1000000)
        hwpt.track_dirty()
        assert hwpt.dirty(mapping.iova, mapping.length, 2048) == []
        hwpt.track_dirty(False)
        device.replace(ioas)
        mapping.unmap()
        hwpt.destroy()
        device.destroy()


def test_a_fault_is_read_and_answered(iommufd):
    ioas = iommufd.ioas()
    device = iommufd.mock_device(ioas)
    with iommufd.fault_queue() as queue:
        parent = device.hwpt(ioas, flags=int(abi.HwptAllocFlags.ALLOC_NEST_PARENT))
        nested = device.hwpt(parent, data=(test.HWPT_DATA_SELFTEST, test.HwptSelftest(iotlb=7)), faults=queue)
        device.replace(nested)
        assert queue.read() == []
        assert not queue.ready
        device.fault(0x1000, perm=3, group=9)
        assert queue.ready
        (fault,) = queue.read()
        assert (fault.device_id, fault.addr, fault.group, fault.pasid) == (device.id, 0x1000, 9, None)
        assert fault.perm == abi.PgfaultPerm.READ | abi.PgfaultPerm.WRITE
        queue.respond(fault.cookie)
        with pytest.raises(OSError, match=r".") as caught:
            queue.respond(fault.cookie)
        assert caught.value.errno == errno.EINVAL
        device.replace(ioas)
        nested.destroy()
        parent.destroy()
    device.destroy()
    ioas.destroy()


def test_a_guests_events_and_caches(iommufd):
    ioas = iommufd.ioas()
    device = iommufd.mock_device(ioas)
    parent = device.hwpt(ioas, flags=int(abi.HwptAllocFlags.ALLOC_NEST_PARENT))
    with device.viommu(test.VIOMMU_TYPE_SELFTEST, parent) as viommu, viommu.vdevice(device, 0x99):
        nested = device.hwpt(viommu, data=(test.HWPT_DATA_SELFTEST, test.HwptSelftest(iotlb=7)))
        device.replace(nested)
        with viommu.event_queue(test.VEVENTQ_TYPE_SELFTEST, 2, test.ViommuEventSelftest.SIZE) as queue:
            for _ in range(3):
                device.event()
            events = queue.read()
            assert [event.sequence for event in events] == [0, 1, 2]
            assert [event.data for event in events] == [b"\x99\0\0\0", b"\x99\0\0\0", None]
        entry = test.ViommuInvalidateSelftest(flags=1, vdev_id=0x99)
        bad = test.ViommuInvalidateSelftest(vdev_id=0x98)
        assert viommu.invalidate(test.VIOMMU_INVALIDATE_DATA_SELFTEST, [entry]) == 1
        with pytest.raises(OSError) as caught:
            viommu.invalidate(test.VIOMMU_INVALIDATE_DATA_SELFTEST, [entry, bad])
        assert (caught.value.errno, caught.value.handled) == (errno.EINVAL, 1)
        device.replace(ioas)
        nested.destroy()
    parent.destroy()
    device.destroy()
    ioas.destroy()


def test_a_viommus_region_is_shared_with_the_program(iommufd):
    ioas = iommufd.ioas()
    device = iommufd.mock_device(ioas)
    parent = device.hwpt(ioas, flags=int(abi.HwptAllocFlags.ALLOC_NEST_PARENT))
    data = bytearray(test.ViommuSelftest(in_data=0x1234).to_bytes())
    viommu = device.viommu(test.VIOMMU_TYPE_SELFTEST, parent, data)
    answer = test.ViommuSelftest.from_bytes(data)
    assert answer.out_data == 0x1234
    region = iommufd.backend.mmap(answer.out_mmap_offset, answer.out_mmap_length)
    assert region[:4] == b"\x34\x12\0\0"
    with pytest.raises(OSError) as caught:
        viommu.destroy()
    assert caught.value.errno == errno.EBUSY
    region.close()
    viommu.destroy()
    parent.destroy()
    device.destroy()
    ioas.destroy()


def test_pasids_need_hwpts_made_for_them(iommufd):
    ioas = iommufd.ioas()
    device = iommufd.mock_device(ioas, int(test.DeviceFlags.PASID))
    plain = device.hwpt(ioas)
    fit = device.hwpt(ioas, flags=int(abi.HwptAllocFlags.ALLOC_PASID))
    device.replace(fit)
    with pytest.raises(OSError) as caught:
        device.attach_pasid(3, plain)
    assert caught.value.errno == errno.EINVAL
    device.attach_pasid(3, fit)
    device.detach_pasid(3)
    device.replace(ioas)
    fit.destroy()
    plain.destroy()
    device.destroy()
    ioas.destroy()


def test_the_limit_can_count_the_process(iommufd):
    if os.geteuid():
        pytest.skip("changing RLIMIT_MODE needs root")
    assert not iommufd.per_process_limit
    iommufd.per_process_limit = True
    assert iommufd.per_process_limit
    iommufd.per_process_limit = False


def test_an_unknown_machine_names_the_nearest():
    with pytest.raises(softiommu.ConfigError, match="did you mean mock"):
        softiommu.open("mok")
    with pytest.raises(softiommu.ConfigError, match=r"unknown kernel '7\.1'"):
        softiommu.open("mock", "7.1")
