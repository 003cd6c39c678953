"""The command line. Each command is loaded when it is used."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from softiommu.errors import ConfigError

#: Command, its module and function, and the line that `--help` shows.
_COMMANDS = {
    "run": ("softiommu.cli.run:run", "Run a program on a machine in user space."),
    "guest": ("softiommu.cli.guest:guest", "Boot a guest of QEMU on a machine in user space."),
    "machine": ("softiommu.cli.machine:machine", "Show the machines there are."),
    "walk": ("softiommu.cli.walk:walk", "Show the way of one address through an IOMMU."),
    "caps": ("softiommu.cli.caps:caps", "Show what of an IOMMU a guest may be offered."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported at their first use, so that each starts as quickly as it can."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command's name."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, but an unknown command names what exists and the nearest."""
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            from softiommu.machine.reading import expected

            ctx.fail(f"unknown command {args[0]!r}: {expected(args[0], tuple(_COMMANDS))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="softiommu", prog_name="softiommu", message="%(prog)s %(version)s")
def cli() -> None:
    """Linux iommufd and the IOMMUs under it, in user space.

    \b
    softiommu run -- ./program        run a program that opens /dev/iommu, on a machine that has none
    softiommu guest                   see QEMU boot a guest on devices that exist only here
    softiommu machine list            which machines there are
    softiommu walk -m vtd -d edu0 -a 0x1000 --map 0x1000:0x1000    the way of one address through an IOMMU
    """


def main(argv: list[str] | None = None) -> Any:
    """The entry point: a wrong file or flag is told in a sentence and ends with status 2."""
    try:
        return cli.main(argv, prog_name="softiommu")
    except ConfigError as error:
        print(f"softiommu: {error}", file=sys.stderr)
        sys.exit(2)
