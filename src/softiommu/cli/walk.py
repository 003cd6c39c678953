"""`softiommu walk`: the way of one address."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from softiommu.errors import ConfigError

if TYPE_CHECKING:
    from softiommu.api.walk import Area


def _number(text: str) -> int:
    """A number in Python's notations: 4096, 0x1000. A usage error: it is none of 64 bits."""
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 64:
        raise click.BadParameter(f"{text!r} is no number from 0 to 2**64 - 1, such as 0x1000")
    return number


def _one(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    return None if value is None else _number(value)


def _pasid(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    pasid = _one(ctx, param, value)
    if pasid is not None and pasid >> 20:
        raise click.BadParameter(f"{pasid:#x} is too large: PASIDs have 20 bits")
    return pasid


def _areas(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[Area, ...]:
    return tuple(_area(value) for value in values)


def _area(text: str) -> Area:
    """IOVA:LENGTH, or IOVA:LENGTH:RIGHTS with r, w or rw. A usage error: it is not."""
    from softiommu.api.walk import Area

    parts = text.split(":")
    if len(parts) == 2:
        parts.append("rw")
    if len(parts) != 3 or parts[2] not in ("r", "w", "rw"):
        raise click.BadParameter(f"{text!r} is not IOVA:LENGTH or IOVA:LENGTH:r|w|rw")
    iova, length = _number(parts[0]), _number(parts[1])
    if not 0 < length <= 1 << 36:
        raise click.BadParameter(f"{length:#x} bytes are not mapped: expected 1 to 2**36")
    return Area(iova, length, "r" in parts[2], "w" in parts[2])


@click.command()
@click.option("--machine", "-m", metavar="NAME|FILE", required=True, help="A machine's name, or a TOML file.")
@click.option("--device", "-d", metavar="NAME|ADDRESS", required=True, help="A device of it.")
@click.option("--iova", "-a", callback=_one, metavar="NUMBER", required=True, help="The I/O address.")
@click.option("--pasid", callback=_pasid, metavar="NUMBER", default=None, help="The PASID of the request.")
@click.option("--write", is_flag=True, help="The device writes; else it reads.")
@click.option("--map", "areas", callback=_areas, multiple=True, metavar="IOVA:LENGTH[:r|w|rw]", help="Map this first.")
@click.option("--kernel", "-k", default=None, help="The kernel version whose driver fills the tables.")
@click.option("--json", "as_json", is_flag=True, help="The same for programs.")
def walk(
    machine: str,
    device: str,
    iova: int,
    pasid: int | None,
    write: bool,
    areas: tuple[Area, ...],
    kernel: str | None,
    as_json: bool,
) -> None:
    """Show the way of one address through an IOMMU: each structure and entry read, and where it leads.

    On a new machine nothing is mapped, and the device is attached to nothing: --map maps memory for it first. The
    exit code is 1 when the request is blocked.
    """
    from softiommu.api import walk as ways
    from softiommu.pagetable.kinds import READ, WRITE

    try:
        walked = ways.walk(machine, device, (iova, WRITE if write else READ, pasid), areas, kernel)
    except OSError as error:
        raise ConfigError(f"{device} cannot be attached, or memory not mapped: {error.strerror}") from error
    if as_json:
        print(json.dumps(ways.facts(walked), indent=2))
    else:
        print("\n".join(ways.lines(walked)))
    sys.exit(1 if walked.way.fault is not None else 0)
