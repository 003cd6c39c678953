"""The whole way of one address through the IOMMU of a machine that was made for it."""

from __future__ import annotations

import mmap
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from softiommu.abi import iommufd as abi
from softiommu.api.iommufd import open
from softiommu.errors import ConfigError
from softiommu.hardware.iommu import Request
from softiommu.hardware.trace import Step, TracingMemory, Way, trace
from softiommu.machine.assemble import Machine
from softiommu.machine.description import load
from softiommu.pagetable.kinds import EXECUTE, READ, WRITE

if TYPE_CHECKING:
    from softiommu.machine.hardware import Wired

_RIGHTS = {READ: "read", WRITE: "write", EXECUTE: "execute"}


class Area(NamedTuple):
    """Memory to be mapped before the walk."""

    iova: int
    length: int
    read: bool = True
    write: bool = True


class Walked(NamedTuple):
    """A way, with the names of what it leads through, and what the kernel printed of it."""

    machine: str
    device: str
    iommu: str
    model: str
    way: Way
    messages: tuple[str, ...]


def walk(
    machine: str,
    device: str,
    request: tuple[int, int, int | None],
    areas: tuple[Area, ...] = (),
    kernel: str | None = None,
) -> Walked:
    """Make a machine, map `areas` for a device, and follow its `request`: address, rights (READ, WRITE), PASID.

    Without areas the device is attached to nothing. ConfigError: there is no such machine, or no such device behind an
    IOMMU in it; OSError: something cannot be mapped.
    """
    made = Machine(load(machine), kernel, TracingMemory, claim=False)
    wired = _find(made, device)
    if not areas:
        return _follow(made, wired, request)
    # Nobody minds here whether a device could forge interrupts.
    made.services.unsafe_interrupts = True
    with open(made) as iommufd:
        held = iommufd.device(wired.pci.name)
        ioas = iommufd.ioas()
        memory = [mmap.mmap(-1, area.length) for area in areas]
        for area, pages in zip(areas, memory, strict=True):
            ioas.map(pages, iova=area.iova, read=area.read, write=area.write)
        pasid = request[2]
        if pasid is None:
            held.attach(ioas)
        else:
            held.attach(held.hwpt(ioas, int(abi.HwptAllocFlags.ALLOC_PASID)), pasid)
        return _follow(made, wired, request)


def _find(machine: Machine, name: str) -> Wired:
    """A device behind an IOMMU, by its name or its PCI address."""
    wired = machine.hardware.devices if machine.hardware is not None else []
    for one in wired:
        if name in (one.pci.name, one.pci.address, one.pci.address.removeprefix("0000:")):
            return one
    known = ", ".join(one.pci.name for one in wired) or "none"
    raise ConfigError(f"machine {machine.description.name} has no device {name!r} behind an IOMMU: expected {known}")


def _follow(machine: Machine, wired: Wired, request: tuple[int, int, int | None]) -> Walked:
    hardware, iommu = machine.hardware, wired.pci.iommu
    assert hardware is not None, "a device was found in it"
    assert iommu is not None, "the device is behind one"
    unit, memory = hardware.iommus[iommu].unit, hardware.memory
    assert isinstance(memory, TracingMemory), "the machine was made with such"
    model = next(one.model for one in machine.description.iommus if one.name == iommu)
    script = import_module(f"softiommu.hardware.{model}.way").way
    iova, want, pasid = request
    asked = Request(wired.place.sid, iova, want, pasid)
    printed = len(machine.messages)
    way = trace(unit, memory, lambda what: script(unit, memory, what), asked)
    name = machine.description.name
    return Walked(name, wired.pci.name, iommu, model, way, tuple(machine.messages[printed:]))


def facts(walked: Walked) -> dict[str, Any]:
    """The same as plain data."""
    request, translation, fault = walked.way.request, walked.way.translation, walked.way.fault
    found: dict[str, Any] = {
        "machine": walked.machine,
        "device": walked.device,
        "stream": request.sid,
        "iommu": {"name": walked.iommu, "model": walked.model},
        "iova": request.iova,
        "pasid": request.pasid,
        "access": rights(request.want),
        "steps": [_step(step) for step in walked.way.steps],
        "result": None,
        "fault": None,
        "messages": list(walked.messages),
    }
    if translation is not None:
        found["result"] = {
            "address": translation.pa,
            "block_lg2": translation.lg2,
            "allowed": rights(translation.allowed),
        }
    if fault is not None:
        found["fault"] = {"reason": fault.reason.name, "number": int(fault.reason)}
    return found


def _step(step: Step) -> dict[str, Any]:
    word = type(step.word)
    return {
        "kind": step.kind,
        "name": step.name,
        "address": step.pa,
        "word": word.__name__,
        "value": int(step.word),
        "fields": step.fields(),
    }


def rights(bits: int) -> list[str]:
    """The names of rights."""
    return [name for bit, name in _RIGHTS.items() if bits & bit]


def lines(walked: Walked) -> list[str]:
    """The same for people."""
    request, translation, fault = walked.way.request, walked.way.translation, walked.way.fault
    pasid = "" if request.pasid is None else f", PASID {request.pasid:#x}"
    access = " and ".join(rights(request.want))
    text = [f"{walked.device} (stream {request.sid:#x}{pasid}): {access} at {request.iova:#x}, through {walked.iommu}"]
    wide = max((len(step.name) for step in walked.way.steps), default=0)
    for step in walked.way.steps:
        where = "" if step.pa is None else f"{step.pa:#x}"
        text.append(f"  {step.kind:6} {where:>12}  {step.name:{wide}}  {step.word!r}")
    if translation is not None:
        size = f"one of 2**{translation.lg2} bytes with these rights: {', '.join(rights(translation.allowed))}"
        text.append(f"goes to {translation.pa:#x}, {size}")
    if fault is not None:
        text.append(f"is blocked: {fault}")
    return text + [f"kernel: {line}" for line in walked.messages]
