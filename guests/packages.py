"""Debian's packages: found and fetched by the machine's own apt, unpacked without root."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from functools import cmp_to_key
from pathlib import Path


class PackageError(Exception):
    """What is missing, and what to do about it."""


def check_tools() -> None:
    """PackageError: this is no Debian."""
    lacking = [tool for tool in ("apt-get", "apt-cache", "dpkg-deb") if shutil.which(tool) is None]
    if lacking:
        raise PackageError(
            f"guests are made of Debian's packages, and {', '.join(lacking)} is not installed\n"
            "hint: a folder that was made on another machine works here too: copy it to .guests"
        )


def newest_kernel() -> tuple[str, str]:
    """Package and version of the newest kernel image for PCs that apt knows. PackageError."""
    shown = _apt("apt-cache", "show", "linux-image-amd64")
    found = re.findall(r"^Depends: (linux-image-\S+) \(= (\S+)\)", shown, re.M)
    if not found:
        raise PackageError("apt knows no package linux-image-amd64\nhint: apt-get update, as root")
    return max(found, key=cmp_to_key(lambda one, other: _order(one[1], other[1])))


def known(*names: str) -> str:
    """The first of these packages that apt knows. PackageError."""
    for name in names:
        if re.search(r"^Package: ", _apt("apt-cache", "show", name), re.M):
            return name
    raise PackageError(f"apt knows no package {' or '.join(names)}\nhint: apt-get update, as root")


def fetch(packages: list[str], folder: Path) -> list[Path]:
    """Download packages (NAME or NAME=VERSION) into an empty folder; -> the files. PackageError."""
    command = ["apt-get", "download", "-q", *(("-o", "APT::Sandbox::User=root") if not os.geteuid() else ()), *packages]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    files = sorted(folder.glob("*.deb"))
    if done.returncode or len(files) != len(packages):
        raise PackageError(f"{done.stderr.strip() or 'apt-get download failed'}\nhint: apt-get update, as root")
    return files


def files_in(package: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Path and contents of those files in a package whose whole path matches. PackageError: it cannot be unpacked."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as unpacking:
        try:
            with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    if member.isfile() and wanted.fullmatch(name):
                        content = archive.extractfile(member)
                        assert content is not None, "a regular file has contents"
                        yield name, content.read()
        except tarfile.TarError as error:
            raise PackageError(f"{package.name} cannot be unpacked: {error}") from error


def _apt(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def _order(one: str, other: str) -> int:
    """Which version is newer, by dpkg's rules."""
    older = subprocess.run(["dpkg", "--compare-versions", one, "lt", other]).returncode == 0
    return -1 if older else 1
