"""`softiommu guest`: a guest of QEMU for people who want to see one."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from softiommu.errors import ConfigError
from softiommu.guest import nested, qemu
from softiommu.guest.folder import DEFAULT, find

if TYPE_CHECKING:
    from softiommu.guest.offer import Offer
    from softiommu.machine.assemble import Machine

#: Models of devices that the guest's job has drivers for.
_DRIVEN = ("nvme", "ioat")
_SCRIPT = Path(qemu.__file__).with_name("job.sh")
#: Options for the console of a shell, and of a job, which is passed on and has a place to say how it went.
_SHELL = ("-serial", "mon:stdio")
_JOB = (
    *("-chardev", "stdio,id=out,signal=on", "-serial", "chardev:out"),
    *("-fw_cfg", f"name=opt/org.softiommu/job,file={_SCRIPT}", "-device", qemu.EXIT),
)
#: MiB. The drives of the machines that are built in take 50.
_MOST = 4096


class Wishes(NamedTuple):
    """What the options say."""

    viommu: str
    group: bool
    private: bool
    mib: int
    shell: bool
    program: str | None
    folder: str

    @property
    def default_machine(self) -> str:
        """The machine, where none is named."""
        return "vtd-nested" if self.viommu == "nested" else "vtd"


@click.command()
@click.option("--machine", "-m", metavar="NAME|FILE", help="A machine's name, or a TOML file. [default: vtd]")
@click.option(
    "--viommu",
    type=click.Choice(["none", "shadow", "nested"]),
    default="none",
    show_default=True,
    help="Which IOMMU the guest sees: none; Intel's, whose mappings QEMU makes on the machine, too (shadow); Intel's, "
    "whose tables the machine's IOMMU walks (nested; needs QEMU 11).",
)
@click.option("--group", is_flag=True, help="Pass devices on by VFIO groups, without iommufd.")
@click.option("--private", is_flag=True, help="The guest's RAM is private memory of QEMU, not a memfd.")
@click.option("--mib", type=click.IntRange(1, _MOST), default=16, show_default=True, help="MiB to write to the drive.")
@click.option("--shell", is_flag=True, help="A shell in the guest instead of its job; `poweroff -f` ends it.")
@click.option("--print", "only_print", is_flag=True, help="Print the command that would be run, and do nothing.")
@click.option("--log", "-l", metavar="FILE", help="Write each call of QEMU as one line to FILE (-: standard error).")
@click.option("--qemu", "program", metavar="PROGRAM", help="Another QEMU than the one that is installed.")
@click.option(
    "--guests", "folder", metavar="FOLDER", default=DEFAULT, show_default=True, help="What `make guests` made."
)
def guest(machine: str | None, log: str | None, only_print: bool, **options: object) -> None:
    """Boot a guest of an unmodified QEMU on a machine in user space.

    The guest, a Debian kernel, finds the machine's NVMe drive or I/OAT engine and puts it to work. The last lines tell
    what was mapped, translated and invalidated for that. `make guests` prepares what the guest boots.

    Exit codes: 0 the guest did its job, or was a shell that powered off; 1 the guest failed; 2 wrong options, a machine
    that a guest cannot have, or something is not installed; 70 a bug of softiommu; 128 and a signal's number, where one
    ended QEMU.
    """
    from softiommu.machine.assemble import machine as assemble

    wishes = Wishes(**options)  # type: ignore[arg-type]  # click made them what they are
    world = assemble(machine or wishes.default_machine, claim=not only_print)
    command = _command(world, wishes)
    if only_print:
        name = shlex.quote(machine or wishes.default_machine)
        print(f"softiommu run --machine {name} --unlimited-memlock -- {shlex.join(command)}")
        return
    if sys.stdout.isatty() or wishes.shell:
        print(f"softiommu: QEMU starts on machine {world.description.name}", file=sys.stderr)
    sys.exit(_run(world, command, log, job=not wishes.shell))


def _command(world: Machine, wishes: Wishes) -> list[str]:
    """QEMU's command line. ConfigError: something is missing, or the machine cannot give what the guest is to have."""
    devices = [device for device in world.description.devices if device.model in _DRIVEN]
    if not devices:
        raise ConfigError(
            f"machine {world.description.name} has no device that the guest can drive: expected one of model "
            f"{' or '.join(_DRIVEN)}\nhint: `softiommu machine list` tells which machines there are"
        )
    if wishes.viommu == "nested":
        _check_nesting(world, wishes, {device.iommu for device in devices})
    from softiommu.guest import offer

    offered = offer.ask(world, [device.name for device in devices], wishes.viommu == "nested")
    folder, program = find(wishes.folder), _program(wishes)
    lines = {"none": "", "shadow": "intel_iommu=on", "nested": nested.KERNEL_LINE}
    passed = [qemu.passed(device.address, device.name, iommufd=not wishes.group) for device in devices]
    return qemu.Guest(
        folder=folder,
        job="shell" if wishes.shell else "script",
        program=(program,),
        memory=min(qemu.MEMORY, offered.memory),
        shared=not wishes.private,
        kernel_line=f"quiet mib={wishes.mib} {lines[wishes.viommu]}".rstrip(),
        options=[
            *(_SHELL if wishes.shell else _JOB),
            *_virtual(wishes.viommu, offered),
            *([] if wishes.group else qemu.iommufd()),
            *[word for device in passed for word in ("-device", device)],
        ],
    ).command()


