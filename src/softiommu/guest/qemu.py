"""How QEMU is called: a PC that boots our kernel, without a display, with one or two serial ports.

The options, and why (docs/guests.md has more):

* `-accel tcg`: works everywhere. KVM would need hardware, and for /dev/kvm rights.
* `-kernel` with the bare ELF file: no boot loader, and no unpacking by emulated instructions.
* `+rdrand`: a guest without a source of chance waits seconds for it, mkfs for one.
* Root ports: what is plugged into one can be unplugged, which the root bus itself does not allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from softiommu.guest.folder import Folder

PROGRAM = "qemu-system-x86_64"
#: Debian's name for what has it.
PACKAGE = "qemu-system-x86"
#: The object that devices name in `iommufd=`.
IOMMUFD = "iommufd0"

#: MiB of RAM, where there is no reason for less. Less than 96 does not boot.
MEMORY = 256
#: A device of an x86 PC: a guest stores a number at the port, and QEMU ends with 2 * number + 1.
EXIT = "isa-debug-exit,iobase=0xf4,iosize=1"

#: Nothing that would only cost time under emulation, nor a test of timers that fails where the machine is busy.
_KERNEL_LINE = "console=ttyS0 panic=-1 mitigations=off rodata=off nowatchdog no_timer_check"


class Guest(NamedTuple):
    """A guest. `job` is what guests/init is to do: script, agent or shell."""

    folder: Folder
    job: str
    #: How QEMU is started: the program, and whatever must stand before other options.
    program: Sequence[str] = (PROGRAM,)
    #: MiB of RAM.
    memory: int = MEMORY
    #: RAM in a memfd, which a process can share, or private to QEMU.
    shared: bool = True
    cpus: int = 1
    #: More for the kernel's command line.
    kernel_line: str = "quiet"
    #: More of QEMU's own options: serial ports and devices, above all.
    options: Sequence[str] = ()

    def command(self) -> list[str]:
        """The command line."""
        backend = "memory-backend-memfd" if self.shared else "memory-backend-ram"
        return [
            *self.program,
            *("-M", "q35,memory-backend=ram", "-object", f"{backend},id=ram,size={self.memory}M"),
            *("-accel", "tcg", "-cpu", "qemu64,+rdrand", "-smp", str(self.cpus), "-m", str(self.memory)),
            *("-nodefaults", "-display", "none", "-no-reboot"),
            *("-kernel", str(self.folder.kernel), "-initrd", str(self.folder.initrd)),
            *("-append", f"{_KERNEL_LINE} job={self.job} {self.kernel_line}"),
            *self.options,
        ]


def root_port(number: int) -> list[str]:
    """Options for a slot named `portN` (N from 0), for one device that can be unplugged."""
    return ["-device", f"pcie-root-port,id=port{number},chassis={number + 1},slot={number + 1}"]


def passed(address: str, name: str, bus: str | None = None, iommufd: bool = True, mapped: bool = False) -> str:
    """The value of `-device` (and of QMP's device_add) that passes on a device; by its group without `iommufd`.

    `mapped` lets QEMU map BARs, as it does unless told otherwise: faster, but it warns that no device reaches them.
    """
    parts = [f"vfio-pci,host={address}", f"id={name}"]
    parts += [f"bus={bus}"] * (bus is not None) + [f"iommufd={IOMMUFD}"] * iommufd + ["x-no-mmap=on"] * (not mapped)
    return ",".join(parts)


def virtual_vtd(*features: str) -> list[str]:
    """Options for an Intel IOMMU that the guest sees. They must stand before those of devices passed on."""
    return ["-device", ",".join(("intel-iommu", "caching-mode=on", *features))]


def iommufd() -> list[str]:
    """Options for the object that devices name."""
    return ["-object", f"iommufd,id={IOMMUFD}"]
