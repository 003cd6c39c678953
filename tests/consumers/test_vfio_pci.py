"""A bound PCI device: what it tells of itself, its regions, its configuration space, its resets."""

from errno import EBADF, EFAULT, EINVAL, EIO, ENODEV, ENOSPC, ENOTTY

import pytest
from hypothesis import given, settings, strategies as st

from consumers.rig import CONFIG, Rig, signals
from softiommu.abi import vfio
from softiommu.abi.vfio import Feature, FeatureFlags, PciRegion, RegionFlags
from softiommu.consumers import pci_host
from softiommu.consumers.vfio.regions import offset_of
from softiommu.errors import UapiError
from softiommu.hardware.bus import Port
from softiommu.hardware.pci import Features, Function, Identity
from softiommu.hardware.pci_config import ExtendedId
from softiommu.memory.physical import PhysicalMemory

MEMORY, MASTER = 2, 4


def refused(access):
    """The errno of an access."""
    with pytest.raises(UapiError) as error:
        access()
    return error.value.errno


def test_a_device_tells_what_it_has():
    rig = Rig()
    file, _, _ = rig.bound()
    flags = vfio.DeviceFlags.PCI | vfio.DeviceFlags.RESET
    assert rig.call(file, vfio.DEVICE_GET_INFO, vfio.DeviceInfo()) == vfio.DeviceInfo(24, flags, 9, 5)
    short = rig.raw(file, vfio.DEVICE_GET_INFO, vfio.DeviceInfo(16, 0, 0, 0, 7, 7).to_bytes())[1]
    assert vfio.DeviceInfo.from_bytes(short) == vfio.DeviceInfo(16, flags, 9, 5, 7, 7)
    assert rig.errno(file, vfio.DEVICE_GET_INFO, vfio.DeviceInfo(15)) == EINVAL
    assert rig.errno(file, vfio.DEVICE_GET_INFO, 8) == EFAULT
    conventional, _, _ = Rig(express=False).bound()
    info = rig.call(conventional, vfio.DEVICE_GET_INFO, vfio.DeviceInfo())
    assert info.flags == vfio.DeviceFlags.PCI
    assert rig.errno(conventional, vfio.DEVICE_RESET, 0) == EINVAL


def test_regions_have_sizes_and_places():
    rig = Rig()
    file, _, _ = rig.bound()
    both = int(RegionFlags.READ | RegionFlags.WRITE)
    expected = {PciRegion.BAR0: (both, 1 << 20), PciRegion.CONFIG: (both, 4096)}
    for index in range(PciRegion.VGA):
        info = rig.call(file, vfio.DEVICE_GET_REGION_INFO, vfio.RegionInfo(32, 9, index, 0, 9, 9))
        assert (info.flags, info.size) == expected.get(index, (0, 0))
        assert info.offset == (16 + index) << 40
    for index in (PciRegion.VGA, 9, 0xFFFFFFFF):
        assert rig.errno(file, vfio.DEVICE_GET_REGION_INFO, vfio.RegionInfo(32, 0, index)) == EINVAL
    assert rig.errno(file, vfio.DEVICE_GET_REGION_INFO, vfio.RegionInfo(31)) == EINVAL


def test_a_bar_is_read_and_written_in_the_widest_accesses_that_fit():
    rig = Rig()
    file, _, _ = rig.bound()
    assert rig.pread(file, 0, 4) == (0x010000ED).to_bytes(4, "little")
    assert rig.pwrite(file, 4, (0x12345678).to_bytes(4, "little")) == 4
    assert rig.pread(file, 4, 4) == (~0x12345678 & 0xFFFFFFFF).to_bytes(4, "little")
    rig.pwrite(file, 0x80, (0x1122334455667788).to_bytes(8, "little"))
    assert rig.edus["alone"].registers.DMA_SOURCE == 0x1122334455667788
    assert len(rig.pread(file, (1 << 20) - 4, 100)) == 4
    assert refused(lambda: rig.pread(file, 1 << 20, 4)) == EINVAL
    for region in (1, 5, 6, 8, 9, 100):
        assert refused(lambda region=region: rig.pread(file, region << 40, 4)) == EINVAL
        assert refused(lambda region=region: rig.pwrite(file, region << 40, b"1234")) == EINVAL
    with pytest.raises(UapiError, match="no region lies at file offset 0x630000000000"):
        rig.pread(file, 99 << 40, 4)
    assert rig.pread(file, 1 << 45, 0) == b""
    assert rig.pwrite(file, 1 << 45, b"") == 0


