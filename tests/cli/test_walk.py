"""`softiommu walk`."""

import json

import pytest

from softiommu.api.walk import Area, facts, lines, walk
from softiommu.errors import ConfigError
from softiommu.machine.description import builtin_names, load
from softiommu.pagetable.kinds import READ, WRITE

HARDWARE = [
    name for name in builtin_names() if load(name).devices and not load(name).has_model("mock") and load(name).iommus
]
#: 6.12's driver makes no domain that this unit takes.
NEWEST = "7.2"


@pytest.mark.parametrize("name", HARDWARE)
def test_the_way_on_every_machine_names_all_that_is_read(name):
    walked = walk(name, "edu0", (0x100123, WRITE, None), (Area(0x100000, 0x2000),), NEWEST)
    way = walked.way
    assert way.translation is not None, way.fault
    assert way.translation.pa & 0xFFF == 0x123
    assert way.steps
    assert [step for step in way.steps if step.name == "word"] == []
    other = walk(name, "edu0", (0x102123, WRITE, None), (Area(0x100000, 0x2000),), NEWEST).way
    assert (other.translation, other.fault is None) == (None, False)
    assert other.steps[0] == way.steps[0]


PASIDS = """
name = "lab"
[[iommu]]
name = "iommu0"
model = "{}"
unit = "full"
[[device]]
name = "t0"
address = "0000:00:04.0"
model = "pcitest"
pasid_bits = 16
"""


@pytest.mark.parametrize(("model", "structure"), [("vtd", "PASID entry"), ("riscv", "process context, ta")])
def test_the_way_of_a_pasid_leads_through_its_own_structures(model, structure, tmp_path):
    lab = tmp_path / "lab.toml"
    lab.write_text(PASIDS.format(model))
    way = walk(str(lab), "t0", (0x1234, READ, 5), (Area(0x1000, 0x1000),)).way
    assert way.translation is not None, way.fault
    assert structure in [step.name for step in way.steps]
    assert walk(str(lab), "t0", (0x1234, READ, 5)).way.fault is not None


def test_without_a_mapping_the_device_is_attached_to_nothing():
    walked = walk("vtd", "00:04.0", (0x100123, READ, None))
    assert walked.way.fault is not None
    assert walked.way.steps[-1].name.startswith("root entry")
    assert len(walked.messages) == 1


def test_rights_of_an_area_are_those_of_its_pages():
    area = (Area(0x100000, 0x1000, write=False),)
    assert walk("vtd", "edu1", (0x100000, READ, None), area).way.translation is not None
    assert walk("vtd", "edu1", (0x100000, WRITE, None), area).way.fault is not None


def test_what_people_and_programs_see_is_the_same():
    walked = walk("vtd", "edu0", (0x100123, READ, None), (Area(0x100000, 0x1000),))
    told, text = facts(walked), lines(walked)
    assert len(text) == len(told["steps"]) + 2
    for step, line in zip(told["steps"], text[1:], strict=False):
        assert step["name"] in line
        assert f"<{step['word']} {step['value']:#x}" in line
    leaf = told["steps"][-1]
    assert (leaf["name"], leaf["fields"]["R"]) == ("second-stage PTE", 1)
    assert leaf["fields"]["ADDR"] << 12 == told["result"]["address"] & ~0xFFF
    assert f"goes to {told['result']['address']:#x}" in text[-1]
    assert (told["access"], told["iommu"]["model"], told["fault"]) == (["read"], "vtd", None)


def test_a_device_that_is_not_behind_an_iommu_is_told():
    for machine, device in (("vtd", "edu9"), ("nodev", "edu0"), ("mock", "edu0")):
        with pytest.raises(ConfigError, match="behind an IOMMU"):
            walk(machine, device, (0, READ, None))


def test_the_command_prints_the_way(softiommu):
    ended = softiommu("walk", "-m", "viommu", "-d", "edu0", "-a", "0x100123", "--map", "0x100000:0x1000:r", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert [step["word"] for step in json.loads(ended.out)["steps"]] == ["Attach", "Map"]
    blocked = softiommu("walk", "-m", "viommu", "-d", "edu0", "-a", "0x100123", "--map", "0x100000:0x1000:r", "--write")
    assert (blocked.code, blocked.err) == (1, "")
    assert "is blocked: MAPPING (0x2)" in blocked.out
    assert blocked.out.splitlines()[-1].startswith("kernel: DMA write by 00:04.0 at iova 0x100123 is blocked")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("-a", "zz"), "'zz' is no number from 0 to 2**64 - 1, such as 0x1000"),
        (("-a", "-1"), "'-1' is no number"),
        (("-a", "0x10000000000000000"), "is no number"),
        (("-a", "0", "--map", "0x1000"), "'0x1000' is not IOVA:LENGTH or IOVA:LENGTH:r|w|rw"),
        (("-a", "0", "--map", "0:0"), "0x0 bytes are not mapped: expected 1 to 2**36"),
        (("-a", "0", "--pasid", "0x100000"), "PASIDs have 20 bits"),
        (("-a", "0", "--map", "0xfee00000:0x1000"), "edu0 cannot be attached, or memory not mapped: "),
        (("-a", "0", "--map", "0x1000:0x1000", "--pasid", "5"), "edu0 cannot be attached"),
    ],
)
def test_what_cannot_be_done_is_told_with_status_2(softiommu, more, message):
    ended = softiommu("walk", "-m", "vtd", "-d", "edu0", *more)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert "Traceback" not in ended.err
