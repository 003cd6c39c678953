"""A guest of an SMMUv3: its RAM, the stage 1 and the contexts that it makes there, and its commands."""

import fcntl
import os

from softiommu.abi.iommufd import HwptArmSmmuv3
from softiommu.hardware.smmuv3.commands import (
    TLBI_TG,
    Address1,
    AtcInv0,
    AtcInv1,
    Bare,
    CfgiCd0,
    Leaf1,
    Op,
    Stream0,
    Va0,
    VmidAsid0,
)
from softiommu.hardware.smmuv3.registers import SIZES
from softiommu.hardware.smmuv3.tables import CD_BYTES, Cd0, Cd1, Cd3, Config, Eats, S1Dss, Ste0, Ste1
from softiommu.memory.physical import PhysicalMemory
from softiommu.memory.shared import SharedMemory
from softiommu.pagetable.engine import PageTable
from softiommu.pagetable.formats import VARIANTS

#: Where a guest has its RAM, and how much.
RAM, RAM_SIZE = 1 << 30, 2 << 20
TABLE = VARIANTS["arm64-4k-48-s1"]
GRANULE = next(code for code, lg2 in TLBI_TG.items() if lg2 == 12)


def context(pages, asid, **fields):
    """A CD of a table; fields of its first word may say otherwise."""
    low = Cd0.of(T0SZ=16, EPD1=1, V=1, IPS=SIZES.index(48), AA64=1, R=1, A=1, ASET=1, ASID=asid).replace(**fields)
    return low, Cd1.of(TTB0=pages.root >> 4), 0, Cd3.of(MAIR0=0xFF), 0, 0, 0, 0


class GuestMemory(PhysicalMemory):
    """A guest's RAM by the guest's addresses: a file, which the host shows at RAM. Addresses are given out once."""

    def __init__(self):
        super().__init__(4096, reach=RAM + RAM_SIZE)
        fd = os.memfd_create("guest", os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, RAM_SIZE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.file = SharedMemory(fd)
        self.map_window(RAM, self.file, 0, RAM_SIZE)
        self._at = RAM

    def alloc(self, size, align=4096):
        pa = -(-self._at // align) * align
        if pa + size > RAM + RAM_SIZE:
            raise MemoryError
        self._at = pa + size
        return pa

    def free(self, pa):
        """It is never given again."""


class Guest:
    """A guest: its RAM, and a table of contexts."""

    def __init__(self, contexts_lg2=2):
        self.memory = GuestMemory()
        self.contexts = self.memory.alloc(max(4096, CD_BYTES << contexts_lg2), 4096)
        self.contexts_lg2 = contexts_lg2

    def pages(self):
        """An empty stage 1."""
        return PageTable(self.memory, TABLE._replace(output_bits=48))

    def set_context(self, ssid, words=(0,) * 8):
        """Write a context descriptor, the word with its valid bit last."""
        for number in (7, 6, 5, 4, 3, 2, 1, 0):
            self.memory.write_u64(self.contexts + CD_BYTES * ssid + 8 * number, int(words[number]))

    def ste(self, **fields):
        """Words 0 and 1 of an STE with a stage 1 by these contexts: what HWPT_ALLOC takes. PASIDs are substreams."""
        how = {"V": 1, "CONFIG": Config.S1, "S1CONTEXTPTR": self.contexts >> 6, "S1CDMAX": self.contexts_lg2}
        attributes = {"S1DSS": S1Dss.SSID0, "EATS": Eats.FULL}
        for name, value in fields.items():
            (how if name in Ste0.FIELDS else attributes)[name] = value
        return HwptArmSmmuv3(Ste0.of(**how), Ste1.of(**attributes))


# Commands, with a VMID and stream ids of the guest's own.


def tlbi_all():
    return int(Bare.of(OPCODE=Op.TLBI_NSNH_ALL)), 0


def tlbi_asid(asid, vmid=0):
    return int(VmidAsid0.of(OPCODE=Op.TLBI_NH_ASID, ASID=asid, VMID=vmid)), 0


def tlbi_va(iova, asid, vmid=0):
    return int(Va0.of(OPCODE=Op.TLBI_NH_VA, ASID=asid, VMID=vmid)), int(Address1.of(ADDR=iova >> 12))


def tlbi_range(iova, count, asid):
    low = Va0.of(OPCODE=Op.TLBI_NH_VA, ASID=asid, NUM=count - 1)
    return int(low), int(Address1.of(ADDR=iova >> 12, TG=GRANULE, TTL=3, LEAF=1))


def cfgi_cd(sid, ssid):
    return int(CfgiCd0.of(OPCODE=Op.CFGI_CD, SID=sid, SSID=ssid)), int(Leaf1.of(LEAF=1))


def cfgi_cd_all(sid):
    return int(Stream0.of(OPCODE=Op.CFGI_CD_ALL, SID=sid)), 0


def atc_inv(sid, iova, pasid=None, lg2=0):
    low = AtcInv0.of(OPCODE=Op.ATC_INV, SID=sid)
    if pasid is not None:
        low = low.replace(SSV=1, SSID=pasid)
    return int(low), int(AtcInv1.of(SIZE=lg2, ADDR=iova >> 12))