def test_a_file_position_moves_with_reads_and_writes_without_offset():
    rig = Rig()
    file, _, _ = rig.bound()
    assert file.read(rig.caller, rig.at, 4) == 4
    rig.caller.write(rig.at, (5).to_bytes(4, "little"))
    assert file.write(rig.caller, rig.at, 4) == 4
    assert rig.pread(file, 4, 4) == (~5 & 0xFFFFFFFF).to_bytes(4, "little")


def test_memory_that_is_off_is_an_error():
    rig = Rig()
    file, _, _ = rig.bound()
    command = rig.pread(file, CONFIG + 4, 2)
    assert int.from_bytes(command, "little") == MEMORY
    rig.pwrite(file, CONFIG + 4, b"\0\0")
    assert refused(lambda: rig.pread(file, 0, 4)) == EIO
    assert refused(lambda: rig.pwrite(file, 0, b"1234")) == EIO
    rig.pwrite(file, CONFIG + 4, command)
    assert rig.pread(file, 0, 4)
    power = capability(rig, file, 1)
    rig.pwrite(file, CONFIG + power + 4, b"\3\0")
    assert refused(lambda: rig.pread(file, 0, 4)) == EIO
    rig.pwrite(file, CONFIG + power + 4, b"\0\0")
    entry = vfio.DeviceFeature(8, int(FeatureFlags.SET) | Feature.LOW_POWER_ENTRY)
    assert rig.errno(file, vfio.DEVICE_FEATURE, entry) == 0
    assert rig.errno(file, vfio.DEVICE_FEATURE, entry) == EINVAL
    assert refused(lambda: rig.pread(file, 0, 4)) == EIO
    leave = vfio.DeviceFeature(8, int(FeatureFlags.SET) | Feature.LOW_POWER_EXIT)
    assert rig.errno(file, vfio.DEVICE_FEATURE, leave) == 0
    assert rig.pread(file, 0, 4)


def capability(rig, file, id):
    """Where a capability lies, by the chain that the program sees."""
    at = rig.pread(file, CONFIG + 0x34, 1)[0]
    while at and rig.pread(file, CONFIG + at, 1)[0] != id:
        at = rig.pread(file, CONFIG + at + 1, 1)[0]
    return at


def test_bars_are_sized_and_kept_but_the_device_never_sees_them():
    rig = Rig()
    file, _, _ = rig.bound()
    bar = CONFIG + 0x10
    rig.pwrite(file, bar, b"\xff" * 24)
    assert rig.pread(file, bar, 24) == (0xFFF00000).to_bytes(4, "little") + bytes(20)
    rig.pwrite(file, bar, (0xFE123456).to_bytes(4, "little"))
    assert rig.pread(file, bar, 4) == (0xFE100000).to_bytes(4, "little")
    assert rig.edus["alone"].function.read_config(0x10, 4) == 0
    rig.pwrite(file, CONFIG + 0x30, b"\xff" * 4)
    assert rig.pread(file, CONFIG + 0x30, 4) == bytes(4)


