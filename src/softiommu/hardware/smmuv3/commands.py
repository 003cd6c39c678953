"""Commands of 16 bytes. Arm IHI 0070, chapter 4."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from softiommu.hardware.smmuv3.registers import Idr0
from softiommu.words import Word, bit, bits

COMMAND_BYTES = 16


class Op(IntEnum):
    """Opcodes that the non-secure queue takes (4.1.2)."""

    PREFETCH_CONFIG = 0x01
    PREFETCH_ADDR = 0x02
    CFGI_STE = 0x03
    CFGI_STE_RANGE = 0x04
    CFGI_CD = 0x05
    CFGI_CD_ALL = 0x06
    TLBI_NH_ALL = 0x10
    TLBI_NH_ASID = 0x11
    TLBI_NH_VA = 0x12
    TLBI_NH_VAA = 0x13
    TLBI_EL2_ALL = 0x20
    TLBI_EL2_ASID = 0x21
    TLBI_EL2_VA = 0x22
    TLBI_EL2_VAA = 0x23
    TLBI_S12_VMALL = 0x28
    TLBI_S2_IPA = 0x2A
    TLBI_NSNH_ALL = 0x30
    ATC_INV = 0x40
    PRI_RESP = 0x41
    RESUME = 0x44
    STALL_TERM = 0x45
    SYNC = 0x46


class Bare(Word):
    """A first word with an opcode only."""

    OPCODE = bits(7, 0)


class Empty(Word):
    """A second word without fields."""


class Prefetch0(Word):
    """PREFETCH_CONFIG and PREFETCH_ADDR (4.2)."""

    OPCODE = bits(7, 0)
    SSV = bit(11)
    SSID = bits(31, 12)
    SID = bits(63, 32)


class PrefetchAddr1(Word):
    """PREFETCH_ADDR, word 1."""

    SIZE = bits(4, 0)
    ADDR = bits(63, 12)


class Stream0(Word):
    """A command for a stream: CFGI_STE, CFGI_STE_RANGE, CFGI_CD_ALL, STALL_TERM."""

    OPCODE = bits(7, 0)
    SID = bits(63, 32)


class Leaf1(Word):
    """CFGI_STE and CFGI_CD, word 1: LEAF leaves the level-1 descriptors alone."""

    LEAF = bit(0)


class Range1(Word):
    """CFGI_STE_RANGE, word 1: 2**(RANGE + 1) streams; 31 is all (CFGI_ALL)."""

    RANGE = bits(4, 0)


class CfgiCd0(Word):
    """CFGI_CD (4.3.3)."""

    OPCODE = bits(7, 0)
    SSID = bits(31, 12)
    SID = bits(63, 32)


class Vmid0(Word):
    """TLBI_NH_ALL and TLBI_S12_VMALL (4.4)."""

    OPCODE = bits(7, 0)
    VMID = bits(47, 32)


class VmidAsid0(Word):
    """TLBI_NH_ASID."""

    OPCODE = bits(7, 0)
    VMID = bits(47, 32)
    ASID = bits(63, 48)


class Asid0(Word):
    """TLBI_EL2_ASID."""

    OPCODE = bits(7, 0)
    ASID = bits(63, 48)


class Va0(Word):
    """TLBI_NH_VA, word 0: with TG, (NUM + 1) * 2**SCALE granules."""

    OPCODE = bits(7, 0)
    NUM = bits(16, 12)
    SCALE = bits(25, 20)
    VMID = bits(47, 32)
    ASID = bits(63, 48)


class Vaa0(Word):
    """TLBI_NH_VAA and TLBI_S2_IPA, word 0."""

    OPCODE = bits(7, 0)
    NUM = bits(16, 12)
    SCALE = bits(25, 20)
    VMID = bits(47, 32)


class El2Va0(Word):
    """TLBI_EL2_VA, word 0."""

    OPCODE = bits(7, 0)
    NUM = bits(16, 12)
    SCALE = bits(25, 20)
    ASID = bits(63, 48)


class El2Vaa0(Word):
    """TLBI_EL2_VAA, word 0."""

    OPCODE = bits(7, 0)
    NUM = bits(16, 12)
    SCALE = bits(25, 20)


class Address1(Word):
    """Invalidations by address, word 1: LEAF leaves cached tables alone; TTL hints at the leaf's level."""

    LEAF = bit(0)
    TTL128 = bit(7)
    TTL = bits(9, 8)
    TG = bits(11, 10)
    ADDR = bits(63, 12)


