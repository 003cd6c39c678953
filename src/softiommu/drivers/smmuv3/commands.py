"""A guest's commands as they lie in its queue, for the hardware's: with the host's VMID and stream ids in place of the
guest's.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import NamedTuple

from softiommu.hardware.smmuv3.commands import COMMAND_BYTES, Op, Stream0, Vmid0

#: All of the guest's that it can name; what has a VMID; what has a stream id.
_ALL, _BY_VMID, _BY_STREAM = 1, 2, 3
_KINDS: dict[int, int] = {
    Op.TLBI_NSNH_ALL: _ALL,
    Op.TLBI_NH_ALL: _BY_VMID,
    Op.TLBI_NH_ASID: _BY_VMID,
    Op.TLBI_NH_VA: _BY_VMID,
    Op.TLBI_NH_VAA: _BY_VMID,
    Op.CFGI_CD: _BY_STREAM,
    Op.CFGI_CD_ALL: _BY_STREAM,
    Op.ATC_INV: _BY_STREAM,
}
_OPCODE = Vmid0.OPCODE.mask
_OTHERS, _NO_STREAM = 2**64 - 1 ^ Vmid0.VMID.mask, 2**64 - 1 ^ Stream0.SID.mask
WORDS = Struct("<QQ")
#: From so many commands on they are looked at together.
_MANY = 32


class Converted(NamedTuple):
    """Commands for the hardware, up to the first that is refused; and why it is (empty: none is)."""

    raw: bytes
    refusal: str = ""


def convert(raw: bytes, vmid: int, sids: Mapping[int, int]) -> Converted:
    """Convert a guest's commands. `sids`: the host's stream ids by the guest's."""
    if len(raw) >= _MANY * COMMAND_BYTES:
        return _together(raw, vmid, sids)
    return _one_by_one(raw, vmid, sids)


def _one_by_one(raw: bytes, vmid: int, sids: Mapping[int, int]) -> Converted:
    good = bytearray()
    for low, high in WORDS.iter_unpack(raw):
        kind = _KINDS.get(low & _OPCODE)
        if kind == _ALL:
            low, high = Op.TLBI_NH_ALL | vmid << Vmid0.VMID.low, 0
        elif kind == _BY_VMID:
            low = low & _OTHERS | vmid << Vmid0.VMID.low
        elif kind == _BY_STREAM and low >> Stream0.SID.low in sids:
            low = low & _NO_STREAM | sids[low >> Stream0.SID.low] << Stream0.SID.low
        else:
            return Converted(bytes(good), _why(low))
        good += WORDS.pack(low, high)
    return Converted(bytes(good))


def _why(low: int) -> str:
    if _KINDS.get(low & _OPCODE) == _BY_STREAM:
        return f"no vDEVICE has stream id {low >> Stream0.SID.low:#x}"
    return "it is no command of guests"


def _together(raw: bytes, vmid: int, sids: Mapping[int, int]) -> Converted:
    import numpy as np

    kinds_of = np.zeros(_OPCODE + 1, np.uint8)
    for op, number in _KINDS.items():
        kinds_of[op] = number
    words = np.frombuffer(raw, np.uint64).reshape(-1, 2).copy()
    low = words[:, 0]
    kinds = kinds_of[(low & np.uint64(_OPCODE)).astype(np.intp)]
    good = kinds != 0
    streams = kinds == _BY_STREAM
    if streams.any():
        shift = np.uint64(Stream0.SID.low)
        named = low[streams] >> shift
        names, where = np.unique(named, return_inverse=True)
        found = np.array([sids.get(int(name), 0) for name in names], np.uint64)
        known = np.array([int(name) in sids for name in names], bool)
        good[streams] &= known[where]
        low[streams] = low[streams] & np.uint64(_NO_STREAM) | found[where] << shift
    tags, everything = kinds == _BY_VMID, kinds == _ALL
    low[tags] = low[tags] & np.uint64(_OTHERS) | np.uint64(vmid << Vmid0.VMID.low)
    if everything.any():
        words[everything] = Op.TLBI_NH_ALL | vmid << Vmid0.VMID.low, 0
    if good.all():
        return Converted(words.tobytes())
    count = int(good.argmin())
    refused, _ = WORDS.unpack_from(raw, count * COMMAND_BYTES)
    return Converted(words[:count].tobytes(), _why(refused))
