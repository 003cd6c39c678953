"""QEMU 11 with an Intel IOMMU whose first-stage tables, the guest's own, the machine's IOMMU walks.

The options, and why (docs/guests.md has more):

* `scalable-mode=on,fsts=on`: the guest keeps tables that a machine can walk. `KERNEL_LINE` lets it use them.
* `caching-mode=on` (of `qemu.virtual_vtd`): QEMU asks for it wherever it passes on a device. It means nothing to a
  first stage: Linux does not invalidate what it maps there.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from softiommu.errors import ConfigError
from softiommu.guest import qemu
from softiommu.guest.folder import DEFAULT

#: Words for the guest's kernel.
KERNEL_LINE = "intel_iommu=on,sm_on"
_FOLDER = "qemu11"
_MADE = "versions"
#: The first QEMU that passes a guest's tables on. Seconds for one to tell which it is.
_FIRST, _PATIENCE = 11, 20


def program(path: str | Path = DEFAULT) -> str:
    """QEMU 11 in a folder that `make guests` prepared. ConfigError: it was not."""
    folder = Path(path).absolute() / _FOLDER
    if not (folder / _MADE).is_file():
        raise ConfigError(
            f"there is no QEMU 11 in {folder}\nhint: `make guests` prepares it in a checkout of softiommu (on Debian)"
        )
    return str(folder / qemu.PROGRAM)


def check(path: str) -> None:
    """Refuse a QEMU that says that it is too old. ConfigError."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return
    found = re.match(r"QEMU emulator version ((\d+)[\d.]*)", done.stdout)
    if found is not None and int(found[2]) < _FIRST:
        raise ConfigError(
            f"--viommu nested needs QEMU {_FIRST}, and {path} is QEMU {found[1]}: its intel-iommu passes no tables on\n"
            f"hint: without --qemu the one is taken that `make guests` prepares"
        )


def virtual_vtd(*features: str) -> list[str]:
    """Options for the IOMMU that the guest sees. They must stand before those of devices passed on."""
    return qemu.virtual_vtd("scalable-mode=on", "fsts=on", *features)
