"""The numbers of our own types lie apart, each has one meaning, and the documentation says which."""

import re
from pathlib import Path

import pytest

from softiommu.abi import amd_extension, generic_invalidation, iommufd, riscv_extension, software_nesting
from softiommu.abi.generic_invalidation import EXTENSIONS, GENERIC
from softiommu.abi.riscv_extension import HwInfoRiscv, HwptRiscv, RiscvCommand
from softiommu.drivers.riscv.nested import GuestTa, GuestTc

DOCUMENT = (Path(__file__).parents[2] / "docs" / "extensions.md").read_text(encoding="utf-8")
MODULES = {"riscv_extension": riscv_extension, "amd_extension": amd_extension}
OURS = [
    GENERIC,
    *(
        value
        for module in (riscv_extension, amd_extension, software_nesting)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, int)
    ),
]


def test_every_number_is_ours_and_has_one_meaning():
    assert all(number in EXTENSIONS for number in OURS)
    assert len(set(OURS)) == len(OURS) >= 6


@pytest.mark.parametrize(
    "kinds", [iommufd.HwInfoType, iommufd.HwptDataType, iommufd.InvalidateDataType, iommufd.ViommuType]
)
def test_no_number_of_the_kernels_is_near(kinds):
    assert not any(int(kind) in EXTENSIONS for kind in kinds)


def test_the_documentation_has_each_number():
    rows = re.findall(r"^\| (0x[0-9a-f]+) \|.*`(\w+)\.(\w+)`", DOCUMENT, re.MULTILINE)
    assert {(module, name): int(number, 16) for number, module, name in rows} == {
        (module, name): value
        for module, space in MODULES.items()
        for name, value in vars(space).items()
        if name.isupper() and isinstance(value, int)
    }
    assert f"{EXTENSIONS[0]:#x} to\n{EXTENSIONS[-1]:#x}" in DOCUMENT
    assert generic_invalidation.GENERIC == GENERIC


@pytest.mark.parametrize("struct", [HwInfoRiscv, HwptRiscv])
def test_the_documentation_has_each_field_where_it_is(struct):
    for field, (offset, size) in struct.FIELDS.items():
        assert re.search(rf"^\| {offset} \| u{8 * size} {field} \|", DOCUMENT, re.MULTILINE), field
    assert f"({struct.SIZE} bytes)" in DOCUMENT


def test_the_documentation_names_the_bits_that_guests_may_set():
    assert f"| {', '.join(GuestTc.FIELDS)} |" in DOCUMENT
    assert f"| 8 | u64 ta | {', '.join(GuestTa.FIELDS)} |" in DOCUMENT
    assert f"({RiscvCommand.SIZE} bytes each" in DOCUMENT
