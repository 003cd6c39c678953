"""UEFI firmware (OVMF, of an unmodified QEMU) boots from the NVMe controller by the firmware's own driver.

The drive's file is a FAT volume with a program at the path that firmware looks for. The program copies a file of the
volume by the firmware's calls, and ends QEMU; mtools then reads the copy from the drive's file.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from guests.disk import ADDRESSES, complaints, machine_with
from requirements import need
from softiommu.guest import qemu

MIB = 1 << 20
#: Where Debian's package ovmf has the firmware.
FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
EXIT_PORT, GOOD = 0xF4, 0x10
#: The firmware's interface has no red zone, no vector registers, and no loader that would resolve anything.
COMPILED = [
    *("-O1", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fpie", "-fno-ident", "-mno-red-zone"),
    *("-mgeneral-regs-only", "-fno-stack-protector", "-fcf-protection=none", "-fno-asynchronous-unwind-tables"),
]
#: A PE file, which says of itself that it is a UEFI application (10).
LINKED = ["-m", "i386pep", "--oformat", "pei-x86-64", "--subsystem", "10", "--image-base", "0", "--entry", "start"]


def firmware() -> list[str]:
    """Options for OVMF; without it the test skips, or fails where it must. What it would store is not kept."""
    if not FIRMWARE.is_file():
        if os.environ.get("SOFTIOMMU_REQUIRE_ALL"):
            pytest.fail(f"needs {FIRMWARE}, and SOFTIOMMU_REQUIRE_ALL is set")
        pytest.skip(f"needs {FIRMWARE} (apt install ovmf)")
    store = FIRMWARE.with_name("OVMF_VARS_4M.fd")
    return [
        *("-drive", f"if=pflash,format=raw,readonly=on,file={FIRMWARE}"),
        *("-drive", f"if=pflash,format=raw,snapshot=on,file={store}"),
    ]


def volume(file: Path, folder: Path, given: bytes) -> None:
    """Make a FAT volume in a drive's file: the program, and GIVEN."""
    source, program = Path(__file__).with_name("uefi.c"), folder / "program"
    (folder / "given").write_bytes(given)
    steps = [
        [need("cc"), *COMPILED, "-c", "-o", f"{program}.o", source],
        [need("ld"), *LINKED, "-o", program, f"{program}.o"],
        [need("mformat"), "-i", file, "::"],
        [need("mmd"), "-i", file, "::EFI", "::EFI/BOOT"],
        [need("mcopy"), "-i", file, program, "::EFI/BOOT/BOOTX64.EFI"],
        [need("mcopy"), "-i", file, folder / "given", "::GIVEN"],
    ]
    for step in steps:
        subprocess.run(step, check=True)


@pytest.mark.parametrize("mapped", [False, True], ids=["told of each doorbell", "BAR mapped"])
def test_ovmf_boots_from_the_drive_and_a_program_of_it_copies_a_file_there(tmp_path, mapped):
    options = firmware()
    given = random.Random(1).randbytes(MIB - 4321)
    machine, (file,) = machine_with(tmp_path, size=4 * MIB)
    volume(file, tmp_path, given)
    console = tmp_path / "console"
    command = [
        *(sys.executable, "-m", "softiommu.cli", "run", "--machine", str(machine), "--unlimited-memlock", "--"),
        *(need(qemu.PROGRAM), "-accel", "tcg", "-M", "q35", "-m", "128", "-nodefaults", "-display", "none"),
        *("-serial", f"file:{console}", "-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1"),
        *(*options, *qemu.iommufd(), "-device", qemu.passed(ADDRESSES[0], "nvme0", mapped=mapped) + ",bootindex=0"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    said = console.read_text(errors="replace")
    assert done.returncode == GOOD << 1 | 1, f"{done.stderr}\nconsole: {said}"
    assert 'starting Boot0001 "UEFI softiommu NVMe SOFTIOMMU0001 1"' in said
    assert "a program of the drive runs" in said
    assert complaints(done.stderr) == []
    copied = subprocess.run([need("mcopy"), "-n", "-i", file, "::COPY", "-"], capture_output=True, check=True).stdout
    assert copied == given
