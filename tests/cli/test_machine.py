"""`softiommu machine`."""

import json

from softiommu.machine.description import builtin_names, load

LAB = """
name = "lab"
summary = "a teaching device"
kernel = "6.12"
[[device]]
name = "edu0"
address = "00:1e.0"
vendor = 0x1234
device = 0x11e8
"""


def test_the_list_has_a_line_for_each_machine(softiommu):
    ended = softiommu("machine", "list")
    assert (ended.code, ended.err) == (0, "")
    assert [line.split(maxsplit=1) for line in ended.out.splitlines()] == [
        [name, load(name).summary] for name in builtin_names()
    ]


def test_the_list_for_programs_says_the_same(softiommu):
    ended = softiommu("machine", "list", "--json")
    assert json.loads(ended.out) == [{"name": name, "summary": load(name).summary} for name in builtin_names()]


def test_show_tells_the_kernel_the_nodes_and_the_iommus(softiommu):
    ended = softiommu("machine", "show", "mock", "--kernel", "7.3")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        "mock: the kernel's test command (IOMMU_TEST_CMD) and its mock IOMMU",
        "kernel 7.3, from builtin/mock.toml",
        "node   /dev/iommu",
        "node   /dev/vfio/vfio",
        "iommu  mock0 (mock)",
        "a program makes devices of its own with the kernel's test command, IOMMU_TEST_CMD",
    ]


def test_show_says_that_there_is_no_device(softiommu):
    assert softiommu("machine", "show", "nodev").out.splitlines()[-1] == "no devices"


def test_show_tells_the_devices_of_a_file(softiommu, tmp_path):
    file = tmp_path / "lab.toml"
    file.write_text(LAB)
    shown = softiommu("machine", "show", str(file)).out.splitlines()
    assert shown[-1] == "device edu0 (1234:11e8) in /sys/bus/pci/devices/0000:00:1e.0"
    facts = json.loads(softiommu("machine", "show", str(file), "--json").out)
    assert (facts["name"], facts["source"], facts["kernel"]) == ("lab", str(file), "6.12")
    assert (facts["nodes"], facts["iommus"], facts["test_command"]) == (["/dev/iommu", "/dev/vfio/vfio"], [], False)
    (device,) = facts["devices"]
    assert (device["name"], device["address"]) == ("edu0", "0000:00:1e.0")


def test_a_wrong_file_is_told_by_line(softiommu, tmp_path):
    file = tmp_path / "lab.toml"
    file.write_text(LAB.replace("vendor", "vendr"))
    ended = softiommu("machine", "show", str(file))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"softiommu: {file}:5: expected a key 'vendor' in [[device]]\n"
