"""Many translations at once, arrays in and arrays out: what a replay of a trace runs on."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from softiommu.pagetable import nested, walk
from softiommu.pagetable.kinds import ASK, Table
from softiommu.pagetable.lane import UNUSUAL, lane, nested_lanes
from softiommu.pagetable.nested import Stage, nested_walk

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from softiommu.memory.physical import PhysicalMemory

#: Fewer translations than this are done sooner by plain Python: where the compiled kernels are loaded, and where not.
PLAIN_WALKS, UNLOADED_WALKS = 4096, 32768


def translate_many(
    t: Table, memory: PhysicalMemory, root: int, iovas: NDArray[np.uint64], want: int = 0
) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """The output address of each input address, and how its walk ended (kinds.OK where it was translated)."""
    batch = _Batch(iovas)
    space = memory.arrays if batch.compiled else memory.space
    usual = lane(t, want) if batch.compiled else None
    if usual is not None:
        from softiommu.pagetable import jit

        jit.lane_many(usual.compiled(), space, root, batch.inputs, batch.oas)
    batch.finish(walk.walk_many, "walk_many", (walk.Tree(t, space, root),), want)
    for number in batch.asked():
        found = walk.walk(t, memory, root, int(iovas[number]), want)
        batch.oas[number], batch.ends[number] = walk.signed(found.oa), found.status
    return batch.answers()


def translate_nested(
    first: Stage, second: Stage, memory: PhysicalMemory, iovas: NDArray[np.uint64], want: int = 0
) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """The physical address of each input address by two stages, and how its walk ended."""
    batch = _Batch(iovas)
    space = memory.arrays if batch.compiled else memory.space
    usual = nested_lanes(first.table, second.table, want) if batch.compiled else None
    if usual is not None:
        from softiommu.pagetable import jit

        first_lane, fetch, output = (one.compiled() for one in usual)
        jit.lane_nested_many((first_lane, fetch, output), space, (first.root, second.root), batch.inputs, batch.oas)
    trees = tuple(walk.Tree(stage.table, space, stage.root) for stage in (first, second))
    batch.finish(nested.nested_many, "nested_many", trees, want)
    for number in batch.asked():
        found = nested_walk(first, second, memory, int(iovas[number]), want)
        batch.oas[number], batch.ends[number] = walk.signed(found.pa), found.status
    return batch.answers()


class _Batch:
    """Inputs and outputs as kernels take them. An output that is UNUSUAL is still to be walked."""

    def __init__(self, iovas: NDArray[np.uint64]) -> None:
        import numpy as np

        loaded = "softiommu.pagetable.jit" in sys.modules
        self.compiled = len(iovas) > (PLAIN_WALKS if loaded else UNLOADED_WALKS)
        self.inputs = np.ascontiguousarray(iovas).view(np.int64)
        self.oas = np.full(len(iovas), UNUSUAL, np.int64)
        self.ends = np.zeros(len(iovas), np.uint8)

    def finish(self, plain: Any, name: str, trees: tuple[walk.Tree, ...], want: int) -> None:
        """Walk what is left in full: by the plain kernel, or by the compiled one of that name."""
        import numpy as np

        rest = np.flatnonzero(self.oas == UNUSUAL)
        if not len(rest):
            return
        inputs: Any = self.inputs[rest]
        oas: Any = np.zeros(len(rest), np.int64)
        ends: Any = np.zeros(len(rest), np.uint8)
        if self.compiled:
            from softiommu.pagetable import jit

            getattr(jit, name)(*trees, inputs, want, oas, ends)
        else:
            oas, ends = oas.tolist(), ends.tolist()
            plain(*trees, inputs.tolist(), want, oas, ends)
        self.oas[rest], self.ends[rest] = oas, ends

    def asked(self) -> list[int]:
        """Which walks met memory that only its owner can read."""
        import numpy as np

        return [int(number) for number in np.flatnonzero(self.ends == ASK)]

    def answers(self) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
        """Output addresses and ends."""
        import numpy as np

        return self.oas.view(np.uint64), self.ends
