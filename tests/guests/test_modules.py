"""Which modules of a kernel go into a guest's first root, and in which order they are loaded. That what is written can
be booted, the guests show."""

import importlib.util
import lzma
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "guests" / "modules.py"
spec = importlib.util.spec_from_file_location("guests_modules", SCRIPT)
modules = importlib.util.module_from_spec(spec)
spec.loader.exec_module(modules)

PACKED = {
    "kernel/fs/ext4.ko.xz": lzma.compress(b"\x7fELF\0license=GPL\0depends=jbd2,crc16\0"),
    "kernel/fs/jbd2.ko.xz": lzma.compress(b"\x7fELF\0depends=\0"),
    "kernel/lib/crc16.ko": b"\x7fELF\0depends=crc-base\0",
    "kernel/lib/crc-base.ko": b"\x7fELF\0depends=\0",
    "kernel/crypto/crc32c_generic.ko": b"\x7fELF\0depends=\0",
    "kernel/lonely.ko": b"\x7fELF\0depends=gone\0",
    "kernel/new.ko.zst": b"\x28\xb5\x2f\xfd",
}


def test_a_module_comes_with_what_it_needs_and_is_loaded_after_it():
    chosen = modules.Modules(PACKED, ["nvme"])
    assert chosen.add("ext4")
    assert set(chosen.loaded) == {"ext4", "jbd2", "crc16", "crc_base", "crc32c_generic"}
    lines = dict(line.split(":") for line in chosen.list().splitlines())
    # The file that is named last is loaded first.
    assert lines["ext4.ko"].split() == ["jbd2.ko", "crc16.ko", "crc_base.ko", "crc32c_generic.ko"]
    assert lines["crc16.ko"].split() == ["crc_base.ko"]
    assert lines["jbd2.ko"] == ""


def test_what_the_kernel_has_in_its_core_needs_no_module():
    chosen = modules.Modules(PACKED, ["nvme"])
    assert chosen.add("nvme")
    assert chosen.loaded == {}
    assert not chosen.add("ioatdma")


def test_what_cannot_be_loaded_is_told():
    with pytest.raises(ValueError, match="module lonely needs gone, which this kernel has not"):
        modules.Modules(PACKED, []).add("lonely")
    with pytest.raises(ValueError, match=r"new\.ko\.zst is packed in an unknown way"):
        modules.Modules(PACKED, []).add("new")