class AtcInv0(Word):
    """ATC_INV (4.5.1)."""

    OPCODE = bits(7, 0)
    GLOBAL = bit(9)
    SSV = bit(11)
    SSID = bits(31, 12)
    SID = bits(63, 32)


class AtcInv1(Word):
    """ATC_INV, word 1: 2**SIZE pages; 52 is all."""

    SIZE = bits(5, 0)
    ADDR = bits(63, 12)


#: The largest SIZE of ATC_INV: everything.
LAST_SIZE = 52


class Resp(IntEnum):
    """How page requests are answered."""

    DENY = 0
    FAIL = 1
    SUCCESS = 2


class PriResp1(Word):
    """PRI_RESP, word 1 (4.5.2); its word 0 is that of a prefetch."""

    PRGINDEX = bits(8, 0)
    RESP = bits(13, 12, Resp)


class Resume0(Word):
    """RESUME (4.7.1): AC retries, else AB aborts."""

    OPCODE = bits(7, 0)
    AC = bit(12)
    AB = bit(13)
    SID = bits(63, 32)


class Resume1(Word):
    """RESUME, word 1."""

    STAG = bits(15, 0)


class Signal(IntEnum):
    """How a SYNC tells that it is done."""

    NONE = 0
    IRQ = 1
    SEV = 2


class Sync0(Word):
    """SYNC (4.7.3)."""

    OPCODE = bits(7, 0)
    CS = bits(13, 12, Signal)
    MSH = bits(23, 22)
    MSIATTR = bits(27, 24)
    MSIDATA = bits(63, 32)


class Sync1(Word):
    """SYNC, word 1."""

    MSIADDR = bits(51, 2)


def _always(idr0: Idr0) -> bool:
    return True


def _stage1(idr0: Idr0) -> bool:
    return bool(idr0.S1P)


def _stage2(idr0: Idr0) -> bool:
    return bool(idr0.S2P)


def _hyp(idr0: Idr0) -> bool:
    return bool(idr0.HYP and idr0.S1P)


def _ats(idr0: Idr0) -> bool:
    return bool(idr0.ATS)


def _pri(idr0: Idr0) -> bool:
    return bool(idr0.PRI)


def _stalls(idr0: Idr0) -> bool:
    return idr0.STALL_MODEL != 1


class Layout(NamedTuple):
    """The words of a command, whose other bits are reserved; and whether hardware with these features has it."""

    low: type[Word]
    high: type[Word]
    exists: Callable[[Idr0], bool]


LAYOUTS = {
    Op.PREFETCH_CONFIG: Layout(Prefetch0, Empty, _always),
    Op.PREFETCH_ADDR: Layout(Prefetch0, PrefetchAddr1, _always),
    Op.CFGI_STE: Layout(Stream0, Leaf1, _always),
    Op.CFGI_STE_RANGE: Layout(Stream0, Range1, _always),
    Op.CFGI_CD: Layout(CfgiCd0, Leaf1, _stage1),
    Op.CFGI_CD_ALL: Layout(Stream0, Empty, _stage1),
    Op.TLBI_NH_ALL: Layout(Vmid0, Empty, _stage1),
    Op.TLBI_NH_ASID: Layout(VmidAsid0, Empty, _stage1),
    Op.TLBI_NH_VA: Layout(Va0, Address1, _stage1),
    Op.TLBI_NH_VAA: Layout(Vaa0, Address1, _stage1),
    Op.TLBI_EL2_ALL: Layout(Bare, Empty, _hyp),
    Op.TLBI_EL2_ASID: Layout(Asid0, Empty, _hyp),
    Op.TLBI_EL2_VA: Layout(El2Va0, Address1, _hyp),
    Op.TLBI_EL2_VAA: Layout(El2Vaa0, Address1, _hyp),
    Op.TLBI_S12_VMALL: Layout(Vmid0, Empty, _stage2),
    Op.TLBI_S2_IPA: Layout(Vaa0, Address1, _stage2),
    Op.TLBI_NSNH_ALL: Layout(Bare, Empty, _always),
    Op.ATC_INV: Layout(AtcInv0, AtcInv1, _ats),
    Op.PRI_RESP: Layout(Prefetch0, PriResp1, _pri),
    Op.RESUME: Layout(Resume0, Resume1, _stalls),
    Op.STALL_TERM: Layout(Stream0, Empty, _stalls),
    Op.SYNC: Layout(Sync0, Sync1, _always),
}

#: log2 of the granule by TG of invalidations.
TLBI_TG = {1: 12, 2: 14, 3: 16}
