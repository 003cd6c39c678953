"""`softiommu caps`."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import softiommu as package
from softiommu.api import HwInfo
from softiommu.errors import ConfigError
from softiommu.machine.assemble import Machine
from softiommu.machine.description import builtin_names, load, parse
from softiommu.vmm.capabilities import Capability, Request, Seen, probe
from softiommu.vmm.capabilities.report import capability, facts, lines, reports, request

DOC = (Path(__file__).parent.parent.parent / "docs" / "capabilities.md").read_text(encoding="utf-8")
HARDWARE = [
    name for name in builtin_names() if load(name).devices and not load(name).has_model("mock") and load(name).iommus
]
LAB = """
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


def seen_on(machine, device, kernel=None):
    made = Machine(load(machine), kernel) if isinstance(machine, str) else Machine(machine, kernel)
    made.services.unsafe_interrupts = True
    with package.open(made) as iommufd, iommufd.device(device) as held:
        return probe(iommufd, held)


@pytest.mark.parametrize("name", HARDWARE)
def test_every_machine_is_told_to_people_and_programs_alike(name):
    (report,) = reports([("edu0", seen_on(name, "edu0"))])
    told, text = facts(report), lines(report)
    assert text[0] == "edu0:"
    fields = [(r, f) for t in told["types"] for r in t["registers"] for f in r["fields"]]
    answers = [line for line in text if re.match(r"  (forward|mask|needs|own) ", line)]
    assert len(answers) == len(fields)
    for (_, field), line in zip(fields, answers, strict=True):
        assert line.split()[:2] == [field["verdict"], field["field"]]
        assert field["reason"] in line
        assert (field["verdict"] == "needs") <= bool(field["needs"])
        assert any(source.endswith(f"] {field['source']}") for source in text)
    for register in (r for t in told["types"] for r in t["registers"]):
        assert f"{register['name']}: {register['hardware']:#x} of the hardware" in "\n".join(text)
    known = {"vtd": "INTEL_VTD", "smmuv3": "ARM_SMMUV3", "amd": "AMD", "riscv": "RISCV"}.get(load(name).iommus[0].model)
    assert told["types"][0]["name"] == known
    assert known or "nothing may be forwarded" in text[-1]
    for flag in told["types"][0]["flags"]:
        assert f"{flag['name']}: {flag['meaning']}" in text


@pytest.mark.parametrize("model", ["vtd", "smmuv3", "amd", "riscv"])
def test_pasids_and_ats_of_a_device_are_known(model):
    seen = seen_on(parse(LAB.format(model), "lab.toml"), "t0")
    assert Capability.PASID in seen.kernel
    assert Capability.ATS in seen.kernel


def test_an_old_kernel_tells_less():
    seen = seen_on("vtd", "edu0", "6.12")
    assert seen.infos[0].capabilities == 0
    assert seen.kernel == Capability.ATS  # a clear bit does not deny it


def test_nothing_is_left_of_what_was_tried():
    with package.open("smmuv3") as iommufd, iommufd.device("edu0") as device:
        first = probe(iommufd, device)
        again = probe(iommufd, device)
        assert first == again
        with iommufd.ioas() as ioas:
            device.attach(ioas)
            device.detach()


def test_devices_that_are_alike_are_told_together():
    one, other = Seen((HwInfo(0, b"", 0, 0),), Capability(0)), Seen((HwInfo(0, b"", 0, 4),), Capability(0))
    found = reports([("a", one), ("b", other), ("c", one)])
    assert [report.devices for report in found] == [("a", "c"), ("b",)]


def test_a_type_without_rules_is_told():
    (report,) = reports([("mock", Seen((HwInfo(0xFEEDBEEF, b"12345678", 0, 0),), Capability(0)))])
    assert facts(report)["types"] == [{"type": 0xFEEDBEEF, "name": None, "flags": [], "registers": []}]
    assert "GET_HW_INFO tells type 0xfeedbeef: nothing may be forwarded" in lines(report)[-1]


def test_names_of_capabilities_and_requests():
    assert (capability("httu"), request("BTM")) == (Capability.HTTU, Request.BTM)
    with pytest.raises(ConfigError, match="no capability 'x' of kernels: expected one of DIRTY_TRACKING, "):
        capability("x")
    with pytest.raises(ConfigError, match="no request 'x' of vIOMMUs: expected one of VCMDQ, BTM"):
        request("x")


def test_the_command_prints_a_report(softiommu):
    ended = softiommu("caps", "-m", "smmuv3", "-d", "edu0")
    assert (ended.code, ended.err) == (0, "")
    shown = re.search(r"    \$ softiommu caps (.*)\n((?:    .*\n)+)", DOC)
    assert shown[1] == "--machine smmuv3 --device edu0"
    for line in shown[2].splitlines():
        assert line.strip() == "..." or line[4:] in ended.out, line


def test_the_command_takes_what_is_assumed_and_asked_for(softiommu):
    ended = softiommu("caps", "-m", "smmuv3", "-d", "edu0", "--assume", "HTTU", "--request", "btm", "--json")
    assert (ended.code, ended.err) == (0, "")
    (told,) = json.loads(ended.out)
    assert told["devices"] == ["edu0"]
    assert told["requests"] == [{"name": "BTM", "made_by": "VIOMMU_ALLOC with bit 31 of flags, an extension"}]
    idr0 = {field["field"]: field for field in told["types"][0]["registers"][0]["fields"]}
    assert (idr0["HTTU"]["verdict"], idr0["HTTU"]["offered"]) == ("forward", 2)


def test_under_supervision_the_command_sees_the_machine_that_is_shown(softiommu):
    inner = (sys.executable, "-m", "softiommu", "caps", "-d", "/dev/vfio/devices/vfio0", "--json")
    ended = softiommu("run", "-m", "smmuv3", "--", *inner)
    assert ended.code == 0, ended.err
    (direct,) = reports([("/dev/vfio/devices/vfio0", seen_on("smmuv3", "edu0"))])
    assert json.loads(ended.out) == [facts(direct)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected --machine, or --device of this host"),
        (("-d", "/dev/vfio/devices/vfio0", "-k", "7.2"), "expected --machine, or --device of this host"),
        (("-d", "/dev/vfio/devices/vfio999"), "cannot be asked: "),
        (("-m", "mock"), "machine mock has no device behind an IOMMU"),
        (("-m", "nodev"), "machine nodev has no device behind an IOMMU"),
        (("-m", "vtd", "-d", "card"), "VFIO has no device 'card': there are edu0"),
        (("-m", "vtd", "--assume", "magic"), "no capability 'magic'"),
        (("-m", "vtd", "--request", "magic"), "no request 'magic'"),
    ],
)
def test_what_cannot_be_done_is_told_with_status_2(softiommu, arguments, message):
    ended = softiommu("caps", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert "Traceback" not in ended.err


def test_the_python_of_the_documentation_runs():
    code = re.search(r"```python\n(.*?)```", DOC, re.DOTALL)[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    verdict, none, finding = done.stdout.splitlines()
    assert (verdict, none) == ("Verdict.NEEDS", "[]")
    assert finding.startswith("IDR0.HTTU: offered 0x2, allowed 0x0, hardware 0x2: ")
