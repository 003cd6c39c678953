"""What a guest boots, made of Debian's packages: a kernel, and a first root with busybox, modules and e2fsprogs.

    python guests/prepare.py [FOLDER]          # .guests when left out; no root is needed

The folder gets `kernel`, `initrd`, and `versions`, which is written last: the packages that it was made of.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from archive import Archive
from image import unpacked
from modules import Modules, name_of
from packages import PackageError, check_tools, fetch, files_in, known, newest_kernel

#: Drivers and file systems that a guest's job may load.
_MODULES = ("nvme", "virtio_blk", "ioatdma", "ext4", "qemu_fw_cfg")
#: Tools of e2fsprogs by the names that a guest calls them (busybox's shell takes others for its own), and the
#: libraries that they load.
_TOOLS = {"mke2fs": "mkfs.ext4", "e2fsck": "fsck.ext4"}
_LIBRARIES = ("libext2fs.so.2", "libe2p.so.2", "libcom_err.so.2", "libblkid.so.1", "libuuid.so.1", "libc.so.6")
_LOADER = "ld-linux-x86-64.so.2"

_KERNEL_FILES = re.compile(r"boot/vmlinuz-.*|(usr/)?lib/modules/[^/]+/(modules\.builtin|kernel/.*\.ko(\.\w+)?)")
_RELEASE = re.compile(r"lib/modules/([^/]+)/")
_HERE = Path(__file__).parent


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(".guests"))
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        check_tools()
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            prepare(folder, Path(scratch))
    except (PackageError, ValueError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"prepare: {error}")


def prepare(folder: Path, scratch: Path) -> None:
    """Fetch the packages and write the files. PackageError, ValueError."""
    kernel, version = newest_kernel()
    tools = [
        "busybox-static",
        "e2fsprogs",
        known("libext2fs2t64", "libext2fs2"),
        "libcom-err2",
        "libblkid1",
        "libuuid1",
    ]
    packages = fetch([f"{kernel}={version}", *tools, "libc6"], scratch)
    image = next(package for package in packages if package.name.startswith("linux-image-"))
    root = Archive()
    root.folders(("dev", "proc", "sys", "tmp", "mnt", "root"))
    root.device("dev/console", 5, 1)
    root.file("init", (_HERE / "init").read_bytes(), executable=True)
    for package in packages:
        if package != image:
            _add_tools(root, package)
    (folder / "kernel").write_bytes(_add_kernel(root, image))
    (folder / "initrd").write_bytes(root.close())
    (folder / "versions").write_text("".join(f"{package.stem}\n" for package in packages))
    print(f"{folder}: {kernel} {version}, {(folder / 'initrd').stat().st_size >> 20} MiB of root", file=sys.stderr)


def _add_kernel(root: Archive, package: Path) -> bytes:
    """Put the modules into the root; -> the kernel."""
    files = dict(files_in(package, _KERNEL_FILES))
    image = next(data for path, data in files.items() if path.startswith("boot/"))
    builtin = next(data for path, data in files.items() if path.endswith("modules.builtin"))
    paths = {path: data for path, data in files.items() if "/kernel/" in path}
    found = _RELEASE.search(next(iter(paths)))
    assert found is not None, "the pattern of the files says so"
    modules = Modules(paths, map(name_of, builtin.decode().split()))
    lacking = [name for name in _MODULES if not modules.add(name)]
    if lacking:
        raise PackageError(f"{package.name} has no module {', '.join(lacking)}")
    folder = f"lib/modules/{found[1]}"
    root.file(f"{folder}/modules.dep", modules.list().encode())
    for name, data in modules.loaded.items():
        root.file(f"{folder}/{name}.ko", data)
    return unpacked(image) or image


def _add_tools(root: Archive, package: Path) -> None:
    """Busybox under all its names, e2fsprogs, and libraries."""
    names = "|".join(map(re.escape, ("busybox", *_TOOLS, *_LIBRARIES, _LOADER)))
    folders, version = r"(usr/)?(s?bin|lib|lib64|lib/x86_64-linux-gnu)/", r"(\.[\d.]+)?"
    for path, data in files_in(package, re.compile(rf"{folders}({names}){version}")):
        name = path.rpartition("/")[2]
        if name == _LOADER:
            root.file(f"lib64/{name}", data, executable=True)
        elif ".so." in name:
            library = next(each for each in _LIBRARIES if name.startswith(each))
            root.file(f"lib/{library}", data)
        else:
            root.file(f"bin/{_TOOLS.get(name, name)}", data, executable=True)
        if name == "busybox":
            for applet in _applets(data, package.parent):
                root.link(f"sbin/{applet}" if applet == "modprobe" else f"bin/{applet}", "/bin/busybox")


def _applets(busybox: bytes, scratch: Path) -> list[str]:
    """The commands in a busybox: it tells."""
    program = scratch / "busybox"
    program.write_bytes(busybox)
    program.chmod(0o755)
    done = subprocess.run([program, "--list"], capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split() if name != "busybox"]


if __name__ == "__main__":
    main()
