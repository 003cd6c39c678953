"""A stream table entry, decoded and checked. Arm IHI 0070, 5.2 and 5.2.2."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softiommu.hardware.iommu import Request
from softiommu.hardware.smmuv3 import geometry
from softiommu.hardware.smmuv3.faults import Policy
from softiommu.hardware.smmuv3.registers import SIZES, Cr2
from softiommu.hardware.smmuv3.tables import (
    TG0,
    Config,
    Eats,
    Override,
    S1Dss,
    S1Fmt,
    Ste0,
    Ste1,
    Ste2,
    Ste3,
    Strw,
)
from softiommu.pagetable.formats.arm64 import AFFD, DS, XNX
from softiommu.pagetable.kinds import EXECUTE, HW_ACCESSED, HW_DIRTY, NO_ATOMICS, READ, WRITE
from softiommu.pagetable.nested import Stage

if TYPE_CHECKING:
    from softiommu.hardware.smmuv3.presets import Identity


#: What cached translations are found by: StreamWorld, VMID, ASID, and whether the access was privileged.
Tags = tuple[int, int, int, int]

#: In place of an ASID: of stage 2 alone; of every address space of the shared set of ASIDs, and of the private one
#: (CD.ASET, 3.17.1).
STAGE2_ONLY, EVERY_ASID, EVERY_PRIVATE_ASID = -1, -2, -3
#: The two of every address space.
GLOBALS = (EVERY_ASID, EVERY_PRIVATE_ASID)


def tags(strw: int, vmid: int, asid: int) -> tuple[Tags, Tags]:
    """The tags of unprivileged and of privileged accesses."""
    return (strw, vmid, asid, 0), (strw, vmid, asid, 1)


class Stream(NamedTuple):
    """What an STE says."""

    config: Config
    has_stage1: bool
    second: Stage | None
    vmid: int
    strw: Strw
    #: Of what stage 2 alone translates.
    stage2_tags: tuple[Tags, Tags]
    #: EL2 with two levels of privilege (CR2.E2H).
    e2h: bool
    context_table: int
    cdmax: int
    s1fmt: S1Fmt
    s1dss: S1Dss
    eats: Eats
    stalls_disabled: bool
    #: What stage 2 does with faults; and that CDs and tables of stage 1 in device memory are one (S2PTW).
    policy: Policy
    protects_walks: bool
    privcfg: int
    instcfg: int
    ppar: bool

    def override(self, request: Request) -> Request:
        """The transaction as the stream's overrides make it (IDR1.ATTR_PERMS_OVR)."""
        return override(request, self.privcfg, self.instcfg)


def override(request: Request, privcfg: int, instcfg: int) -> Request:
    """A transaction with its privilege and its kind (data or instruction) overridden; writes are data."""
    want = request.want
    if instcfg == Override.OFF and want & EXECUTE:
        want = want & ~EXECUTE | READ
    elif instcfg == Override.ON and not want & WRITE and want & READ:
        want = want & ~READ | EXECUTE
    privileged = bool(privcfg & 1) if privcfg >= Override.OFF else request.privileged
    return request._replace(want=want, privileged=privileged)


def read_stream(words: list[int], identity: Identity, cr2: Cr2) -> Stream | None:
    """The stream of an STE. None: it is illegal."""
    how, attributes = Ste0(words[0]), Ste1(words[1])
    if not how.V:
        return None
    if how.CONFIG < Config.BYPASS:
        return _stream(identity, Config.ABORT, attributes)
    if how.CONFIG == Config.BYPASS:
        return _stream(identity, how.CONFIG, attributes)
    stage2 = Ste2(words[2])
    if _bad_eats(attributes, stage2, how, identity) or _bad_stage1(how, attributes, identity):
        return None
    has_second = how.CONFIG in (Config.S2, Config.NEST)
    second = _second(stage2, Ste3(words[3]), identity) if has_second else None
    if has_second and second is None:
        return None
    # In a stage-1 STE, too, the VMID tags what is cached, where there is stage 2 at all.
    strw = attributes.STRW if identity.idr0.HYP and how.CONFIG == Config.S1 else Strw.NS_EL1
    vmid = stage2.S2VMID if identity.idr0.S2P and strw == Strw.NS_EL1 else 0
    if vmid >> 8 and not identity.idr0.VMID16:
        return None
    stream = _stream(identity, how.CONFIG, attributes)
    return stream._replace(
        has_stage1=how.CONFIG in (Config.S1, Config.NEST),
        second=second,
        vmid=vmid,
        strw=strw,
        stage2_tags=tags(strw, vmid, STAGE2_ONLY),
        e2h=bool(cr2.E2H and strw == Strw.EL2),
        context_table=how.S1CONTEXTPTR << 6,
        cdmax=how.S1CDMAX if identity.idr1.SSIDSIZE else 0,
        s1fmt=how.S1FMT,
        policy=Policy(bool(stage2.S2S), bool(stage2.S2R)),
        protects_walks=bool(stage2.S2PTW and how.CONFIG == Config.NEST),
    )


