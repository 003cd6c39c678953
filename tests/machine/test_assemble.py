"""A machine put together."""

import errno
import os
import stat
import struct

import pytest

from hardware.nvme_driver import FORMAT, Driver
from softiommu.abi import iommufd as abi, iommufd_test as test
from softiommu.errors import ConfigError, UapiError
from softiommu.hardware.bus import Port
from softiommu.hardware.pci import Mapping
from softiommu.iommufd.dispatch import execute
from softiommu.machine.assemble import Machine, machine
from softiommu.machine.description import Description, parse
from softiommu.machine.devices import nvme
from softiommu.machine.nodes import Node
from softiommu.machine.pci import PciDevice
from softiommu.memory.local import LocalCaller
from softiommu.memory.physical import PhysicalMemory


def opened(of):
    caller = LocalCaller()
    return caller, of.entries["/dev/iommu"].open(caller, os.O_RDWR)


@pytest.mark.parametrize("name", ["nodev", "mock"])
def test_every_machine_has_the_nodes_of_iommufd(name):
    entries = machine(name).entries
    nodes = {path: (entry.major, entry.minor) for path, entry in entries.items() if isinstance(entry, Node)}
    assert nodes == {"/dev/iommu": (10, 127), "/dev/vfio/vfio": (10, 196)}
    assert all(stat.S_ISCHR(entries[path].mode) for path in nodes)


@pytest.mark.parametrize("no_mmap", [False, True])
def test_a_description_can_forbid_to_map_a_device(no_mmap):
    text = 'name = "lab"\n[[iommu]]\nname = "a"\nmodel = "vtd"\n'
    text += f'[[device]]\nname = "n"\naddress = "00:04.0"\nmodel = "nvme"\nno_mmap = {str(no_mmap).lower()}\n'
    device = Machine(parse(text, "lab.toml")).hardware.devices[0]
    assert (device.function.bars[0].mapping is Mapping.NONE) == no_mmap


def test_a_namespace_in_a_file_must_be_there(tmp_path):
    text = 'name = "lab"\n[[iommu]]\nname = "a"\nmodel = "vtd"\n'
    text += f'[[device]]\nname = "n"\naddress = "00:04.0"\nmodel = "nvme"\nfile = "{tmp_path}/disk"\n'
    lab = parse(text, "lab.toml")
    with pytest.raises(ConfigError, match="disk cannot be opened: No such file or directory"):
        Machine(lab)
    (tmp_path / "disk").write_bytes(bytes(4096))
    with pytest.raises(ConfigError, match="disk has 4096 bytes: expected 0x100000 or more"):
        Machine(lab)
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    assert Machine(lab).facts()["devices"][0]["id"] == "1b36:0010"


@pytest.mark.parametrize("other", ["nvme", "virtio_blk"])
def test_a_file_is_one_drives_alone_while_its_machine_is_there(tmp_path, other):
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    (tmp_path / "link").symlink_to("disk")
    text = 'name = "lab"\n[[iommu]]\nname = "a"\nmodel = "vtd"\n'
    drive = '[[device]]\nname = "{0}"\naddress = "00:0{1}.0"\nmodel = "{2}"\nfile = "{3}"\n'
    one = parse(text + drive.format("n", 4, "nvme", tmp_path / "disk"), "lab.toml")
    two = parse(text + drive.format("n", 4, "nvme", tmp_path / "disk"), "other.toml")
    both = parse(
        text + drive.format("n", 4, "nvme", tmp_path / "disk") + drive.format("m", 5, other, tmp_path / "link"),
        "x.toml",
    )
    used = "the file .*/{} is in use by another drive or another softiommu\nhint: give each drive"
    with pytest.raises(ConfigError, match="^x.toml:14: " + used.format("link")):
        Machine(both)
    first = Machine(one)
    with pytest.raises(ConfigError, match="^other.toml:9: " + used.format("disk")):
        Machine(two)
    assert Machine(both, claim=False).facts()["devices"][0]["name"] == "n"
    del first
    assert Machine(two).hardware.devices


