"""Every size, offset, number, flag and enumeration against the generated layouts of the kernel's headers, both ways."""

import itertools

import pytest

from abi import layouts
from softiommu.abi import iommufd, iommufd_structs, iommufd_test, vfio, vfio_structs
from softiommu.abi.ioctl import Direction, direction, number, size_of, type_of
from softiommu.iommufd.kernels import KERNELS

MEMBERS = layouts.union_members()
STRUCTS = [(name, *pair) for name in layouts.HEADERS for pair in layouts.structs(name)]
#: Without the one that is a union: its payload and members have tests of their own.
PLAIN = [row for row in STRUCTS if row[2] is not iommufd_test.TestCmd]
IOCTLS = [(name, ioctl) for name in layouts.HEADERS for ioctl in layouts.header(name)["ioctls"]]


def label(value):
    return getattr(value, "__name__", None) or (value["name"] if isinstance(value, dict) else value)


@pytest.mark.parametrize(("name", "theirs", "ours"), PLAIN, ids=label)
def test_a_struct_has_the_kernels_size_and_fields(name, theirs, ours):
    assert theirs["size"] == ours.SIZE
    assert layouts.without_padding(ours) == {
        field.name: (field.offset, field.size) for field in layouts.expected_fields(name, theirs)
    }


@pytest.mark.parametrize(("name", "theirs", "ours"), PLAIN, ids=label)
def test_a_field_is_signed_where_the_kernels_is(name, theirs, ours):
    signed = {field["name"] for field in theirs["fields"] if field.get("signed")}
    assert {field for field, code in ours.CODES.items() if code in ("i", "q")} == signed


@pytest.mark.parametrize(("name", "theirs", "ours"), PLAIN, ids=label)
def test_the_second_name_of_a_word_is_as_wide_as_its_first(name, theirs, ours):
    where = dict(ours.FIELDS.values())
    for field in theirs["fields"]:
        if field["size"] and not field["type"].startswith("struct"):
            assert where[field["offset"]] in (field["size"], field.get("element_size"))


def test_every_struct_of_ours_is_one_of_the_kernels():
    members = {getattr(iommufd_test, layouts.camel(name)) for name in MEMBERS}
    assert set(layouts.all_structs()) == {ours for _, _, ours in STRUCTS} | members


def test_the_test_commands_payload_and_last_word_cover_its_union():
    (theirs,) = (struct for struct in layouts.header("iommufd_test")["structs"] if struct["name"] == "iommu_test_cmd")
    heads = {f["name"].removeprefix("__"): (f["offset"], f["size"]) for f in theirs["fields"] if "aggregate" not in f}
    ours = layouts.without_padding(iommufd_test.TestCmd)
    assert ours.pop("payload") == (16, 48)
    assert ours == {name: where for name, where in heads.items() if "." not in name}
    assert theirs["size"] == iommufd_test.TestCmd.SIZE
    assert max(offset + size for fields in MEMBERS.values() for offset, size in fields.values()) == 48


@pytest.mark.parametrize("member", sorted(MEMBERS))
def test_a_member_of_the_test_commands_union_lies_as_the_kernels(member):
    ours = getattr(iommufd_test, layouts.camel(member))
    assert layouts.without_padding(ours) == MEMBERS[member]
    (theirs, *_) = layouts.header("iommufd_test")["structs"]
    signed = {f["name"] for f in theirs["fields"] if f.get("signed")}
    assert {f"{member}.{name}" for name, code in ours.CODES.items() if code == "i"} == {
        name for name in signed if name.startswith(f"{member}.")
    }


