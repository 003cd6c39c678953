"""The kernels compiled. Import this only where thousands of pages are wanted: it loads Numba.

The source is that of walk.py, nested.py, mapper.py and the formats: what they do as plain Python is the specification.
Numba keys its cache on the one file that holds a kernel and not on what the kernel calls, nor on whether bounds are
checked: so the cache folder is named by a hash of both.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.extending import overload, register_jitable

from softiommu.memory import physical
from softiommu.pagetable import formats, lane, mapper, nested, walk

F = TypeVar("F", bound=Callable[..., Any])

_FORMAT = ("load", "rights", "used", "leaf", "link", "run_step", "dirty", "clean")
_ARM = ("contiguous_lg2", "_address", "_placed", "_table_limits", "_restrict", "_stage2_rights")
_WALK = ("index", "span_lg2", "skipped", "reach", "outside", "entry", "grant", "unset", "after", "one_stage")
_MAPPER = (
    *("best_size", "until_larger", "table_for", "fill", "lowest", "record", "clear", "prune"),
    *("any_dirty", "harvest_table"),
)


def cache_folder() -> str:
    """Where compiled kernels of exactly these sources are kept."""
    digest = hashlib.sha256(os.environ.get("NUMBA_BOUNDSCHECK", "").encode())
    for path in sorted([*Path(__file__).parent.rglob("*.py"), Path(physical.__file__)]):
        digest.update(path.read_bytes())
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return f"{base}/softiommu/{digest.hexdigest()[:16]}"


def kernel(function: F) -> F:
    """`function` compiled, without the interpreter's lock. Kept for the next process where there is a place to."""
    return cast(F, numba.njit(cache=_can_keep(cache_folder()), nogil=True)(function))


def _can_keep(folder: str) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _register() -> None:
    for module, names, forced in (
        *((module, _FORMAT, False) for module in formats.MODULES),
        (formats.arm64, _ARM, False),
        # LLVM finds these too large for their callers. Told otherwise, a walk takes 28 ns, not 64; nested 310, not 600.
        (formats, _FORMAT, True),
        (walk, _WALK, True),
        (lane, ("lane_walk",), True),
        (nested, ("two_stages", "first_of_two", "_fetch", "_fetch_want"), False),
        (mapper, _MAPPER, False),
    ):
        for name in names:
            if hasattr(module, name):
                register_jitable(forceinline=forced)(getattr(module, name))


@overload(mapper.is_empty)
def _is_empty(mem: Any, table: Any, entries: Any) -> Any:
    def loop(mem: Any, table: Any, entries: Any) -> bool:
        for at in range(table >> 3, (table >> 3) + entries):  # noqa: SIM110 - compiled code knows no generators
            if mem.words[at]:
                return False
        return True

    return loop


vars(numba.config)["CACHE_DIR"] = cache_folder()
_register()
walk_many = kernel(walk.walk_many)
nested_many = kernel(nested.nested_many)
map_range = kernel(mapper.map_range)
unmap_range = kernel(mapper.unmap_range)
harvest_range = kernel(mapper.harvest_range)
lane_many = kernel(lane.lane_many)
lane_nested_many = kernel(lane.lane_nested_many)
