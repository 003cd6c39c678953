"""QEMU 11's folder: what of a package goes where, and that all of it is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from requirements import need
from softiommu.errors import ConfigError
from softiommu.guest import nested

GUESTS = Path(__file__).parents[2] / "guests"
FILES = {
    "usr/bin/qemu-system-x86_64": ("bin/qemu-system-x86_64", 0o755),
    "usr/lib/x86_64-linux-gnu/libone.so.1.2": ("lib/libone.so.1.2", 0o644),
    "usr/lib/x86_64-linux-gnu/qemu/module.so": (None, 0o644),
    "usr/share/seabios/bios.bin": ("firmware/bios.bin", 0o644),
    "usr/lib/ipxe/qemu/efi-one.rom": ("firmware/efi-one.rom", 0o644),
    "usr/share/doc/one/copyright": (None, 0o644),
}


@pytest.fixture
def qemu11_module(monkeypatch):
    monkeypatch.syspath_prepend(str(GUESTS))
    import qemu11

    yield qemu11
    for name in ("qemu11", "packages"):
        sys.modules.pop(name, None)


@pytest.fixture
def package(tmp_path):
    """A package with these files, and a link to a library."""
    tree = tmp_path / "tree"
    for name, (_, mode) in FILES.items():
        file = tree / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
        file.chmod(mode)
    (tree / "usr/lib/x86_64-linux-gnu/libone.so.1").symlink_to("libone.so.1.2")
    (tree / "usr/share/qemu").mkdir()
    (tree / "usr/share/qemu/efi-one.rom").symlink_to("../../lib/ipxe/qemu/efi-one.rom")
    control = tree / "DEBIAN/control"
    control.parent.mkdir()
    control.write_text("Package: one\nVersion: 1\nArchitecture: amd64\nMaintainer: nobody <n@o>\nDescription: one\n")
    control.parent.chmod(0o755)
    subprocess.run([need("dpkg-deb"), "-b", tree, tmp_path / "one.deb"], check=True, stdout=subprocess.DEVNULL)
    return tmp_path / "one.deb"


def test_a_packages_files_go_to_their_places(tmp_path, package, qemu11_module):
    folder = tmp_path / "made"
    for place in ("bin", "lib", "firmware"):
        (folder / place).mkdir(parents=True)
    qemu11_module.unpack(package, folder)
    placed = {place: (name, mode) for name, (place, mode) in FILES.items() if place}
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert set(found) == {*placed, "lib/libone.so.1"}
    for place, (name, mode) in placed.items():
        assert found[place].read_text() == name
        assert found[place].stat().st_mode & 0o777 == mode
    assert os.readlink(folder / "lib/libone.so.1") == "libone.so.1.2"


def test_a_file_that_is_no_package_is_told(tmp_path, qemu11_module):
    wrong = tmp_path / "wrong.deb"
    wrong.write_text("no package")
    with pytest.raises((qemu11_module.PackageError, qemu11_module.tarfile.TarError)):
        qemu11_module.unpack(wrong, tmp_path)


def test_qemu_11_starts_and_has_what_nesting_needs(qemu11):
    shown = subprocess.run([qemu11, "-device", "intel-iommu,help"], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert {"fsts", "scalable-mode", "pasid-bits"} <= {line.split("=")[0].strip() for line in shown.stdout.splitlines()}


def test_a_folder_that_was_not_prepared_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no QEMU 11 in .*/qemu11\nhint: `make guests`"):
        nested.program(tmp_path)
