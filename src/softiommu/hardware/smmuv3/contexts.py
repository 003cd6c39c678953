"""A context descriptor, decoded and checked. Arm IHI 0070, 5.4 and 5.4.2."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.smmuv3 import geometry
from softiommu.hardware.smmuv3.faults import Policy
from softiommu.hardware.smmuv3.registers import SIZES
from softiommu.hardware.smmuv3.streams import GLOBALS, Stream, Tags, flags, tags
from softiommu.hardware.smmuv3.tables import TG0, TG1, Cd0, Cd1, Cd2, Strw
from softiommu.pagetable.formats.arm64 import DS, NO_HIERARCHY, ONE_LEVEL, PAN, WXN
from softiommu.pagetable.nested import Stage

if TYPE_CHECKING:
    from softiommu.hardware.smmuv3.presets import Identity

_ALL, _NO_TAG = (1 << 64) - 1, (1 << 56) - 1


class Half(NamedTuple):
    """The tables of one half of the addresses: those that have `same` bits, all equal to `value`."""

    stage: Stage
    same: int
    value: int
    #: E0PD: unprivileged accesses are refused.
    privileged_only: bool


class Context(NamedTuple):
    """What a CD says: its tables by bit 55 of the address (None: walks are disabled), and its tags."""

    #: Of unprivileged and of privileged accesses; and of those by global entries.
    tags: tuple[Tags, Tags]
    global_tags: tuple[Tags, Tags]
    halves: tuple[Half | None, Half | None]
    policy: Policy
    #: Its ASID is none of the CPUs' (CD.ASET).
    private: bool


class _Fields(NamedTuple):
    """The fields of one half, whichever it is."""

    disabled: int
    tsz: int
    granule: int | None
    tbi: int
    ttb: int
    no_hierarchy: int
    e0pd: int


def read_context(words: list[int], identity: Identity, stream: Stream) -> Context | None:
    """The context of a CD. None: it is illegal."""
    how, low, high = Cd0(words[0]), Cd1(words[1]), Cd2(words[2])
    if not how.V or not how.AA64 or _bad_faults(how, identity, stream):
        return None
    if (how.HA and identity.idr0.HTTU < 1) or (how.HD and identity.idr0.HTTU < 2):
        return None
    # EL2 has one half and no ASIDs, unless it is a host (E2H).
    one_half = stream.strw == Strw.EL2 and not stream.e2h
    if how.ASID >> 8 and not identity.idr0.ASID16 and not one_half:
        return None
    fields = (
        _Fields(how.EPD0, how.T0SZ, TG0.get(how.TG0), how.TBI0, low.TTB0 << 4, low.HAD0, low.E0PD0),
        _Fields(how.EPD1, how.T1SZ, TG1.get(how.TG1), how.TBI1, high.TTB1 << 4, high.HAD1, high.E0PD1),
    )
    halves: list[Half | None] = [None, None]
    for number, field in enumerate(fields[:1] if one_half else fields):
        if not field.disabled:
            halves[number] = _half(number, field, how, bool(high.DS), identity, one_half)
            if how.ENDI or halves[number] is None:
                return None
    policy = Policy(bool(how.S), bool(how.R), not how.A)
    mine, everyone = (tags(stream.strw, stream.vmid, asid) for asid in (0 if one_half else how.ASID, GLOBALS[how.ASET]))
    return Context(mine, everyone, (halves[0], halves[1]), policy, bool(how.ASET))


def _bad_faults(how: Cd0, identity: Identity, stream: Stream) -> bool:
    idr0 = identity.idr0
    if how.S:
        return stream.stalls_disabled or idr0.STALL_MODEL == 1
    return idr0.STALL_MODEL == 2 or bool(not how.A and idr0.TERM_MODEL)


def _half(number: int, field: _Fields, how: Cd0, wants_ds: bool, identity: Identity, one_level: bool) -> Half | None:
    """The tables of one half. None: its fields are illegal."""
    granule, ds = field.granule, wants_ds and bool(identity.idr5.DS)
    if granule is None or not identity.has_granule(granule):
        return None
    wide, bits = geometry.reaches_52(granule, ds), 64 - field.tsz
    most = 52 if wide and identity.idr5.VAX else 48
    if not geometry.fewest_bits(granule, bool(identity.idr3.STT)) <= bits <= most:
        return None
    output = min(SIZES[how.IPS], identity.oas)
    if not wide:
        output = min(output, 48)
    if field.ttb >> output:
        return None
    option = flags(how.HA, how.HD, how.AFFD, identity)
    for option_bit, chosen in (
        (DS, ds and granule != 16),
        (PAN, how.PAN),
        (WXN, how.WXN),
        (NO_HIERARCHY, field.no_hierarchy and identity.idr3.HAD),
        (ONE_LEVEL, one_level),
    ):
        option |= option_bit if chosen else 0
    table = geometry.stage1(granule, bits, output, option)
    same = (_NO_TAG if field.tbi else _ALL) & ~((1 << bits) - 1)
    closed = bool(field.e0pd and identity.idr3.E0PD)
    return Half(Stage(table, geometry.root(table, field.ttb)), same, same if number else 0, closed)