def _virtual(viommu: str, offered: Offer) -> list[str]:
    """Options for the guest's own IOMMU: no wider than the machine's, and without pages that this has not."""
    if viommu == "shadow":
        return qemu.virtual_vtd(*["aw-bits=39"] * (offered.width < 48))
    if viommu == "nested":
        return nested.virtual_vtd(*["fs1gp=off"] * (not offered.gigabyte_pages))
    return []


def _check_nesting(world: Machine, wishes: Wishes, behind: set[str | None]) -> None:
    """ConfigError: QEMU would refuse it."""
    if wishes.group:
        raise ConfigError("--viommu nested binds tables by iommufd, which --group leaves out: expected one of the two")
    other = next((iommu for iommu in world.description.iommus if iommu.name in behind and iommu.model != "vtd"), None)
    if other is not None:
        raise ConfigError(
            f"--viommu nested needs an IOMMU of model vtd, and {other.name} of machine {world.description.name} is of "
            f"model {other.model}\nhint: --machine vtd-nested, or vtd-paged, which nests in software"
        )


def _program(wishes: Wishes) -> str:
    """Which QEMU. ConfigError: it is not there, or too old."""
    if wishes.program is None and wishes.viommu == "nested":
        return nested.program(wishes.folder)
    found = shutil.which(wishes.program or qemu.PROGRAM)
    if found is None:
        raise ConfigError(
            f"{wishes.program or qemu.PROGRAM} is not installed\nhint: Debian's package {qemu.PACKAGE} has it; "
            "that of bookworm knows no iommufd, that of bookworm-backports does"
        )
    if wishes.viommu == "nested":
        nested.check(found)
    return found


def _run(world: Machine, command: list[str], log: str | None, job: bool) -> int:
    """Run QEMU, and tell what was counted, and what went wrong; -> the exit code."""
    from softiommu.cli.run import watch
    from softiommu.guest import ending, report
    from softiommu.machine.counts import Counts

    call_log = watch(world, log)
    world.physical.accounts.unlimited = True
    counts = Counts(world)
    # The supervisor leaves standard output to the program.
    with os.fdopen(os.dup(1), "w") as out:
        end = ending.run(world, command, call_log)
        for line in report.lines(counts.told()):
            print(f"softiommu: {line}", file=out)
    code, why = end.told(job)
    if why is not None:
        print(f"softiommu: {why}", file=sys.stderr)
    return code
