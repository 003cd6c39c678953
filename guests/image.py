"""The kernel itself, without the loader in front of it: QEMU starts that a second sooner (the PVH entry)."""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess

_SECTOR = 512
#: setup_sects, payload_offset and payload_length of the header (Documentation/arch/x86/boot.rst).
_SETUP_SECTS, _PAYLOAD = 0x1F1, 0x248
#: After the payload: the length of what is in it.
_LENGTH = 4


def unpacked(image: bytes) -> bytes | None:
    """The ELF file in a bzImage; None where there is no program for its packing."""
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    start = ((image[_SETUP_SECTS] or 4) + 1) * _SECTOR + offset
    payload = image[start : start + length - _LENGTH]
    if payload.startswith(b"\xfd7zXZ"):
        return lzma.decompress(payload)
    if payload.startswith(b"\x1f\x8b"):
        return gzip.decompress(payload)
    tool = shutil.which("zstd")
    if payload.startswith(b"\x28\xb5\x2f\xfd") and tool is not None:
        return subprocess.run([tool, "-dc"], input=payload, capture_output=True, check=True).stdout
    return None
