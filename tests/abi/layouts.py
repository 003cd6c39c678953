"""The generated layouts of the kernel's headers, and the rules by which our names follow from theirs.

Structs: IoasMap is struct iommu_ioas_map. Leading underscores go; a struct within a struct is inlined (header_id);
words of an array are numbered (ste0); a trailing array is left out; a word with two names has the first; holes are
`padding`. Members: a class's docstring gives the header's name with a star, and a member stands for the star.
Constants: the name without the header's prefix.
"""

import enum
import functools
import gzip
import json
import re
from pathlib import Path
from typing import NamedTuple

from softiommu.abi import iommufd, iommufd_enums, iommufd_structs, iommufd_test, vfio, vfio_other, vfio_structs
from softiommu.abi.struct import UserStruct

DATA = Path(__file__).parent.parent / "data" / "abi"
HEADERS = ("iommufd", "iommufd_test", "vfio")
STRUCT_MODULES = {
    "iommufd": (iommufd_structs,),
    "iommufd_test": (iommufd_test,),
    "vfio": (vfio_structs, vfio_other),
}
NAME_MODULES = {"iommufd": (iommufd, iommufd_enums), "iommufd_test": (iommufd_test,), "vfio": (vfio, vfio_other)}
PREFIXES = {"iommufd": ("IOMMU_", "IOMMUFD_"), "iommufd_test": ("IOMMU_", ""), "vfio": ("VFIO_",)}
#: Where the rules do not lead: a name in front of others of its kind, and one that is no identifier without its prefix.
CLASSES = {"iommu_test_hw_info": "HwInfoSelftest"}
FIELDS = {"in_data_type": "data_type"}
MEMBERS = {"VFIO_TYPE1_NESTING_IOMMU": "__VFIO_RESERVED_TYPE1_NESTING_IOMMU"}


class Field(NamedTuple):
    """A field as ours must be, and how C names it."""

    name: str
    offset: int
    size: int
    c: str


@functools.cache
def header(name):
    """The layouts of one header."""
    with gzip.open(DATA / f"{name}.json.gz", "rt") as text:
        return json.load(text)


def camel(name):
    """struct iommu_ioas_map -> IoasMap."""
    bare = re.sub(r"^(iommufd|iommu|vfio)_", "", name)
    return "".join(part if part[0].isdigit() else part.capitalize() for part in bare.split("_"))


def ours(name, struct):
    """Our class of a struct of a header."""
    wanted = CLASSES.get(struct, camel(struct))
    (found,) = (vars(home)[wanted] for home in STRUCT_MODULES[name] if wanted in vars(home))
    return found


def structs(name):
    """(their struct, our class) of each struct of a header."""
    return [(struct, ours(name, struct["name"])) for struct in header(name)["structs"]]


def expected_fields(name, struct):
    """Each field as ours must be."""
    last = -1
    for field in struct["fields"]:
        ours, offset, size = FIELDS.get(field["name"], field["name"].removeprefix("__")), field["offset"], field["size"]
        inner = next((s for s in header(name)["structs"] if f"struct {s['name']}" == field["type"]), None)
        if size == 0 or offset == last:
            continue  # a trailing array, the second name of a word
        last = offset
        width = field.get("element_size", size)
        if inner:
            for part in expected_fields(name, inner):
                yield Field(f"{ours}_{part.name}", offset + part.offset, part.size, f"{field['name']}.{part.c}")
        elif 1 < width < size:
            for n in range(size // width):
                yield Field(f"{ours}{n}", offset + n * width, width, f"{field['name']}[{n}]")
        else:
            yield Field(ours, offset, size, field["name"])


def union_members():
    """The members of the test command's union: name -> {field: (offset in the union, size)}."""
    members = {}
    for field in header("iommufd_test")["structs"][0]["fields"]:
        member, _, name = field["name"].partition(".")
        if name:
            members.setdefault(member, {})[name] = (field["offset"] - 16, field["size"])
    return members


def without_padding(kind):
    """A class's fields that are no holes of the C struct."""
    return {name: where for name, where in kind.FIELDS.items() if not name.startswith("padding")}


def all_structs():
    """Every struct class that we have."""
    found = (value for homes in STRUCT_MODULES.values() for home in homes for value in vars(home).values())
    return sorted(
        {kind for kind in found if isinstance(kind, type) and issubclass(kind, UserStruct) and kind is not UserStruct},
        key=lambda kind: (kind.__module__, kind.__name__),
    )


def their_names(name):
    """Every enumerator, constant and ioctl number of a header."""
    groups = [*(group["values"] for group in header(name)["enums"]), header(name)["constants"], header(name)["ioctls"]]
    return {item["name"]: item["value"] for group in groups for item in group}


def our_names(name):
    """Every member, constant and ioctl number of ours, by the C name that our rules give it."""
    theirs, found = their_names(name), {}
    for module in NAME_MODULES[name]:
        for key, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, enum.IntEnum | enum.IntFlag):
                members = _members(value, theirs)
                assert all(found.get(key, number) == number for key, number in members.items()), value
                found |= members
            elif key.isupper() and isinstance(value, int | str):
                candidates = [prefix + key for prefix in PREFIXES[name]]
                found[next((c for c in candidates if c in theirs), candidates[0])] = value
    return found


def _members(kind, theirs):
    patterns = re.findall(r"[A-Z0-9_]+_\*[A-Z0-9_]*|VFIO_\*", kind.__doc__ or "")
    found = {}
    for member, value in kind.__members__.items():
        word = re.sub(r"^SIZE_(?=\d)", "", member)
        candidates = [pattern.replace("*", word) for pattern in patterns]
        candidates = [MEMBERS.get(candidate, candidate) for candidate in candidates]
        known = [candidate for candidate in candidates if candidate in theirs]
        found[(known or candidates or [f"{kind.__name__}.{member}"])[0]] = int(value)
    return found
