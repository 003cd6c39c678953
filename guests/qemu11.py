"""QEMU 11.1 with all that it loads, of Debian's packages, in a folder of its own: nothing is installed, no root needed.

    python guests/qemu11.py [FOLDER]          # .guests/qemu11 when left out

Only QEMU from 11.0 on has a guest's tables walked by the host's IOMMU. Debian has it in the backports of a release that
may be newer than the machine's, so it comes with libraries and a loader of its own. The folder's `qemu-system-x86_64`
starts it; `versions`, which is written last, names the packages.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from packages import PackageError, check_tools

RELEASE = "trixie"
PACKAGE = "qemu-system-x86"
PROGRAM = "qemu-system-x86_64"
VERSION = "version 11."

#: Where in the folder a packaged file goes, by its path.
_PLACES = {
    "lib": re.compile(r"usr/lib/x86_64-linux-gnu/[^/]+"),
    "firmware": re.compile(r"usr/(share/seabios|share/qemu|lib/ipxe/qemu)/[^/]+\.(bin|rom)"),
    "bin": re.compile(rf"usr/bin/{PROGRAM}"),
}
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
#: An apt that knows no installed packages, so that it takes a package with everything under it.
_APT = """\
Dir::State "{at}/state";
Dir::State::status "{at}/status";
Dir::Cache "{at}/cache";
Dir::Etc::sourcelist "{at}/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "-";
Dir::Etc::preferencesparts "-";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Debug::NoLocking "true";
"""
_START = f"""\
#!/bin/sh
# QEMU with the libraries and the firmware beside it.
here=${{0%/*}}
exec "$here/lib/ld-linux-x86-64.so.2" --library-path "$here/lib" "$here/bin/{PROGRAM}" -L "$here/firmware" "$@"
"""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(".guests/qemu11"))
    folder = parser.parse_args().folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        check_tools()
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            prepare(folder, Path(scratch))
    except (PackageError, OSError, tarfile.TarError) as error:
        sys.exit(f"qemu11: {error}")


def prepare(folder: Path, scratch: Path) -> None:
    """Fetch the packages and unpack what of them QEMU loads. PackageError."""
    packages = fetch(scratch)
    (folder / "versions").unlink(missing_ok=True)
    for place in _PLACES:
        shutil.rmtree(folder / place, ignore_errors=True)
        (folder / place).mkdir()
    for package in packages:
        unpack(package, folder)
    start = folder / PROGRAM
    start.write_text(_START)
    start.chmod(0o755)
    told = subprocess.run([start, "--version"], capture_output=True, text=True)
    if VERSION not in told.stdout:
        raise PackageError(f"{start} does not start, or is no QEMU 11: {told.stdout}{told.stderr}")
    (folder / "versions").write_text("".join(f"{package.stem}\n" for package in packages))
    print(f"{folder}: {told.stdout.splitlines()[0]}, of {len(packages)} packages", file=sys.stderr)


def fetch(scratch: Path) -> list[Path]:
    """Download QEMU and everything it depends on. PackageError."""
    (scratch / "status").touch()
    (scratch / "state/lists/partial").mkdir(parents=True)
    (scratch / "cache/archives/partial").mkdir(parents=True)
    suites, mirror = (RELEASE, f"{RELEASE}-backports"), _mirror()
    lines = [f"deb [signed-by={_KEYRING}] {mirror} {suite} main\n" for suite in suites]
    (scratch / "sources.list").write_text("".join(lines))
    configuration = scratch / "apt.conf"
    configuration.write_text(_APT.format(at=scratch))
    environment = {**os.environ, "APT_CONFIG": str(configuration)}
    take = ["apt-get", "install", "-q", "-y", "--download-only", "-t", suites[-1], PACKAGE]
    for command in (["apt-get", "update", "-q"], take):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise PackageError(f"{' '.join(command)}: {done.stderr.strip()}\nhint: is {suites[-1]} on {mirror}?")
    return sorted((scratch / "cache/archives").glob("*.deb"))


def _mirror() -> str:
    """Where the machine's own apt has Debian from. PackageError."""
    command = [
        "apt-get",
        "indextargets",
        "--format",
        "$(RELEASE) $(REPO_URI)",
        "Created-By: Packages",
        "Origin: Debian",
    ]
    told = subprocess.run(command, capture_output=True, text=True).stdout
    for release, uri in map(str.split, told.splitlines()):
        if "-" not in release:  # updates and security fixes are elsewhere
            return uri
    raise PackageError("apt knows no mirror of Debian\nhint: apt-get update, as root")


def unpack(package: Path, folder: Path) -> None:
    """Put a package's files in their places. PackageError: it cannot be read."""
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as unpacking,
        tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive,
    ):
        for member, at in _placed(archive):
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None:
                (folder / at).write_bytes(content.read())
                (folder / at).chmod(member.mode)
            elif member.issym() and "/" not in member.linkname:
                (folder / at).unlink(missing_ok=True)
                (folder / at).symlink_to(member.linkname)
    if unpacking.returncode:
        raise PackageError(f"{package.name} cannot be unpacked")


def _placed(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str]]:
    """What of an archive has a place in the folder, and which."""
    for member in archive:
        path = member.name.removeprefix("./")
        for place, pattern in _PLACES.items():
            if pattern.fullmatch(path):
                yield member, f"{place}/{path.rpartition('/')[2]}"


if __name__ == "__main__":
    main()
