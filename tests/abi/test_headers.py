"""The headers that this system has, where it has them: what a C compiler makes of them is what we say.

A system's header may be older than ours. What it lacks is passed by; what it has must agree.
"""

import re
from pathlib import Path

import pytest

from abi import layouts
from abi.compiler import answers

INCLUDE = Path("/usr/include")
SYSTEM = ("iommufd", "vfio")


def text_of(name):
    path = INCLUDE / "linux" / f"{name}.h"
    if not path.exists():
        pytest.skip(f"this system has no linux/{name}.h")
    return re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)


def fields_of(text, struct):
    """The words of a struct's body in the header; none where it has no such struct."""
    body = re.search(rf"^struct {struct}\s*\{{(.*?)^\}}", text, flags=re.DOTALL | re.MULTILINE)
    return set(re.findall(r"\w+", body[1])) if body else set()


@pytest.mark.parametrize("name", SYSTEM)
def test_the_systems_header_has_the_same_offsets_and_sizes(name, tmp_path):
    text, calls, expected = text_of(name), [], []
    for theirs, ours in layouts.structs(name):
        words = fields_of(text, theirs["name"])
        for field in layouts.expected_fields(name, theirs):
            if re.match(r"\w+", field.c)[0] in words:
                where = f"struct {theirs['name']}, {field.c}"
                size = f"sizeof((({where.split(',')[0]} *)0)->{field.c})"
                calls.append(f'"{theirs["name"]} {field.name} %zu %zu\\n", offsetof({where}), {size}')
                offset, width = ours.FIELDS[field.name]
                expected.append(f"{theirs['name']} {field.name} {offset} {width}")
    assert len(expected) >= 40
    assert answers(tmp_path, [f"#include <linux/{name}.h>"], calls) == expected


@pytest.mark.parametrize("name", SYSTEM)
def test_the_systems_header_has_the_same_numbers_and_strings(name, tmp_path):
    words = set(re.findall(r"\w+", text_of(name)))
    ours = {key: value for key, value in layouts.our_names(name).items() if key in words}
    assert len(ours) >= 20
    calls = [
        f'"{key} %s\\n", {key}' if isinstance(value, str) else f'"{key} %u\\n", (unsigned int){key}'
        for key, value in ours.items()
    ]
    expected = [f"{key} {value}" if isinstance(value, str) else f"{key} {value % 2**32}" for key, value in ours.items()]
    assert answers(tmp_path, [f"#include <linux/{name}.h>"], calls) == expected
