"""docs/invalidation.md says what the structures are."""

import re
from pathlib import Path

import pytest

from softiommu.abi.generic_invalidation import GENERIC, Hint, InvalidateV1, InvalidateV2, Scope, Target, Valid

TEXT = (Path(__file__).parent.parent.parent / "docs" / "invalidation.md").read_text(encoding="utf-8")


def test_the_layout_is_the_structures():
    found = re.findall(r"^ {8}u(\d+) +(\w+); +(\d+)", TEXT, re.MULTILINE)
    assert {name: (int(at), int(bits) // 8) for bits, name, at in found} == InvalidateV2.FIELDS
    assert f"version 1: {InvalidateV1.SIZE} bytes" in TEXT
    assert f"version 2: {InvalidateV2.SIZE} bytes" in TEXT
    assert f"| {GENERIC:#x} |" in TEXT


@pytest.mark.parametrize("kind", [Scope, Target, Hint], ids=lambda kind: kind.__name__)
def test_every_value_has_its_row(kind):
    assert {(str(int(member)), member.name) for member in kind} <= set(re.findall(r"^\| (\d+) \| (\w+) \|", TEXT, re.M))


def test_every_field_is_described():
    described = {
        name for line in re.findall(r"^\*\*.*", TEXT, re.MULTILINE) for name in re.findall(r"\*\*(\w+)\*\*", line)
    }
    assert set(InvalidateV2.FIELDS) - {"reserved"} == described
    assert ", ".join(f"{int(bit)} {bit.name}" for bit in Valid) in TEXT


def test_the_example_works():
    calls = []
    scope = {}
    exec(re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1], scope)
    nested = type("Hwpt", (), {"invalidate": lambda self, *arguments: calls.append(arguments) or 1})()
    assert scope["forget_a_page"](nested, 7, 0x5000) == 1
    ((kind, (entry,)),) = calls
    assert (kind, entry.pasid, entry.addr, entry.count) == (GENERIC, 7, 0x5000, 1)
