"""Binding and attaching devices: who has one, and to which iommufd."""

from errno import E2BIG, EBADF, EBADFD, EBUSY, EFAULT, EINVAL, ENODEV, ENOENT, ENOSPC, ENOTTY, EPERM

import pytest

from consumers.rig import Rig
from softiommu.abi import iommufd as abi, vfio
from softiommu.drivers.driver import DeviceFeatures
from softiommu.errors import UapiError
from softiommu.iommufd import dispatch
from softiommu.iommufd.device import DeviceObject


def test_a_device_answers_nothing_but_bind_until_it_is_bound():
    rig = Rig()
    file = rig.cdev("alone")
    for cmd in (vfio.DEVICE_GET_INFO, vfio.DEVICE_ATTACH_IOMMUFD_PT, vfio.DEVICE_RESET, vfio.DEVICE_FEATURE, 0x3B00):
        assert rig.errno(file, cmd, bytes(32)) == EINVAL
    for access in (
        lambda: rig.pread(file, 0, 4),
        lambda: rig.pwrite(file, 0, b"x"),
        lambda: file.mmap(rig.caller, None),
    ):
        with pytest.raises(UapiError) as error:
            access()
        assert error.value.errno == EINVAL


def test_a_device_is_bound_once_and_free_after_its_close():
    rig = Rig()
    (first, number), (second, other) = rig.iommufd(), rig.iommufd()
    one, two = rig.cdev("alone"), rig.cdev("alone")
    assert rig.bind(one, number) == 1
    for file in (one, two):
        assert rig.errno(file, vfio.DEVICE_BIND_IOMMUFD, vfio.DeviceBindIommufd(16, 0, other)) == EINVAL
    one.release()
    assert not len(first.context.objects)
    assert rig.bind(two, other) == 1
    two.release()
    assert not len(second.context.objects)
    assert rig.devices["alone"].opens == rig.groups[0].cdevs_bound == 0


def test_the_device_keeps_its_iommufd_when_the_program_closed_that():
    rig = Rig()
    iommufd, number = rig.iommufd()
    file = rig.cdev("alone")
    ioas = rig.ioas(iommufd)
    rig.bind(file, number)
    rig.caller.close(number)
    assert rig.attach(file, ioas) == 3
    rig.detach(file)
    assert len(iommufd.context.objects) == 2
    file.release()
    assert not len(iommufd.context.objects)


@pytest.mark.parametrize("kernel", ["6.12", "7.2"])
def test_bind_refuses_what_the_kernel_refuses(kernel):
    rig = Rig(kernel)
    _, number = rig.iommufd()
    file = rig.cdev("alone")
    new = kernel == "7.2"
    _, event = rig.eventfd()

    def refused(data):
        return rig.errno(file, vfio.DEVICE_BIND_IOMMUFD, data)

    assert refused(8) == EFAULT
    assert refused(vfio.DeviceBindIommufd(15, 0, number)) == EINVAL
    assert refused(vfio.DeviceBindIommufd(16, 2, number)) == EINVAL
    assert refused(vfio.DeviceBindIommufd(16, 0, -1)) == EINVAL
    assert refused(vfio.DeviceBindIommufd(16, 0, 99)) == EBADF
    assert refused(vfio.DeviceBindIommufd(16, 0, event)) == EBADFD
    # A token: the pointer is looked at first, and no device of ours has one.
    assert refused(vfio.DeviceBindIommufd(24, 1, number)) == (EFAULT if new else EINVAL)
    assert refused(vfio.DeviceBindIommufd(24, 1, number, 0, rig.at)) == EINVAL
    longer = vfio.DeviceBindIommufd(32, 0, number).to_bytes() + bytes(7)
    assert refused(longer + b"\1") == (E2BIG if new else 0)
    if not new:
        file.release()
        file = rig.cdev("alone")
    assert refused(longer + b"\0") == 0