@pytest.mark.parametrize("block", [512, 4096])
def test_a_file_keeps_the_blocks_that_its_description_says(tmp_path, block):
    (tmp_path / "disk").write_bytes(b"x" * (1 << 20))
    text = 'name = "lab"\n[[iommu]]\nname = "a"\nmodel = "vtd"\n'
    text += f'[[device]]\nname = "n"\naddress = "00:04.0"\nmodel = "nvme"\nblock = {block}\n'
    (described,) = parse(text + f'file = "{tmp_path}/disk"\n', "lab.toml").devices
    memory = PhysicalMemory(16 << 20)
    driver = Driver(nvme.build(described.options, Port(memory, 0x20), True, True), memory)
    driver.enable()

    def told():
        page = driver.identify(0, 1)[1]
        return page[25], page[26], [lbaf >> 16 & 0xFF for lbaf in struct.unpack_from("<2I", page, 128)]

    assert told() == (0, 0, [block.bit_length() - 1, 0])
    for format in (1, 2):
        assert driver.run(0, FORMAT, 1, dword10=format).status == 0x10A
        assert driver.run(0, FORMAT, 0xFFFFFFFF, dword10=format).status == 0x10A
    assert told() == (0, 0, [block.bit_length() - 1, 0])
    assert (tmp_path / "disk").read_bytes() == b"x" * (1 << 20)
    assert driver.run(0, FORMAT, 1, dword10=1 << 9).status == 0
    assert (tmp_path / "disk").read_bytes() == bytes(1 << 20)


@pytest.mark.parametrize(("unit", "works"), [("vtd", False), ("full", True)])
def test_ats_and_pasids_work_where_device_and_iommu_have_them(unit, works):
    text = f'name = "lab"\n[[iommu]]\nname = "a"\nmodel = "vtd"\nunit = "{unit}"\n'
    text += '[[device]]\nname = "t"\naddress = "00:04.0"\nmodel = "pcitest"\npasid_bits = 16\n'
    (wired,) = Machine(parse(text, "lab.toml")).hardware.devices
    assert wired.function.features.pasid_bits == 16
    assert wired.device.features.ats == works
    assert wired.device.features.max_pasids == (1 << 16 if works else 0)


def test_devices_behind_an_iommu_have_nodes_and_sysfs():
    built = machine("vtd")
    nodes = {path: (entry.major, entry.minor) for path, entry in built.entries.items() if isinstance(entry, Node)}
    for number, device in enumerate(built.facts()["devices"]):
        assert device["nodes"] == [f"/dev/vfio/devices/vfio{number}", f"/dev/vfio/{device['group']}"]
        major, minor = nodes[device["nodes"][0]]
        folder = built.hardware.devices[number].pci.folder
        assert built.entries[f"{folder}/vfio-dev/vfio{number}/dev"].content() == f"{major}:{minor}\n".encode()
        assert built.entries[f"{folder}/iommu_group"].target.endswith(f"/kernel/iommu_groups/{device['group']}")
        config = built.entries[f"{folder}/config"].content()
        assert len(config) >= 256
        vendor, product = (int(part, 16).to_bytes(2, "little") for part in device["id"].split(":"))
        assert config[:4] == vendor + product
    groups = [device["group"] for device in built.facts()["devices"] if device["address"].startswith("0000:02")]
    assert len(groups) == 2
    assert len(set(groups)) == 1
    regions = built.entries["/sys/kernel/iommu_groups/0/reserved_regions"].content()
    assert b"0x00000000fee00000 0x00000000feefffff msi\n" in regions


@pytest.mark.parametrize("name", ["vtd", "vtd-39", "vtd-sm", "vtd-flts", "vtd-sc", "vtd-noir", "viommu"])
def test_the_devices_of_qemus_machines_are_qemus(name):
    wired = {device.pci.name: device.function for device in machine(name).hardware.devices}
    for edu in ("edu0", "edu1", "edu2", "edu3"):
        assert (wired[edu].config_size, wired[edu].can_reset) == (256, False)
    assert (wired["nvme0"].config_size, wired["nvme0"].can_reset) == (4096, True)