def test_identity_and_status_cannot_be_written_and_the_interrupt_line_is_the_programs():
    rig = Rig()
    file, _, _ = rig.bound()
    before = rig.pread(file, CONFIG, 64)
    rig.pwrite(file, CONFIG, b"\xff" * 4)
    rig.pwrite(file, CONFIG + 6, b"\xff\xff")
    rig.pwrite(file, CONFIG + 8, b"\xff" * 4)
    rig.pwrite(file, CONFIG + 0x2C, b"\xff" * 4)
    rig.pwrite(file, CONFIG + 0x34, b"\xff")
    rig.pwrite(file, CONFIG + 0x3D, b"\xff")
    assert rig.pread(file, CONFIG, 64) == before
    rig.pwrite(file, CONFIG + 0x3C, b"\x0b")
    assert rig.pread(file, CONFIG + 0x3C, 1) == b"\x0b"
    assert rig.edus["alone"].function.read_config(0x3C, 1) == 0


def test_a_program_switches_bus_mastering_and_cannot_enable_msi_by_itself():
    rig = Rig()
    file, _, _ = rig.bound()
    port = rig.edus["alone"].function.port
    assert not port.bus_master
    rig.pwrite(file, CONFIG + 4, b"\6\0")
    assert port.bus_master
    msi = capability(rig, file, 5)
    rig.pwrite(file, CONFIG + msi + 2, b"\x71")
    assert rig.pread(file, CONFIG + msi + 2, 1)[0] & 0x71 == 0
    rig.pwrite(file, CONFIG + msi + 4, (0xFEE01000).to_bytes(8, "little"))
    assert rig.pread(file, CONFIG + msi + 4, 8) == (0xFEE01000).to_bytes(8, "little")
    assert rig.edus["alone"].function.msi.registers.ADDRESS == 0
    file.release()
    assert not port.bus_master


def test_configuration_space_ends_with_a_fault():
    rig = Rig()
    file, _, _ = rig.bound()
    assert len(rig.pread(file, CONFIG, 4096)) == 4096
    for access in (lambda: rig.pread(file, CONFIG + 4095, 2), lambda: rig.pwrite(file, CONFIG + 4096, b"x")):
        assert refused(access) == EFAULT
    assert refused(lambda: file.write(rig.caller, rig.at, 1 << 30, CONFIG)) == EFAULT


def test_a_reset_by_ioctl_or_through_device_control_forgets_registers_but_keeps_command():
    rig = Rig()
    file, _, _ = rig.bound()
    express = capability(rig, file, 0x10)
    for reset in (
        lambda: rig.errno(file, vfio.DEVICE_RESET, 0),
        lambda: rig.pwrite(file, CONFIG + express + 8, b"\x00\x80"),
    ):
        rig.pwrite(file, CONFIG + 4, b"\6\0")
        rig.pwrite(file, 4, b"\1\0\0\0")
        reset()
        assert rig.pread(file, 4, 4) == bytes(4)
        assert rig.pread(file, CONFIG + 4, 2) == b"\6\0"
        assert rig.pread(file, CONFIG + express + 9, 1)[0] & 0x80 == 0
        assert rig.edus["alone"].function.port.bus_master


def test_closing_a_device_resets_it():
    rig = Rig()
    file, _, _ = rig.bound()
    rig.pwrite(file, 4, b"\1\0\0\0")
    file.release()
    assert rig.edus["alone"].registers.LIVENESS == 0


# Resets of a bus


def test_who_is_reset_along_is_told_by_device_id_and_ownership():
    rig = Rig(express=False)
    left, _, id = rig.bound("left")
    head = vfio.PciHotResetInfo
    assert rig.errno(left, vfio.DEVICE_GET_PCI_HOT_RESET_INFO, head(12)) == ENOSPC
    flags = vfio.HotResetFlags.DEV_ID | vfio.HotResetFlags.DEV_ID_OWNED
    _, after = rig.raw(left, vfio.DEVICE_GET_PCI_HOT_RESET_INFO, head(28).to_bytes() + bytes(16))
    assert head.from_bytes(after) == head(28, flags, 2)
    devices = [vfio.PciDependentDevice.from_bytes(after, at) for at in (12, 20)]
    assert devices == [vfio.PciDependentDevice(id, 0, 2, 8), vfio.PciDependentDevice(0, 0, 2, 16)]
    alone, _, _ = rig.bound("alone")
    assert rig.errno(alone, vfio.DEVICE_GET_PCI_HOT_RESET_INFO, head(28).to_bytes() + bytes(16)) == ENODEV


