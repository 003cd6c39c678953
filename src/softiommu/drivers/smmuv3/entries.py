"""How an STE or a CD changes while the hardware reads it: in steps of 64 bits, none of which it can misunderstand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from softiommu.hardware.smmuv3.tables import Cd0, Config, Ste0, Ste1, Ste2, Ste3
from softiommu.words import Word

if TYPE_CHECKING:
    from softiommu.memory.physical import PhysicalMemory

_ALL = (1 << 64) - 1

#: Which bits of each word the hardware looks at, by what the words say.
Used = Callable[[Sequence[int]], list[int]]


def write_entry(memory: PhysicalMemory, at: int, target: Sequence[int], used: Used, sync: Callable[[], None]) -> None:
    """Change an entry of eight words. Where only one word has bits that matter before and after, the change takes
    effect in one store; else the entry is not valid meanwhile. `sync` makes the hardware forget the entry."""
    target = [int(word) for word in target]
    current = [memory.read_u64(at + 8 * number) for number in range(8)]
    if current == target:
        return
    matters, wanted = used(current), used(target)
    # What does not matter yet can be set ahead.
    ahead = [now & mask | then & ~mask for now, then, mask in zip(current, target, matters, strict=True)]
    critical = [number for number in range(8) if (ahead[number] ^ target[number]) & wanted[number]]
    if len(critical) > 1:
        _store(memory, at, current, [0, *current[1:]], sync)
        _store(memory, at, [0, *current[1:]], [0, *target[1:]], sync)
        _store(memory, at, [0, *target[1:]], target, sync)
        return
    for number in critical:
        ahead[number] = current[number]
    middle = [target[number] if number in critical else word for number, word in enumerate(ahead)]
    _store(memory, at, current, ahead, sync)
    _store(memory, at, ahead, middle, sync)
    _store(memory, at, middle, target, sync)


def _store(memory: PhysicalMemory, at: int, old: Sequence[int], new: Sequence[int], sync: Callable[[], None]) -> None:
    """Store the words that differ; where there are any, the hardware must look again."""
    changed = [number for number in range(8) if old[number] != new[number]]
    for number in changed:
        memory.write_u64(at + 8 * number, new[number])
    if changed:
        sync()


def _mask(word: type[Word], *names: str) -> int:
    found = 0
    for name in names:
        found |= word.FIELDS[name].mask
    return found


_S1 = (
    _mask(Ste0, "S1FMT", "S1CONTEXTPTR", "S1CDMAX"),
    _mask(Ste1, "S1DSS", "S1CIR", "S1COR", "S1CSH", "S1STALLD", "STRW", "EATS", "MEV", "PPAR"),
    _mask(Ste2, "S2VMID"),
)
_S2 = (_mask(Ste1, "S2FWB", "EATS", "MEV", "PPAR"), Ste2(0).RESERVED ^ _ALL, _mask(Ste3, "S2TTB", "S2SL0_2", "S2DS"))


def used_of_ste(words: Sequence[int]) -> list[int]:
    """The bits of an STE that matter."""
    how, found = Ste0(words[0]), [_mask(Ste0, "V")] + [0] * 7
    if not how.V:
        return found
    found[0] |= _mask(Ste0, "CONFIG")
    if how.CONFIG >= Config.BYPASS:
        found[1] |= _mask(Ste1, "SHCFG")
    if how.CONFIG in (Config.S1, Config.NEST):
        for number, bits in enumerate(_S1):
            found[number] |= bits
    if how.CONFIG in (Config.S2, Config.NEST):
        for number, bits in enumerate(_S2, 1):
            found[number] |= bits
    return found


def used_of_cd(words: Sequence[int]) -> list[int]:
    """The bits of a CD that matter."""
    return [_ALL] * 8 if Cd0(words[0]).V else [_mask(Cd0, "V")] + [0] * 7
