"""`softiommu run`: front door 1."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

import click

from softiommu.errors import ConfigError
from softiommu.iommufd.kernels import DEFAULT, KERNELS

if TYPE_CHECKING:
    from softiommu.machine.assemble import Machine
    from softiommu.run.log import CallLog

_KERNELS = ", ".join(f"{name} (default)" if name == DEFAULT else name for name in KERNELS)


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option(
    "--machine", "-m", metavar="NAME|FILE", default="nodev", show_default=True, help="A machine's name, or a TOML file."
)
@click.option("--kernel", "-k", default=None, help=f"The kernel version to present: {_KERNELS}.")
@click.option("--log", "-l", metavar="FILE", help="Write each call as one line to FILE (-: standard error).")
@click.option("--counts", "-c", metavar="FILE", help="Write what was counted, as JSON, when PROGRAM has ended.")
@click.option("--unlimited-memlock", is_flag=True, help="Let PROGRAM map more than its user may lock (ulimit -l).")
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    machine: str,
    kernel: str | None,
    log: str | None,
    counts: str | None,
    unlimited_memlock: bool,
    program: tuple[str, ...],
) -> None:
    """Run PROGRAM on a machine in user space.

    PROGRAM is not changed and not told: it opens /dev/iommu and works. Its exit code, signals, terminal and standard
    streams are its own. Exit codes of softiommu itself: 2 wrong options, 126 PROGRAM cannot be executed, 127 not
    found, 70 a bug of softiommu.
    """
    from softiommu.machine.assemble import machine as assemble
    from softiommu.run import supervisor

    world = assemble(machine, kernel)
    world.physical.accounts.unlimited = unlimited_memlock
    options = supervisor.RunOptions(log=watch(world, log))
    if counts is not None:
        options = options._replace(on_end=_counting(world, _open(counts, "file of counts")))
    sys.exit(supervisor.run(world, list(program), options))


def watch(world: Machine, log: str | None) -> CallLog | None:
    """Show what the machine's kernel prints; -> the log of calls, where one is wanted. ConfigError: it has no place."""
    from softiommu.run.log import CallLog

    world.on_message = lambda line: print(f"softiommu: kernel: {line}", file=sys.stderr, flush=True)
    if log is None:
        return None
    call_log = CallLog(_open(log, "log"))
    world.services.on_call = call_log.on_call
    world.on_refusal = call_log.refusal
    return call_log


def _counting(world: Machine, out: TextIO) -> Callable[[], None]:
    """Count what is done on a machine from now on; -> a function that writes it."""
    from softiommu.machine.counts import Counts

    counts = Counts(world)

    def write() -> None:
        json.dump(counts.told(), out, indent=2)
        print(file=out, flush=True)

    return write


def _open(path: str, what: str) -> TextIO:
    if path == "-":
        return sys.stderr
    try:
        return open(path, "w", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"the {what} {path} cannot be written: {error.strerror}") from error