def test_a_bus_is_reset_by_whoever_owns_everything_on_it():
    rig = Rig(express=False)
    left, _, _ = rig.bound("left")
    for edu in rig.edus.values():
        edu.registers.LIVENESS = 1
    assert rig.errno(left, vfio.DEVICE_RESET, 0) == EINVAL
    assert rig.errno(left, vfio.DEVICE_PCI_HOT_RESET, vfio.PciHotReset(12, 0, 1)) == EINVAL
    assert rig.errno(left, vfio.DEVICE_PCI_HOT_RESET, vfio.PciHotReset(12, 1, 0)) == EINVAL
    assert rig.errno(left, vfio.DEVICE_PCI_HOT_RESET, vfio.PciHotReset(12)) == 0
    assert [rig.edus[name].registers.LIVENESS for name in ("alone", "left", "right")] == [1, 0, 0]
    rig.edus["right"].registers.LIVENESS = 1
    left.release()
    assert rig.edus["right"].registers.LIVENESS == 0


def test_groups_prove_ownership_of_a_bus():
    rig = Rig(express=False)
    _, number = rig.iommufd()
    group = rig.groups[1].open(rig.services)
    rig.errno(group, vfio.GROUP_SET_CONTAINER, number.to_bytes(4, "little"))
    left = rig.caller.file(rig.raw(group, vfio.GROUP_GET_DEVICE_FD, b"0000:02:01.0\0")[0])
    group_fd, other_fd = rig.caller.install(group), rig.caller.install(rig.groups[0].open(rig.services))
    assert rig.errno(left, vfio.DEVICE_PCI_HOT_RESET, vfio.PciHotReset(12)) == EINVAL

    def reset(*fds):
        head = vfio.PciHotReset(12 + 4 * len(fds), 0, len(fds)).to_bytes()
        return rig.errno(left, vfio.DEVICE_PCI_HOT_RESET, head + b"".join(fd.to_bytes(4, "little") for fd in fds))

    assert [reset(group_fd), reset(other_fd), reset(number), reset(group_fd, other_fd)] == [0, EINVAL, EINVAL, 0]
    assert reset(group_fd, other_fd, other_fd) == EINVAL


# Features


def test_features_that_the_device_lacks_are_enotty():
    rig = Rig()
    file, _, _ = rig.bound()
    for number in (0, *range(6, 16), 0xFFFF):
        for flag in (FeatureFlags.GET, FeatureFlags.SET, FeatureFlags.PROBE, 0):
            assert rig.errno(file, vfio.DEVICE_FEATURE, vfio.DeviceFeature(8, int(flag) | number)) == ENOTTY
    assert rig.errno(file, vfio.DEVICE_FEATURE, vfio.DeviceFeature(7, 0x10001)) == EINVAL
    assert rig.errno(file, vfio.DEVICE_FEATURE, vfio.DeviceFeature(8, 0x80001)) == EINVAL
    assert rig.errno(file, vfio.DEVICE_FEATURE, vfio.DeviceFeature(8, 0x30001)) == EINVAL
    assert rig.errno(file, vfio.DEVICE_FEATURE, vfio.DeviceFeature(8, 0x60003)) == 0
    assert rig.errno(file, vfio.DEVICE_FEATURE, vfio.DeviceFeature(8, 0x10003)) == EINVAL
    assert rig.errno(file, vfio.DEVICE_FEATURE, vfio.DeviceFeature(8, 3)) == EINVAL