def _stream(identity: Identity, config: Config, attributes: Ste1) -> Stream:
    overrides = identity.idr1.ATTR_PERMS_OVR
    return Stream(
        config,
        has_stage1=False,
        second=None,
        vmid=0,
        strw=Strw.NS_EL1,
        stage2_tags=tags(Strw.NS_EL1, 0, STAGE2_ONLY),
        e2h=False,
        context_table=0,
        cdmax=0,
        s1fmt=S1Fmt.LINEAR,
        s1dss=attributes.S1DSS,
        eats=attributes.EATS if attributes.EATS in tuple(Eats) else Eats.OFF,
        stalls_disabled=bool(attributes.S1STALLD),
        policy=Policy(),
        protects_walks=False,
        privcfg=attributes.PRIVCFG if overrides else 0,
        instcfg=attributes.INSTCFG if overrides else 0,
        ppar=bool(attributes.PPAR),
    )


def _bad_eats(attributes: Ste1, stage2: Ste2, how: Ste0, identity: Identity) -> bool:
    if not identity.idr0.ATS:
        return False
    if attributes.EATS == Eats.SPLIT:
        return how.CONFIG != Config.NEST or bool(stage2.S2S or identity.idr0.NS1ATS)
    return bool(attributes.EATS == Eats.FULL and stage2.S2S and how.CONFIG in (Config.S2, Config.NEST))


def _bad_stage1(how: Ste0, attributes: Ste1, identity: Identity) -> bool:
    """Whether the fields of stage 1 are illegal."""
    if how.CONFIG not in (Config.S1, Config.NEST):
        return False
    idr0, substreams = identity.idr0, identity.idr1.SSIDSIZE
    if not idr0.S1P or (idr0.HYP and how.CONFIG == Config.S1 and attributes.STRW & 1):
        return True
    if attributes.S1STALLD and idr0.STALL_MODEL != 0:
        return True
    if substreams and (substreams < how.S1CDMAX or (how.S1CDMAX and how.S1FMT in LEAVES and not idr0.CD2L)):
        return True
    return bool((how.S1CONTEXTPTR << 6) >> identity.oas)


LEAVES = (S1Fmt.LEAVES_4K, S1Fmt.LEAVES_64K)


def _second(stage2: Ste2, root: Ste3, identity: Identity) -> Stage | None:
    """Stage 2. None: its fields are illegal."""
    idr0 = identity.idr0
    if not idr0.S2P or not stage2.S2AA64 or stage2.S2ENDI or (1 if stage2.S2S else 2) == idr0.STALL_MODEL:
        return None
    if (stage2.S2HA and idr0.HTTU < 1) or (stage2.S2HD and idr0.HTTU < 2):
        return None
    granule, ds = TG0.get(stage2.S2TG), bool(root.S2DS and identity.idr5.DS)
    if granule is None or not identity.has_granule(granule):
        return None
    wide = geometry.reaches_52(granule, ds)
    bits = 64 - stage2.S2T0SZ
    if not geometry.fewest_bits(granule, bool(identity.idr3.STT)) <= bits <= min(52 if wide else 48, identity.oas):
        return None
    output = min(SIZES[stage2.S2PS], identity.oas)
    if not wide:
        output = min(output, 48)
    option = (XNX if identity.idr3.XNX else 0) | (DS if ds and granule != 16 else 0)
    option |= flags(stage2.S2HA, stage2.S2HD, stage2.S2AFFD, identity)
    if granule == 12 and stage2.S2SL0 == 3 and not identity.idr3.STT:
        return None
    table = geometry.stage2(granule, bits, output, option, stage2.S2SL0, root.S2SL0_2)
    address = root.S2TTB << 4
    if table is None or address >> output:
        return None
    return Stage(table, geometry.root(table, address))


def flags(sets_accessed: int, sets_dirty: int, ignores_accessed: int, identity: Identity) -> int:
    """The options of a table by HA, HD and AFFD."""
    if not sets_accessed:
        return AFFD if ignores_accessed else 0
    return HW_ACCESSED | (HW_DIRTY if sets_dirty else 0) | (0 if identity.atomics else NO_ATOMICS)