@pytest.mark.parametrize("name", layouts.HEADERS)
def test_every_number_flag_and_constant_is_the_kernels_and_none_is_left_out(name):
    theirs = layouts.their_names(name)
    if name == "iommufd":
        # Their command numbers are our ioctl numbers again: IOMMUFD_CMD_IOAS_MAP is number(IOAS_MAP).
        commands = {key: value for key, value in theirs.items() if key.startswith("IOMMUFD_CMD_")}
        assert commands.pop("IOMMUFD_CMD_BASE") == iommufd.CMD_BASE
        assert commands == {f"IOMMUFD_CMD_{row.name}": number(row.cmd) for row in iommufd.IOCTLS}
        theirs = {key: value for key, value in theirs.items() if key not in commands}
    ours = layouts.our_names(name)
    strings = {key for key, value in ours.items() if isinstance(value, str)}
    assert strings == {key for key in theirs if key.endswith("_STRING")}
    # C's constants are signed: VFIO_REGION_TYPE_PCI_VENDOR_TYPE is 1 << 31.
    assert {key: value % 2**32 for key, value in ours.items() if key not in strings} == {
        key: value % 2**32 for key, value in theirs.items() if key not in strings
    }


def test_the_names_of_device_kinds_are_as_long_as_the_kernels():
    # The layouts have the addresses at which a compiler put the strings, one after the other.
    theirs = {key: value for key, value in layouts.their_names("vfio").items() if key.endswith("_STRING")}
    names = sorted(theirs, key=theirs.__getitem__)
    gaps = [theirs[after] - theirs[before] for before, after in itertools.pairwise(names)]
    assert gaps == [len(getattr(vfio, name.removeprefix("VFIO_"))) + 1 for name in names[:-1]]


@pytest.mark.parametrize(("name", "ioctl"), IOCTLS, ids=label)
def test_an_ioctl_has_type_number_and_no_size(name, ioctl):
    value = layouts.our_names(name)[ioctl["name"]]
    assert (type_of(value), number(value)) == (ord(";"), ioctl["nr"])
    assert (size_of(value), direction(value)) == (0, Direction.NONE)
    assert ioctl["encoding"] == "_IO"


@pytest.mark.parametrize(("name", "ioctl"), [pair for pair in IOCTLS if "struct" in pair[1]], ids=label)
def test_a_commands_struct_has_the_sizes_that_the_kernel_takes(name, ioctl):
    ours = layouts.ours(name, ioctl["struct"])
    # Where no kernel code names a least size, all of the struct is wanted.
    assert (ours.SIZE, ours.MIN_SIZE) == (ioctl["size"], ioctl["min_size"] or ioctl["size"])


@pytest.mark.parametrize("ioctl", layouts.header("iommufd")["ioctls"], ids=label)
def test_an_iommufd_command_has_its_struct_and_kernels(ioctl):
    (row,) = (row for row in iommufd.IOCTLS if row.cmd == ioctl["value"])
    assert f"IOMMU_{row.name}" == ioctl["name"]
    assert row.struct is layouts.ours("iommufd", ioctl["struct"])
    # "7.2.13" and "7.3-rc7" are what was read of 7.2 and 7.3.
    assert row.present_in == tuple(".".join(k.split("-")[0].split(".")[:2]) for k in ioctl["present_in"])


def test_the_kernels_that_can_be_presented_are_those_whose_commands_are_known():
    assert tuple(f"{major}.{minor}" for major, minor in iommufd.RELEASES) == tuple(KERNELS)
    assert {kernel: sum(kernel in row.present_in for row in iommufd.IOCTLS) for kernel in KERNELS} == {
        "6.12": 15,
        "7.2": 21,
        "7.3": 22,
    }


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        (iommufd_structs.HwptAlloc, 24),
        (iommufd_structs.HwInfo, 32),
        (iommufd_structs.ViommuAlloc, 24),
        (iommufd_structs.VeventqAlloc, 28),
        (iommufd_test.TestCmd, 68),
        (vfio_structs.DeviceInfo, 16),
        (vfio_structs.IommuType1Info, 16),
        (vfio_structs.DeviceBindIommufd, 16),
        (vfio_structs.DeviceAttachIommufdPt, 12),
        (vfio_structs.DeviceDetachIommufdPt, 8),
    ],
    ids=label,
)
def test_a_struct_may_end_where_the_first_kernels_did(kind, least):
    assert least == kind.MIN_SIZE < kind.SIZE