def test_a_device_that_sleeps_with_an_eventfd_is_woken_by_the_next_call():
    rig = Rig()
    file, iommufd, _ = rig.bound()
    woken, number = rig.eventfd()
    flags = int(FeatureFlags.SET) | Feature.LOW_POWER_ENTRY_WITH_WAKEUP

    def enter(descriptor, argsz=16):
        return rig.errno(file, vfio.DEVICE_FEATURE, vfio.DeviceFeature(argsz, flags).to_bytes() + entry(descriptor))

    def entry(descriptor):
        return vfio.DeviceLowPowerEntryWithWakeup(descriptor).to_bytes()

    assert [enter(-1), enter(99), enter(number, 15)] == [EINVAL, EBADF, EINVAL]
    probe = int(FeatureFlags.PROBE | FeatureFlags.SET) | Feature.LOW_POWER_ENTRY_WITH_WAKEUP
    assert rig.errno(file, vfio.DEVICE_FEATURE, vfio.DeviceFeature(8, probe)) == 0
    for wake in (
        lambda: rig.call(file, vfio.DEVICE_GET_INFO, vfio.DeviceInfo(20)),
        lambda: rig.attach(file, rig.ioas(iommufd)),
        lambda: rig.errno(file, vfio.DEVICE_FEATURE, vfio.DeviceFeature(8, int(FeatureFlags.SET) | 5)),
        lambda: rig.pread(file, 0, 4),
        lambda: rig.pwrite(file, 4, b"1234"),
        lambda: rig.pread(file, CONFIG, 2),
    ):
        assert enter(number) == 0
        assert refused(lambda: file.load(offset_of(0), 4)) == EIO, "a mapping wakes nothing"
        assert refused(lambda: rig.pread(file, 99 << 40, 4)) == EINVAL
        assert rig.pread(file, 0, 0) == b""
        assert signals(woken) == 0
        wake()
        assert signals(woken) == 1
        rig.pread(file, 0, 4)
    assert enter(number) == enter(number) == 0
    assert signals(woken) == 1
    file.release()
    assert signals(woken) == 0


# Anything at all


COMMANDS = sorted(value for name, value in vars(vfio).items() if isinstance(value, int) and 0x3B64 <= value <= 0x3B7F)
OFFSETS = st.one_of(
    st.integers(0, 4200).map(lambda at: CONFIG + at), st.integers(0, 9).map(lambda r: r << 40), st.integers(0, 2**63)
)
CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("ioctl"), st.sampled_from(COMMANDS), st.binary(max_size=40)),
        st.tuples(st.just("small"), st.sampled_from(COMMANDS), st.lists(st.integers(0, 40), max_size=8)),
        st.tuples(st.just("read"), OFFSETS, st.integers(0, 40)),
        st.tuples(st.just("write"), OFFSETS, st.binary(max_size=9)),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(calls=CALLS)
def test_whatever_a_program_does_is_answered_and_undone_at_close(calls):
    rig = Rig()
    file, iommufd, _ = rig.bound()
    for kind, number, data in calls:
        try:
            if kind == "read":
                rig.pread(file, number, data)
            elif kind == "write":
                rig.pwrite(file, number, data)
            else:
                raw = data if kind == "ioctl" else b"".join(n.to_bytes(4, "little") for n in data)
                rig.raw(file, number, raw)
        except UapiError:
            pass
    file.release()
    assert not len(iommufd.context.objects)
    assert not rig.services.owners
    assert rig.edus["alone"].function.on_interrupt is None


def test_what_the_host_set_up_outlasts_a_reset():
    memory = PhysicalMemory(1 << 20)
    features = Features(ats=True, pri=8, pasid_bits=16)
    function = Function(Port(memory, 0x30), Identity(1, 2, 3), {}, features)
    ats, pri, pasid = (function.find_capability(id) for id in (ExtendedId.ATS, ExtendedId.PRI, ExtendedId.PASID))
    for at, value in ((ats + 6, 0x8001), (pri + 12, 4), (pri + 4, 1), (pasid + 6, 1), (4, 6)):
        function.write_config(at, 2, value)
    before = [function.read_config(at, 2) for at in (ats + 6, pri + 12, pri + 4, pasid + 6, 4)]
    pci_host.reset(function)
    assert [function.read_config(at, 2) for at in (ats + 6, pri + 12, pri + 4, pasid + 6, 4)] == before
    assert before == [0x8001, 4, 1, 1, 6]
