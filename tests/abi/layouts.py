"""The generated layouts of the kernel's headers, and the rule by which our names follow from theirs."""

import functools
import gzip
import json
import re
from pathlib import Path

from softiommu.abi import iommufd_structs, iommufd_test, vfio_structs
from softiommu.abi.struct import UserStruct

DATA = Path(__file__).parent.parent / "data" / "abi"
#: sPAPR, EEH, NVLink, graphics planes, zPCI, CCW, AP: parts of VFIO that are left out.
LEFT_OUT = re.compile(r"spapr|eeh|gfx|nvlink|zpci|ccw|_ap_|vfio_ap|igd|edid", re.IGNORECASE)


@functools.cache
def header(name):
    """The layouts of one header."""
    with gzip.open(DATA / f"{name}.json.gz", "rt") as text:
        return json.load(text)


def camel(name):
    """struct iommu_ioas_map -> IoasMap."""
    bare = re.sub(r"^(iommufd|iommu|vfio)_", "", name)
    return "".join(part if part[0].isdigit() else part.capitalize() for part in bare.split("_"))


def structs(name):
    """(their struct, our class) of each struct of a header that we have."""
    home = {"iommufd": iommufd_structs, "vfio": vfio_structs, "iommufd_test": iommufd_test}[name]
    for struct in header(name)["structs"]:
        if name == "vfio" and LEFT_OUT.search(struct["name"]):
            continue
        ours = {"TestHwInfo": "HwInfoSelftest"}.get(camel(struct["name"]), camel(struct["name"]))
        yield struct, getattr(home, ours)


def expected_fields(struct):
    """Name, offset and size of each field as ours must be: arrays of words numbered, nested structs inlined."""
    for field in struct["fields"]:
        name, offset, size = field["name"].replace(".", "_").removeprefix("__"), field["offset"], field["size"]
        kind = field.get("type", "")
        if size == 0 or field.get("aggregate") or name == "out_data_type":
            continue  # a trailing array, a union, the second name of a field
        if name == "in_data_type":
            name = "data_type"
        if kind == "struct vfio_info_cap_header":
            yield from (("header_id", 0, 2), ("header_version", 2, 2), ("header_next", 4, 4))
            continue
        if kind == "struct vfio_bitmap":
            yield from ((f"bitmap_{part}", offset + 8 * n, 8) for n, part in enumerate(("pgsize", "size", "data")))
            continue
        width = {"__u8": 1, "__s8": 1, "__u16": 2}.get(kind, 4 if "32" in kind else 8)
        if size > width > 1:
            yield from ((f"{name}{n}", offset + n * width, width) for n in range(size // width))
        else:
            yield name, offset, size


def union_members():
    """The members of the test command's union: name -> [(field, offset in the union, size)]."""
    members = {}
    for field in header("iommufd_test")["structs"][0]["fields"]:
        member, _, name = field["name"].partition(".")
        if name:
            members.setdefault(member, []).append((name, field["offset"] - 16, field["size"]))
    return members


def all_structs():
    """Every struct class that we have."""
    homes = (iommufd_structs, vfio_structs, iommufd_test)
    found = (value for home in homes for value in vars(home).values())
    return sorted(
        {kind for kind in found if isinstance(kind, type) and issubclass(kind, UserStruct) and kind is not UserStruct},
        key=lambda kind: (kind.__module__, kind.__name__),
    )
