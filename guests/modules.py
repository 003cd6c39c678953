"""A kernel's modules: which a guest needs, what those need, and the list that modprobe reads (modules.dep)."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable, Mapping

#: What a module asks for by another name when it is used, and finds in some kernels' core.
_ALSO = {"ext4": ("crc32c_generic",)}


def name_of(path: str) -> str:
    """A module's name, from its file's: `-` and `_` are one."""
    return re.sub(r"\.ko(\.xz|\.zst|\.gz)?$", "", path.rpartition("/")[2]).replace("-", "_")


def unpacked(path: str, data: bytes) -> bytes:
    """The module itself. ValueError: it is packed in a way that is not known here."""
    if path.endswith(".ko"):
        return data
    if path.endswith(".ko.xz"):
        return lzma.decompress(data)
    raise ValueError(f"{path} is packed in an unknown way")


class Modules:
    """Modules of one kernel, by name. `packed` is every module's file by path; `builtin` are names in the kernel."""

    def __init__(self, packed: Mapping[str, bytes], builtin: Iterable[str]) -> None:
        self._packed = packed
        self._paths = {name_of(path): path for path in packed}
        self._builtin = set(builtin)
        self.loaded: dict[str, bytes] = {}
        self._needs: dict[str, list[str]] = {}

    def add(self, name: str) -> bool:
        """Take a module and all that it needs; False: this kernel has none of that name."""
        if name in self._builtin or name in self.loaded:
            return True
        if name not in self._paths:
            return False
        path = self._paths[name]
        data = self.loaded[name] = unpacked(path, self._packed[path])
        needs = [need.replace("-", "_") for need in _depends(data)]
        also = [need for need in _ALSO.get(name, ()) if self.add(need)]
        missing = [need for need in needs if not self.add(need)]
        if missing:
            raise ValueError(f"module {name} needs {', '.join(missing)}, which this kernel has not")
        self._needs[name] = [need for need in (*needs, *also) if need in self.loaded]
        return True

    def list(self) -> str:
        """The text of modules.dep: each file, and every file that is loaded before it."""
        return "".join(f"{name}.ko:{''.join(f' {need}.ko' for need in self._before(name))}\n" for name in self.loaded)

    def _before(self, name: str) -> list[str]:
        """What a module needs, directly or not; what is needed first comes last, as depmod has it."""
        found: list[str] = []
        for need in self._needs[name]:
            for each in (need, *self._before(need)):
                if each in found:
                    found.remove(each)
                found.append(each)
        return found


def _depends(module: bytes) -> list[str]:
    """The names in a module's `depends`."""
    for text in module.split(b"\0"):
        if text.startswith(b"depends="):
            return [name for name in text[8:].decode().split(",") if name]
    return []
