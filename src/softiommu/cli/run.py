"""`softiommu run`: front door 1."""

from __future__ import annotations

import sys
from typing import TextIO

import click

from softiommu.errors import ConfigError
from softiommu.iommufd.kernels import DEFAULT, KERNELS

_KERNELS = ", ".join(f"{name} (default)" if name == DEFAULT else name for name in KERNELS)


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option(
    "--machine", "-m", metavar="NAME|FILE", default="nodev", show_default=True, help="A machine's name, or a TOML file."
)
@click.option("--kernel", "-k", default=None, help=f"The kernel version to present: {_KERNELS}.")
@click.option("--log", "-l", metavar="FILE", help="Write each call as one line to FILE (-: standard error).")
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED)
def run(machine: str, kernel: str | None, log: str | None, program: tuple[str, ...]) -> None:
    """Run PROGRAM on a machine in user space.

    PROGRAM is not changed and not told: it opens /dev/iommu and works. Its exit code, signals, terminal and standard
    streams are its own. Exit codes of softiommu itself: 2 wrong options, 126 PROGRAM cannot be executed, 127 not
    found, 70 a bug of softiommu.
    """
    from softiommu.machine.assemble import machine as assemble
    from softiommu.run import supervisor
    from softiommu.run.log import CallLog

    world = assemble(machine, kernel)
    world.on_message = lambda line: print(f"softiommu: kernel: {line}", file=sys.stderr, flush=True)
    call_log = None
    if log is not None:
        call_log = CallLog(_open_log(log))
        world.services.on_call = call_log.on_call
        world.on_refusal = call_log.refusal
    sys.exit(supervisor.run(world, list(program), supervisor.RunOptions(log=call_log)))


def _open_log(path: str) -> TextIO:
    if path == "-":
        return sys.stderr
    try:
        return open(path, "w", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"the log {path} cannot be written: {error.strerror}") from error
