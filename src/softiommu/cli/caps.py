"""`softiommu caps`: what of an IOMMU a guest may be offered."""

from __future__ import annotations

import json
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

import click

from softiommu.errors import ConfigError

if TYPE_CHECKING:
    from softiommu.api import Iommufd
    from softiommu.vmm.capabilities import Seen


@click.command()
@click.option("--machine", "-m", metavar="NAME|FILE", default=None, help="A machine's name, or a TOML file.")
@click.option("--device", "-d", metavar="NAME|ADDRESS|NODE", default=None, help="A device; a machine's default: each.")
@click.option("--kernel", "-k", default=None, help="The kernel version that the machine presents.")
@click.option("--assume", multiple=True, metavar="NAME", help="Take a capability of the kernel for granted.")
@click.option("--request", "requests", multiple=True, metavar="NAME", help="Turn something on for the VM.")
@click.option("--json", "as_json", is_flag=True, help="The same for programs.")
def caps(
    machine: str | None,
    device: str | None,
    kernel: str | None,
    assume: tuple[str, ...],
    requests: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show which features of an IOMMU a VMM may offer its guest, which it may not, and why.

    Each field of each ID register is forwarded, masked, the VMM's own, or needs something: software of the kernel,
    what firmware tables say, or to be turned on for the VM. Without --machine, DEVICE is one of this host, such as
    /dev/vfio/devices/vfio0.
    """
    from softiommu.vmm.capabilities import Capability, Request
    from softiommu.vmm.capabilities.report import capability, facts, lines, reports, request

    if machine is None and (device is None or kernel is not None):
        raise click.UsageError("expected --machine, or --device of this host without --kernel")
    taken = reduce(or_, map(capability, assume), Capability(0))
    asked = reduce(or_, map(request, requests), Request(0))
    seen = _of_host(str(device)) if machine is None else _of_machine(machine, device, kernel)
    found = reports(seen, taken, asked)
    if as_json:
        print(json.dumps([facts(report) for report in found], indent=2))
        return
    print("\n\n".join("\n".join(lines(report)) for report in found))


def _of_host(device: str) -> list[tuple[str, Seen]]:
    from softiommu.api import open_kernel

    try:
        with open_kernel() as iommufd:
            return [_probe(iommufd, device)]
    except OSError as error:
        raise ConfigError(f"{device} cannot be asked: {error.strerror}") from error


def _of_machine(name: str, device: str | None, kernel: str | None) -> list[tuple[str, Seen]]:
    from softiommu.api import open
    from softiommu.machine.assemble import machine

    made = machine(name, kernel, claim=False)
    # Nobody minds here whether a device could forge interrupts.
    made.services.unsafe_interrupts = True
    names = [shown.wired.pci.name for shown in made.vfio.devices] if made.vfio else []
    if not names:
        raise ConfigError(f"machine {made.description.name} has no device behind an IOMMU")
    with open(made) as iommufd:
        return [_probe(iommufd, one) for one in ([device] if device is not None else names)]


def _probe(iommufd: Iommufd, name: str) -> tuple[str, Seen]:
    from softiommu.vmm.capabilities import probe

    with iommufd.device(name) as device:
        return name, probe(iommufd, device)
