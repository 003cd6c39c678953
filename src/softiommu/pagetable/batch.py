"""Many translations at once, arrays in and arrays out: what a replay of a trace runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from softiommu.pagetable import nested, walk
from softiommu.pagetable.kinds import ASK, Table
from softiommu.pagetable.nested import Stage, nested_walk

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from softiommu.memory.physical import PhysicalMemory

#: Fewer translations than this are not worth loading the compiled kernels.
PLAIN_WALKS = 4096


def translate_many(
    t: Table, memory: PhysicalMemory, root: int, iovas: NDArray[np.uint64], want: int = 0
) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """The output address of each input address, and how its walk ended (kinds.OK where it was translated)."""
    code, space, inputs, oas, ends = _arrays(walk, memory, iovas)
    code.walk_many(walk.Tree(t, space, root), inputs, want, oas, ends)
    for number in _asked(ends):
        found = walk.walk(t, memory, root, int(iovas[number]), want)
        oas[number], ends[number] = walk.signed(found.oa), found.status
    return _answers(oas, ends)


def translate_nested(
    first: Stage, second: Stage, memory: PhysicalMemory, iovas: NDArray[np.uint64], want: int = 0
) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """The physical address of each input address by two stages, and how its walk ended."""
    code, space, inputs, oas, ends = _arrays(nested, memory, iovas)
    trees = (walk.Tree(stage.table, space, stage.root) for stage in (first, second))
    code.nested_many(*trees, inputs, want, oas, ends)
    for number in _asked(ends):
        found = nested_walk(first, second, memory, int(iovas[number]), want)
        oas[number], ends[number] = walk.signed(found.pa), found.status
    return _answers(oas, ends)


def _arrays(plain: Any, memory: PhysicalMemory, iovas: NDArray[np.uint64]) -> tuple[Any, Any, Any, Any, Any]:
    """The kernels, the memory as they index it, and their arrays: inputs, outputs, ends."""
    import numpy as np

    if len(iovas) <= PLAIN_WALKS:
        return plain, memory.space, iovas.view(np.int64).tolist(), [0] * len(iovas), [0] * len(iovas)
    from softiommu.pagetable import jit

    oas, ends = np.zeros(len(iovas), np.int64), np.zeros(len(iovas), np.uint8)
    return jit, memory.arrays, np.ascontiguousarray(iovas).view(np.int64), oas, ends


def _asked(ends: Any) -> list[int]:
    """Which walks met memory that only its owner can read."""
    import numpy as np

    return [int(number) for number in np.flatnonzero(np.asarray(ends, np.uint8) == ASK)]


def _answers(oas: Any, ends: Any) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    import numpy as np

    return np.asarray(oas, np.int64).view(np.uint64), np.asarray(ends, np.uint8)