def test_an_answer_that_cannot_be_written_leaves_nothing_bound():
    rig = Rig()
    iommufd, number = rig.iommufd()
    file = rig.cdev("alone")
    rig.caller.write(rig.at, vfio.DeviceBindIommufd(16, 0, number).to_bytes())
    rig.caller.mm.read_only.add(60)
    assert rig.errno(file, vfio.DEVICE_BIND_IOMMUFD, rig.at) == EFAULT
    assert not len(iommufd.context.objects)
    assert rig.devices["alone"].opens == rig.groups[0].cdevs_bound == 0
    rig.caller.mm.read_only.clear()
    ioas = rig.ioas(iommufd)
    rig.bind(file, number)
    rig.caller.write(rig.at, vfio.DeviceAttachIommufdPt(12, 0, ioas).to_bytes())
    rig.caller.mm.read_only.add(60)
    assert rig.errno(file, vfio.DEVICE_ATTACH_IOMMUFD_PT, rig.at) == EFAULT
    assert [obj.kind for obj in iommufd.context.objects] == ["IOAS", "device"]
    rig.caller.mm.read_only.clear()
    assert rig.attach(file, ioas) == 3


def test_devices_that_cannot_be_isolated_belong_to_one_iommufd():
    rig = Rig()
    (_, number), (_, other) = rig.iommufd(), rig.iommufd()
    left, right = rig.cdev("left"), rig.cdev("right")
    rig.bind(left, number)
    assert rig.errno(right, vfio.DEVICE_BIND_IOMMUFD, vfio.DeviceBindIommufd(16, 0, other)) == EPERM
    assert rig.bind(right, number) == 2
    left.release()
    assert rig.errno(rig.cdev("left"), vfio.DEVICE_BIND_IOMMUFD, vfio.DeviceBindIommufd(16, 0, other)) == EPERM
    right.release()
    assert rig.bind(rig.cdev("left"), other) == 1


def test_without_isolated_interrupts_a_device_is_bound_only_where_that_is_allowed():
    rig = Rig()
    rig.devices["alone"].device.features = DeviceFeatures(isolated_msi=False)
    _, number = rig.iommufd()
    file = rig.cdev("alone")
    assert rig.errno(file, vfio.DEVICE_BIND_IOMMUFD, vfio.DeviceBindIommufd(16, 0, number)) == EPERM
    rig.services.unsafe_interrupts = True
    assert rig.bind(file, number) == 1
    rig.devices["left"].device.features = DeviceFeatures(cache_coherent=False)
    assert rig.errno(rig.cdev("left"), vfio.DEVICE_BIND_IOMMUFD, vfio.DeviceBindIommufd(16, 0, number)) == EINVAL


def test_attach_moves_a_device_that_is_attached_and_detach_forgives():
    rig = Rig()
    file, iommufd, _ = rig.bound()
    one, two = rig.ioas(iommufd), rig.ioas(iommufd)
    rig.detach(file)
    assert rig.attach(file, one) == 4
    assert rig.attach(file, two) == 5
    assert [obj.id for obj in iommufd.context.objects] == [1, 2, 3, 5]
    assert rig.errno(file, vfio.DEVICE_ATTACH_IOMMUFD_PT, vfio.DeviceAttachIommufdPt(12, 0, 99)) == ENOENT
    assert rig.errno(file, vfio.DEVICE_ATTACH_IOMMUFD_PT, vfio.DeviceAttachIommufdPt(11, 0, one)) == EINVAL
    rig.detach(file)
    rig.detach(file)
    file.release()
    assert [obj.kind for obj in iommufd.context.objects] == ["IOAS", "IOAS"]


def test_a_device_without_page_requests_takes_no_fault_queue():
    rig = Rig()
    file, iommufd, id = rig.bound()
    ioas = rig.ioas(iommufd)
    queue, hwpt = abi.FaultAlloc(16), abi.HwptAlloc(48, 4, id, ioas)
    dispatch.execute(iommufd.context, rig.caller, abi.FAULT_QUEUE_ALLOC, queue)
    hwpt.fault_id = queue.out_fault_id
    dispatch.execute(iommufd.context, rig.caller, abi.HWPT_ALLOC, hwpt)
    cmd = vfio.DeviceAttachIommufdPt(12, 0, hwpt.out_hwpt_id)
    assert rig.errno(file, vfio.DEVICE_ATTACH_IOMMUFD_PT, cmd) == ENODEV
    assert rig.attach(file, ioas)
    assert rig.errno(file, vfio.DEVICE_ATTACH_IOMMUFD_PT, cmd) == ENODEV
    file.release()


