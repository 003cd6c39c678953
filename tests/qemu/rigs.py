"""The rigs by name: which program of QEMU, and how it is started."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from qemu.amd import AmdRig
from qemu.rig import Rig
from qemu.riscv import RiscvRig
from qemu.smmuv3 import Smmuv3Rig
from qemu.vtd import FirstStageRig, ScalableRig, VtdRig

_VTD = "intremap=off,snoop-control=on"


class Setup(NamedTuple):
    """A rig to be made of a program's path. `structures`: QEMU checks what leads to the tables, too."""

    program: str
    make: Callable[[str], Rig]
    structures: bool = False


RIGS = {
    "vtd-legacy": Setup("qemu-system-x86_64", lambda path: VtdRig(path, "intremap=off"), structures=True),
    "vtd-legacy-39": Setup("qemu-system-x86_64", lambda path: VtdRig(path, f"{_VTD},aw-bits=39"), structures=True),
    "vtd-second": Setup("qemu-system-x86_64", lambda path: ScalableRig(path, f"{_VTD},x-scalable-mode=on")),
    "vtd-first": Setup("qemu-system-x86_64", lambda path: FirstStageRig(path, f"{_VTD},x-scalable-mode=on,x-flts=on")),
    "amd": Setup("qemu-system-x86_64", AmdRig),
    "smmuv3": Setup("qemu-system-aarch64", Smmuv3Rig, structures=True),
    "riscv": Setup("qemu-system-riscv64", RiscvRig, structures=True),
}
