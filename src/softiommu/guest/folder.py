"""The folder that `make guests` prepares: what a guest boots."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from softiommu.errors import ConfigError

#: Where it is looked for.
DEFAULT = ".guests"
#: Written last: a folder without it is not whole.
_MADE = "versions"


class Folder(NamedTuple):
    """A kernel, and the archive that it unpacks as its root."""

    kernel: Path
    initrd: Path


def find(path: str | Path = DEFAULT) -> Folder:
    """The files in a folder. ConfigError: it was not prepared."""
    folder = Path(path).absolute()
    if not (folder / _MADE).is_file():
        raise ConfigError(
            f"there is no guest in {folder}\nhint: `make guests` prepares one in a checkout of softiommu (on Debian)"
        )
    return Folder(folder / "kernel", folder / "initrd")
