"""From a request to the tables that translate it: root, context and PASID structures. VT-d 3.4 to 3.6.

Each step checks in the order of the architecture and raises its own reason. What was found on the way is cached by the
model, tagged as the architecture tags it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.iommu import Request, TranslationFaultError
from softiommu.hardware.vtd.events import Reason
from softiommu.hardware.vtd.registers import Ttm
from softiommu.hardware.vtd.tables import (
    WIDTHS,
    ContextHigh,
    ContextLow,
    Pasid0,
    Pasid1,
    Pasid2,
    PasidDirectoryEntry,
    Pgtt,
    RootEntry,
    ScalableContext0,
    ScalableContext1,
    ScalableRootHalf,
    TranslationType,
)
from softiommu.memory.physical import BadAddressError
from softiommu.pagetable.formats import vtdss, x86_64
from softiommu.pagetable.kinds import HW_ACCESSED, HW_DIRTY, Table
from softiommu.pagetable.nested import Stage

if TYPE_CHECKING:
    from softiommu.hardware.vtd.registers import Cap, Ecap, Rtaddr
    from softiommu.memory.physical import PhysicalMemory

#: Writes to these addresses are interrupts.
INTERRUPTS = range(0xFEE00000, 0xFEF00000)
_FLAGS = HW_ACCESSED | HW_DIRTY
#: Addresses are 52 bits wide at most.
WIDEST = 52


#: Tags of an IOTLB entry: domain, PASID (or none), nested, privileged.
Tags = tuple[int, ...]
NO_PASID = -1


class QuietFaultError(TranslationFaultError):
    """A fault that FPD keeps from being recorded."""


def fault_kind(quiet: bool) -> type[TranslationFaultError]:
    """The error of a fault that is recorded, or not."""
    return QuietFaultError if quiet else TranslationFaultError


class Context(NamedTuple):
    """What a scalable context entry says of a stream."""

    directory: int
    #: PASIDs have so many bits.
    pasid_bits: int
    #: The PASID that stands for requests without one, and whether these are privileged.
    rid_pasid: int
    rid_privileged: bool
    pasids: bool
    device_tlb: bool
    page_requests: bool
    quiet: bool


class Route(NamedTuple):
    """How requests of a stream (and PASID) are translated, and the tags of what may be cached."""

    did: int
    pasid: int
    pgtt: Pgtt
    first: Stage | None
    second: Stage | None
    #: Those of second-stage translations are the domain's; those of a first stage are the PASID's too (6.2.6), and
    #: what a first stage allows depends on privilege.
    tags: Tags
    privileged_tags: Tags
    #: FPD: faults from here on are blocked but not recorded.
    quiet: bool
    scalable: bool
    #: The stream has a device TLB.
    device_tlb: bool = False
    #: Flags of paging entries cannot be set, since their accesses are not coherent.
    stale: bool = False
    #: The PASID entry's word of the first stage, with what kinds of requests it admits.
    stage1: Pasid2 = Pasid2(0)


class Walker:
    """Reads the structures of one remapping hardware. It keeps nothing."""

    def __init__(self, memory: PhysicalMemory, cap: Cap, ecap: Ecap, host_bits: int) -> None:
        self._memory, self._cap, self._ecap = memory, cap, ecap
        self._host_bits = min(host_bits, WIDEST)
        low = 0 if cap.SSLPS & 1 == 0 else 2 if cap.SSLPS & 2 else 1
        option = (0 if ecap.SC else vtdss.NO_SNOOP_CONTROL) | (0 if ecap.DT else vtdss.NO_DEVICE_TLBS)
        self._second = {
            aw: vtdss.VARIANTS[name]._replace(
                leaf_top=low,
                option=option,
                output_bits=self._host_bits,
                input_bits=min(vtdss.VARIANTS[name].input_bits, cap.MGAW + 1),
            )
            for aw, name in WIDTHS.items()
            if cap.SAGAW >> aw & 1
        }
        self._reserved = _reserved(ecap)

    def _load(self, pa: int, words: int, reason: Reason, request: Request) -> list[int]:
        try:
            return [self._memory.read_u64(pa + 8 * n) for n in range(words)]
        except BadAddressError as error:
            raise TranslationFaultError(reason, request) from error

    def _beyond(self, pointer: int) -> bool:
        """Whether a page number has bits that host addresses have not: they are reserved."""
        return pointer >> self._host_bits - 12 != 0

    # Legacy mode

    def legacy(self, rtaddr: Rtaddr, request: Request) -> Route:
        """The route of a stream in legacy mode. TranslationFaultError with the reason of the step that stopped it."""
        at = (rtaddr.RTA << 12) + 16 * (request.sid >> 8)
        low, high = self._load(at, 2, Reason.ROOT_ACCESS, request)
        root = RootEntry(low)
        if not root.P:
            raise TranslationFaultError(Reason.ROOT_NOT_PRESENT, request)
        if root.reserved or high or self._beyond(root.CTP):
            raise TranslationFaultError(Reason.ROOT_RESERVED, request)
        at = (root.CTP << 12) + 16 * (request.sid & 0xFF)
        words = self._load(at, 2, Reason.CONTEXT_ACCESS, request)
        return self._legacy_entry(ContextLow(words[0]), ContextHigh(words[1]), request)

    def _legacy_entry(self, context: ContextLow, tags: ContextHigh, request: Request) -> Route:
        fault = fault_kind(bool(context.FPD))
        if not context.P:
            raise fault(Reason.CONTEXT_NOT_PRESENT, request)
        if context.reserved or tags.reserved or self._beyond(context.SSPTPTR):
            raise fault(Reason.CONTEXT_RESERVED, request)
        needs = {
            TranslationType.UNTRANSLATED: 1,
            TranslationType.DEVICE_TLB: self._ecap.DT,
            TranslationType.PASS_THROUGH: self._ecap.PT,
        }
        if not needs.get(context.TT, 0) or tags.AW not in self._second:
            raise fault(Reason.CONTEXT_INVALID, request)
        if context.TT == TranslationType.PASS_THROUGH:
            return Route(tags.DID, 0, Pgtt.PASS_THROUGH, None, None, *_tags(tags.DID), bool(context.FPD), False)
        second = Stage(self._second[tags.AW], context.SSPTPTR << 12)
        device_tlb = context.TT == TranslationType.DEVICE_TLB
        return Route(tags.DID, 0, Pgtt.SECOND, None, second, *_tags(tags.DID), bool(context.FPD), False, device_tlb)

    # Scalable mode

    def context(self, rtaddr: Rtaddr, request: Request) -> Context:
        """The context of a stream in scalable mode. TranslationFaultError."""
        at = (rtaddr.RTA << 12) + 16 * (request.sid >> 8) + 8 * (request.sid >> 7 & 1)
        root = ScalableRootHalf(self._load(at, 1, Reason.SCALABLE_ROOT_ACCESS, request)[0])
        if not root.P:
            raise TranslationFaultError(Reason.SCALABLE_ROOT_NOT_PRESENT, request)
        if root.reserved or self._beyond(root.CTP):
            raise TranslationFaultError(Reason.SCALABLE_ROOT_RESERVED, request)
        at = (root.CTP << 12) + 32 * (request.sid & 0x7F)
        words = self._load(at, 4, Reason.SCALABLE_CONTEXT_ACCESS, request)
        return self._context_entry(ScalableContext0(words[0]), ScalableContext1(words[1]), words[2:], request)

    def _context_entry(self, entry: ScalableContext0, rid: ScalableContext1, rest: list[int], r: Request) -> Context:
        fault = fault_kind(bool(entry.FPD))
        if not entry.P:
            raise fault(Reason.SCALABLE_CONTEXT_NOT_PRESENT, r)
        if entry.reserved or rid.reserved or any(rest) or self._beyond(entry.PASIDDIRPTR):
            raise fault(Reason.SCALABLE_CONTEXT_RESERVED, r)
        if int(entry) & self._reserved[ScalableContext0] or int(rid) & self._reserved[ScalableContext1]:
            raise fault(Reason.SCALABLE_CONTEXT_INVALID, r)
        return Context(
            directory=entry.PASIDDIRPTR << 12,
            pasid_bits=entry.PDTS + 13,
            rid_pasid=rid.RID_PASID if self._ecap.RPS else 0,
            rid_privileged=bool(rid.RID_PRIV),
            pasids=bool(entry.PASIDE),
            device_tlb=bool(entry.DTE),
            page_requests=bool(entry.PRE),
            quiet=bool(entry.FPD),
        )

    def pasid_of(self, context: Context, request: Request) -> int:
        """The PASID whose entry routes a request. TranslationFaultError."""
        fault = fault_kind(context.quiet)
        if request.pasid is None:
            if context.rid_pasid >> context.pasid_bits:
                raise fault(Reason.RID_PASID_TOO_LARGE, request)
            return context.rid_pasid
        if not context.pasids:
            raise fault(Reason.PASID_NOT_ENABLED, request)
        if request.pasid >> context.pasid_bits:
            raise fault(Reason.PASID_TOO_LARGE, request)
        return request.pasid

    def route(self, context: Context, pasid: int, request: Request) -> Route:
        """The route of a PASID of a stream. TranslationFaultError."""
        at = context.directory + 8 * (pasid >> 6)
        entry = PasidDirectoryEntry(self._load(at, 1, Reason.PASID_DIRECTORY_ACCESS, request)[0])
        quiet = context.quiet or bool(entry.FPD)
        if not entry.P:
            raise fault_kind(quiet)(Reason.PASID_DIRECTORY_NOT_PRESENT, request)
        if entry.reserved or self._beyond(entry.SMPTBLPTR):
            raise fault_kind(quiet)(Reason.PASID_DIRECTORY_RESERVED, request)
        words = self._load((entry.SMPTBLPTR << 12) + 64 * (pasid & 63), 8, Reason.PASID_ENTRY_ACCESS, request)
        how, tags, stage1 = Pasid0(words[0]), Pasid1(words[1]), Pasid2(words[2])
        fault = fault_kind(quiet or bool(how.FPD))
        if not how.P:
            raise fault(Reason.PASID_ENTRY_NOT_PRESENT, request)
        if self._has_reserved(how, tags, stage1) or any(words[3:]):
            raise fault(Reason.PASID_ENTRY_RESERVED, request)
        if not self._is_valid(how, stage1):
            raise fault(Reason.PASID_ENTRY_INVALID, request)
        first = how.PGTT in (Pgtt.FIRST, Pgtt.NESTED)
        return Route(
            tags.DID,
            pasid,
            how.PGTT,
            self._first_stage(stage1) if first else None,
            self._second_stage(how) if how.PGTT in (Pgtt.SECOND, Pgtt.NESTED) else None,
            *(_tags(tags.DID, pasid, how.PGTT == Pgtt.NESTED) if first else _tags(tags.DID)),
            quiet or bool(how.FPD),
            True,
            context.device_tlb,
            bool(self._ecap.SMPWCS and not tags.PWSNP),
            stage1,
        )

    def _has_reserved(self, how: Pasid0, tags: Pasid1, stage1: Pasid2) -> bool:
        unknown = how.reserved or tags.reserved or stage1.reserved
        absent = any(int(word) & self._reserved[type(word)] for word in (how, tags, stage1))
        return bool(unknown or absent or self._beyond(how.SSPTPTR) or self._beyond(stage1.FSPTPTR))

    def _is_valid(self, how: Pasid0, stage1: Pasid2) -> bool:
        """Whether the hardware has what the entry asks for."""
        supported = {
            Pgtt.FIRST: self._ecap.FSTS,
            Pgtt.SECOND: self._ecap.SSTS,
            Pgtt.NESTED: self._ecap.NEST,
            Pgtt.PASS_THROUGH: self._ecap.PT,
        }
        if not supported.get(how.PGTT, 0):
            return False
        if how.PGTT in (Pgtt.FIRST, Pgtt.NESTED) and stage1.FSPM > self._cap.FS5LP:
            return False
        return how.PGTT not in (Pgtt.SECOND, Pgtt.NESTED) or how.AW in self._second

    def _first_stage(self, stage1: Pasid2) -> Stage:
        options = {Pasid2.WPE: x86_64.WPE, Pasid2.NXE: x86_64.NXE, Pasid2.SMEP: x86_64.SMEP, Pasid2.EAFE: x86_64.EAFE}
        option = sum(bit for field, bit in options.items() if int(stage1) & field.mask)
        table: Table = x86_64.VARIANTS["x86-64-5level" if stage1.FSPM else "x86-64-4level"]
        top = 2 if self._cap.FS1GP else 1
        table = table._replace(option=option | _FLAGS, leaf_top=top, output_bits=self._host_bits)
        return Stage(table, stage1.FSPTPTR << 12)

    def _second_stage(self, how: Pasid0) -> Stage:
        table = self._second[how.AW]
        if how.SSADE:
            table = table._replace(option=table.option | _FLAGS)
        return Stage(table, how.SSPTPTR << 12)


def _reserved(ecap: Ecap) -> dict[type, int]:
    """The bits of each word that are reserved, since the hardware has not what they choose."""
    choices = {
        ScalableContext0: {
            ScalableContext0.DTE: ecap.DT,
            ScalableContext0.PASIDE: ecap.PASID,
            ScalableContext0.PRE: ecap.PRS,
        },
        ScalableContext1: {ScalableContext1.RID_PRIV: ecap.SRS},
        Pasid0: {Pasid0.SSADE: ecap.SSADS, Pasid0.SLEE: 0},
        Pasid1: {
            Pasid1.PWSNP: ecap.SMPWCS,
            Pasid1.PGSNP: ecap.SC,
            **dict.fromkeys((Pasid1.CD, Pasid1.EMTE, Pasid1.EMT, Pasid1.PWT, Pasid1.PCD, Pasid1.PAT), ecap.MTS),
        },
        Pasid2: {Pasid2.SRE: ecap.SRS, Pasid2.ERE: ecap.ERS, Pasid2.EAFE: ecap.EAFS},
    }
    return {word: sum(field.mask for field, has in fields.items() if not has) for word, fields in choices.items()}


def _tags(did: int, pasid: int = NO_PASID, nested: bool = False) -> tuple[Tags, Tags]:
    """The tags of a route, and those for privileged requests."""
    return (did, pasid, int(nested), 0), (did, pasid, int(nested), int(pasid != NO_PASID))


def check_mode(rtaddr: Rtaddr, request: Request) -> None:
    """Whether a request meets a root table of legacy mode, which the hardware does not take for one of scalable mode.
    TranslationFaultError."""
    if rtaddr.TTM != Ttm.LEGACY:
        raise TranslationFaultError(Reason.RTA_ABORT if rtaddr.TTM == Ttm.ABORT else Reason.RTA_INVALID, request)
    if request.pasid is not None:
        raise TranslationFaultError(Reason.RTA_PASID, request)