@pytest.mark.parametrize("kernel", ["6.12", "7.2"])
def test_a_pasid_needs_room_and_a_kernel_that_knows_it(kernel):
    rig = Rig(kernel)
    file, iommufd, _ = rig.bound()
    ioas = rig.ioas(iommufd)
    assert rig.errno(file, vfio.DEVICE_ATTACH_IOMMUFD_PT, vfio.DeviceAttachIommufdPt(12, 1, ioas)) == EINVAL
    assert rig.errno(file, vfio.DEVICE_ATTACH_IOMMUFD_PT, vfio.DeviceAttachIommufdPt(16, 2, ioas)) == EINVAL
    # An IOAS never goes on a PASID.
    assert rig.errno(file, vfio.DEVICE_ATTACH_IOMMUFD_PT, vfio.DeviceAttachIommufdPt(16, 1, ioas, 5)) == EINVAL
    assert rig.errno(file, vfio.DEVICE_DETACH_IOMMUFD_PT, vfio.DeviceDetachIommufdPt(8, 1)) == EINVAL
    forgiven = rig.errno(file, vfio.DEVICE_DETACH_IOMMUFD_PT, vfio.DeviceDetachIommufdPt(12, 1, 5))
    assert forgiven == (0 if kernel == "7.2" else EINVAL)


def test_a_pasid_is_a_positive_number():
    rig = Rig()
    file, iommufd, _ = rig.bound()
    ioas = rig.ioas(iommufd)
    for pasid, errno in ((0x7FFFFFFF, EINVAL), (0x80000000, ENOSPC), (0xFFFFFFFF, ENOSPC)):
        assert rig.errno(file, vfio.DEVICE_ATTACH_IOMMUFD_PT, vfio.DeviceAttachIommufdPt(16, 1, ioas, pasid)) == errno
        assert rig.errno(file, vfio.DEVICE_DETACH_IOMMUFD_PT, vfio.DeviceDetachIommufdPt(12, 1, pasid)) == 0


def test_every_call_is_told_by_name():
    rig = Rig()
    told = []
    rig.services.on_call = told.append
    file, _, id = rig.bound()
    assert rig.errno(file, vfio.DEVICE_RESET, b"") == 0
    assert rig.errno(file, 0x3B00, b"") == ENOTTY
    assert [(done.name, done.result, done.error) for done in told] == [
        ("VFIO_DEVICE_BIND_IOMMUFD", 0, None),
        ("VFIO_DEVICE_RESET", 0, None),
    ]
    assert isinstance(rig.devices["alone"].context.objects.get(id, DeviceObject), DeviceObject)


# Groups


def group_device(rig, group, name):
    return rig.caller.file(rig.raw(group, vfio.GROUP_GET_DEVICE_FD, name.encode() + b"\0")[0])


def status(rig, group):
    return rig.call(group, vfio.GROUP_GET_STATUS, vfio.GroupStatus()).flags


