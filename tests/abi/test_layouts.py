"""Every size, offset, number, flag and enumeration against the generated layouts of the kernel's headers."""

import enum

import pytest

from abi import layouts
from softiommu.abi import iommufd, iommufd_enums, iommufd_structs, iommufd_test, vfio
from softiommu.abi.ioctl import number, type_of

HEADERS = ("iommufd", "iommufd_test", "vfio")
MEMBERS = layouts.union_members()
PAIRS = [(theirs, ours) for name in HEADERS for theirs, ours in layouts.structs(name)]


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_struct_has_the_kernels_size_and_offsets(theirs, ours):
    assert theirs["size"] == ours.SIZE
    if ours is iommufd_test.TestCmd:
        return  # its union is a payload: the members have tests of their own
    wanted = {name: (offset, size) for name, offset, size in layouts.expected_fields(theirs)}
    known = {name: where for name, where in ours.FIELDS.items() if name in wanted}
    assert known == {name: where for name, where in wanted.items() if name in known}
    # Names of our own are padding, or the two halves of a union's word.
    assert [name for name in ours.FIELDS if name not in wanted and not name.startswith("pad")] == []
    missing = [name for name in wanted if name not in known]
    assert missing == (["devid"] if ours.__name__ == "PciDependentDevice" else [])


def test_every_struct_of_ours_is_one_of_the_kernels():
    members = {layouts.camel(name) for name in MEMBERS}
    theirs = {ours for _, ours in PAIRS} | {getattr(iommufd_test, name) for name in members}
    assert set(layouts.all_structs()) == theirs


@pytest.mark.parametrize("member", sorted(MEMBERS))
def test_a_member_of_the_test_commands_union_lies_as_the_kernels(member):
    ours = getattr(iommufd_test, layouts.camel(member))
    fields = {name: (offset, size) for name, offset, size in MEMBERS[member]}
    assert {name: where for name, where in ours.FIELDS.items() if not name.startswith("pad")} == fields


@pytest.mark.parametrize("ioctl", layouts.header("iommufd")["ioctls"], ids=lambda ioctl: ioctl["name"])
def test_an_iommufd_command_has_its_number_sizes_and_kernels(ioctl):
    row = next(row for row in iommufd.IOCTLS if "IOMMU_" + row.name == ioctl["name"])
    assert row.cmd == ioctl["value"]
    assert (type_of(row.cmd), number(row.cmd)) == (0x3B, ioctl["nr"])
    assert row.struct.__name__ == layouts.camel(ioctl["struct"])
    assert (ioctl["size"], ioctl["min_size"]) == (row.struct.SIZE, row.struct.MIN_SIZE)
    assert ".".join(map(str, row.since)) == ioctl["present_in"][0].split("-")[0].rsplit(".13")[0]


def test_there_are_22_commands_and_the_test_command():
    assert len(iommufd.IOCTLS) == 22
    (test,) = layouts.header("iommufd_test")["ioctls"]
    assert test["value"] == iommufd_test.TEST_CMD
    assert (test["size"], test["min_size"]) == (iommufd_test.TestCmd.SIZE, iommufd_test.TestCmd.MIN_SIZE)


@pytest.mark.parametrize("ioctl", layouts.header("vfio")["ioctls"], ids=lambda ioctl: ioctl["name"])
def test_a_vfio_command_has_its_number(ioctl):
    if layouts.LEFT_OUT.search(ioctl["name"]):
        assert not hasattr(vfio, ioctl["name"].removeprefix("VFIO_"))
        return
    assert getattr(vfio, ioctl["name"].removeprefix("VFIO_")) == ioctl["value"]


def members_of(module):
    """Every member of a module's enumerations by its C name, from the prefix in the class's docstring."""
    found = {}
    for kind in vars(module).values():
        if isinstance(kind, type) and issubclass(kind, enum.IntEnum | enum.IntFlag) and kind.__doc__:
            prefix = kind.__doc__.rpartition(": ")[2].split("*")[0].strip()
            for name, member in kind.__members__.items():
                found[prefix + name] = int(member)
    return found


def enumerators(name):
    """Every enumerator of a header."""
    return {
        member["name"]: member["value"]
        for group in layouts.header(name)["enums"]
        for member in (group.get("members") or group.get("values"))
    }


def test_the_enumerations_of_iommufd_are_the_kernels():
    theirs = {name: value for name, value in enumerators("iommufd").items() if not name.startswith("IOMMUFD_CMD_")}
    assert members_of(iommufd_enums) == theirs


def test_the_enumerations_of_the_test_command_are_the_kernels():
    ours = members_of(iommufd_test)
    assert {name: ours.get(name) for name in enumerators("iommufd_test")} == enumerators("iommufd_test")
    for constant in layouts.header("iommufd_test")["constants"]:
        assert getattr(iommufd_test, constant["name"].removeprefix("IOMMU_")) == constant["value"]


def test_the_flags_of_vfio_are_the_kernels():
    theirs = {c["name"]: c["value"] for c in layouts.header("vfio")["constants"] if isinstance(c["value"], int)}
    ours = members_of(vfio)
    same = {name: value for name, value in ours.items() if name in theirs}
    assert len(same) >= 56
    assert same == {name: theirs[name] for name in same}


def test_a_shorter_struct_is_what_the_first_kernel_had():
    assert iommufd_structs.HwptAlloc.MIN_SIZE == 24
    assert iommufd_structs.HwInfo.MIN_SIZE == 32
    assert iommufd_structs.ViommuAlloc.MIN_SIZE == 24
    assert iommufd_structs.VeventqAlloc.MIN_SIZE == 28