@pytest.mark.parametrize("node", ["/dev/iommu", "/dev/vfio/vfio"])
def test_each_open_is_an_iommufd_of_its_own(node):
    plain = machine("nodev")
    caller = LocalCaller()
    files = [plain.entries[node].open(caller, os.O_RDWR) for _ in range(2)]
    ids = []
    for file in files:
        cmd = abi.IoasAlloc(12, 0, 0)
        execute(file.context, caller, abi.IOAS_ALLOC, cmd)
        ids.append(cmd.out_ioas_id)
        file.release()
    assert ids == [1, 1]


@pytest.mark.parametrize(("node", "mode"), [("/dev/iommu", 0), ("/dev/vfio/vfio", 1)])
def test_a_container_limits_the_process_as_vfio_does(node, mode):
    caller = LocalCaller()
    file = machine("nodev").entries[node].open(caller, os.O_RDWR)
    got = abi.Option(option_id=0, op=1)
    execute(file.context, caller, abi.OPTION, got)
    assert got.val64 == mode
    file.release()


@pytest.mark.parametrize(
    ("asked", "described", "played"),
    [(None, None, "7.2"), (None, "6.12", "6.12"), ("7.3", "6.12", "7.3"), ("6.12", None, "6.12")],
)
def test_the_asked_kernel_comes_before_the_described_one(asked, described, played):
    built = Machine(Description("lab", "lab.toml", kernel=described), asked)
    assert built.kernel.name == played
    assert built.facts()["kernel"] == played


def test_an_unknown_kernel_names_those_there_are():
    with pytest.raises(ConfigError, match=r"unknown kernel '7\.1': there are 6\.12, 7\.2, 7\.3; did you mean 7"):
        machine("nodev", "7.1")


@pytest.mark.parametrize(("kernel", "last"), [("6.12", 0x8E), ("7.2", 0x94), ("7.3", 0x95)])
def test_the_test_command_is_on_the_mock_only(kernel, last):
    assert machine("nodev", kernel).services.last_number == last
    assert machine("mock", kernel).services.last_number == 0xA0
    caller, file = opened(machine("nodev", kernel))
    with pytest.raises(UapiError) as caught:
        execute(file.context, caller, test.TEST_CMD, test.TestCmd(72, 0, 0, 0, bytes(48)))
    assert caught.value.errno == errno.ENOTTY
    file.release()


def test_no_iommu_is_how_the_kernel_was_built():
    assert Machine(Description("lab", "lab.toml", no_iommu=True)).services.no_iommu
    assert not machine("nodev").services.no_iommu


def test_devices_are_in_sysfs_and_in_the_facts():
    device = PciDevice("edu0", "0000:00:1e.0", 0x1234, 0x11E8)
    built = Machine(Description("lab", "lab.toml", devices=(device,)))
    (fact,) = built.facts()["devices"]
    assert (fact["name"], fact["address"], fact["id"]) == ("edu0", "0000:00:1e.0", "1234:11e8")
    assert fact["sysfs"] in built.entries
    assert f"{device.folder}/vendor" in built.entries


def test_machines_share_nothing():
    first, second = machine("mock"), machine("mock")
    assert first.physical is not second.physical
    assert first.services.commands is not second.services.commands


def test_long_work_of_devices_is_shared_out_where_a_front_door_asks_for_it():
    lab = machine("vtd")
    function = lab.hardware.devices[0].function
    assert not function.background(lambda: pytest.fail("nobody takes it over"))
    lab.share_time()
    left = [True, False]
    assert function.background(lambda: left.pop(0))
    (look,) = lab.pollers.values()
    assert look()
    assert lab.pollers
    assert look()
    assert not lab.pollers


def test_work_that_fails_is_not_tried_again():
    lab = machine("vtd")
    lab.share_time()
    assert lab.hardware.devices[0].function.background(lambda: bool(1 // 0))
    (look,) = lab.pollers.values()
    with pytest.raises(ZeroDivisionError):
        look()
    assert not lab.pollers