def test_a_group_gives_its_devices_once_it_has_a_container():
    rig = Rig()
    iommufd, number = rig.iommufd()
    group = rig.groups[1].open(rig.services)
    with pytest.raises(UapiError) as error:
        rig.groups[1].open(rig.services)
    assert error.value.errno == EBUSY
    assert status(rig, group) == vfio.GroupFlags.VIABLE
    assert rig.errno(group, vfio.GROUP_GET_DEVICE_FD, b"0000:02:01.0\0") == EINVAL
    assert rig.errno(group, vfio.GROUP_SET_CONTAINER, number.to_bytes(4, "little")) == 0
    assert rig.errno(group, vfio.GROUP_SET_CONTAINER, number.to_bytes(4, "little")) == EINVAL
    assert status(rig, group) == vfio.GroupFlags.VIABLE | vfio.GroupFlags.CONTAINER_SET
    assert rig.errno(group, vfio.GROUP_GET_DEVICE_FD, b"0000:00:04.0\0") == ENODEV
    left, again = group_device(rig, group, "0000:02:01.0"), group_device(rig, group, "0000:02:01.0")
    assert rig.call(left, vfio.DEVICE_GET_INFO, vfio.DeviceInfo()).flags & vfio.DeviceFlags.PCI
    assert [obj.kind for obj in iommufd.context.objects] == ["IOAS", "device", "HWPT_PAGING"]
    for cmd in (vfio.DEVICE_ATTACH_IOMMUFD_PT, vfio.DEVICE_DETACH_IOMMUFD_PT):
        assert rig.errno(left, cmd, bytes(16)) == ENOTTY
    assert rig.errno(left, vfio.DEVICE_BIND_IOMMUFD, vfio.DeviceBindIommufd(16, 0, number)) == EINVAL
    left.release()
    assert len(iommufd.context.objects) == 3
    again.release()
    assert [obj.kind for obj in iommufd.context.objects] == ["IOAS"]
    assert rig.errno(group, vfio.GROUP_UNSET_CONTAINER, 0) == 0
    assert rig.errno(group, vfio.GROUP_UNSET_CONTAINER, 0) == EINVAL
    group.release()
    rig.groups[1].open(rig.services).release()


def test_a_group_and_its_devices_own_nodes_exclude_one_another():
    rig = Rig()
    _, number = rig.iommufd()
    group = rig.groups[0].open(rig.services)
    file = rig.cdev("alone")
    assert rig.errno(file, vfio.DEVICE_BIND_IOMMUFD, vfio.DeviceBindIommufd(16, 0, number)) == EBUSY
    group.release()
    rig.bind(file, number)
    with pytest.raises(UapiError) as error:
        rig.groups[0].open(rig.services)
    assert error.value.errno == EBUSY


def test_a_group_takes_iommufds_as_containers_only():
    rig = Rig()
    _, event = rig.eventfd()
    group = rig.groups[0].open(rig.services)

    def refused(number):
        return rig.errno(group, vfio.GROUP_SET_CONTAINER, number.to_bytes(4, "little", signed=True))

    assert [refused(-1), refused(99), refused(event)] == [EBADF, EBADF, EBADFD]
    assert rig.errno(group, vfio.GROUP_SET_CONTAINER, 8) == EFAULT
    assert rig.errno(group, vfio.GROUP_GET_STATUS, vfio.GroupStatus(7)) == EINVAL
    assert rig.errno(group, vfio.GROUP_GET_DEVICE_FD, 8) == EFAULT
    assert rig.errno(group, vfio.GROUP_GET_DEVICE_FD, b"x" * 4097) == EINVAL
    assert rig.errno(group, vfio.DEVICE_GET_INFO, bytes(16)) == ENOTTY


def test_a_device_that_a_group_gives_takes_no_options_behind_its_name():
    rig = Rig()
    _, number = rig.iommufd()
    group = rig.groups[0].open(rig.services)
    rig.errno(group, vfio.GROUP_SET_CONTAINER, number.to_bytes(4, "little"))
    for name in (b"0000:00:04.0 vf_token=9a6b23fc-ba1b-4a2b-8d4e-2f3f0c6d1e00", b"0000:00:04.0  x"):
        assert rig.errno(group, vfio.GROUP_GET_DEVICE_FD, name + b"\0") == EINVAL
    for name in (b"0000:00:04.0x", b"0000:00:04.", b""):
        assert rig.errno(group, vfio.GROUP_GET_DEVICE_FD, name + b"\0") == ENODEV
    assert group_device(rig, group, "0000:00:04.0  ").device is rig.devices["alone"]


def test_a_descriptor_that_cannot_be_given_leaves_the_device_closed():
    rig = Rig()
    iommufd, number = rig.iommufd()
    group = rig.groups[0].open(rig.services)
    rig.errno(group, vfio.GROUP_SET_CONTAINER, number.to_bytes(4, "little"))
    rig.caller.table_full = True
    assert rig.errno(group, vfio.GROUP_GET_DEVICE_FD, b"0000:00:04.0\0") != 0
    assert rig.devices["alone"].opens == 0
    assert [obj.kind for obj in iommufd.context.objects] == ["IOAS"]
