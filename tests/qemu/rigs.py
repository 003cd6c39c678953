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
_SCALABLE = f"{_VTD},x-scalable-mode=on"


class Setup(NamedTuple):
    """A rig to be made of a program's path. `structures`: QEMU checks what leads to the tables, too."""

    program: str
    make: Callable[[str], Rig]
    structures: bool = True


RIGS = {
    "vtd-legacy": Setup("qemu-system-x86_64", lambda path: VtdRig(path, "intremap=off")),
    "vtd-legacy-39": Setup("qemu-system-x86_64", lambda path: VtdRig(path, f"{_VTD},aw-bits=39")),
    "vtd-second": Setup("qemu-system-x86_64", lambda path: ScalableRig(path, _SCALABLE)),
    "vtd-first": Setup("qemu-system-x86_64", lambda path: FirstStageRig(path, f"{_SCALABLE},x-flts=on")),
    "amd": Setup("qemu-system-x86_64", AmdRig, structures=False),
    "smmuv3": Setup("qemu-system-aarch64", Smmuv3Rig),
    "riscv": Setup("qemu-system-riscv64", RiscvRig),
}
