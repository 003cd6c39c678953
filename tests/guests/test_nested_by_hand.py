"""Nested VT-d, by QEMU 11.1 and a guest that this test is: PASIDs, and what the machine refuses.

No Linux guest uses PASIDs of a device that it has no driver for. QEMU runs with its processors halted, and registers,
queues and tables of the IOMMU that it shows are written by its test protocol.
"""

import shlex
import sys

import pytest

from qemu.pci import PortConfig, enable
from qemu.qtest import Qtest
from softiommu.guest import nested, qemu
from softiommu.hardware.vtd.commands import Context, Iotlb0, PasidCache0, PasidIotlb0, Type
from softiommu.hardware.vtd.registers import Gcmd, Iqa, Registers, Rtaddr, Ttm
from softiommu.hardware.vtd.tables import Pasid0, Pasid1, Pasid2, PasidDirectoryEntry, Pgtt, ScalableContext0

ADDRESS, SLOT, BAR, BASE, RAM = "0000:00:05.0", 2, 0xE0000000, 0xFED90000, 64 << 20
SID, DID = SLOT << 3, 7
ROOT, CONTEXT, DIRECTORY, ENTRIES, QUEUE, TABLES, DATA = (0x1000000 + number * 0x10000 for number in range(7))
MACHINE = """
name = "guests"

[[iommu]]
name = "dmar0"
model = "vtd"
unit = "full"
{iommu}

[[device]]
name = "test0"
address = "0000:00:05.0"
model = "pcitest"
pasid_bits = 16
"""
#: QEMU asks for dirty tracking where the IOMMU sets dirty flags, and the kernel's driver refuses PASIDs then.
HARDWARE = "ecap = { SSADS = 0 }"
SOFTWARE = 'ecap = { NEST = 0, SSADS = 0 }\nnesting = "software"'
UNSOUND = 'ecap = { NEST = 0, PRS = 0, PDS = 0 }\nnesting = "software"'
#: Of the device: where, what, with which PASID.
WHERE, COMMAND, PASID = 0x0, 0x8, 0x10
TO_DEVICE, FROM_DEVICE, HAS_PASID = 3, 1, 1 << 31
IOVA, PAGE = 0x7_0000_0000, 4096


class Guest:
    """The guest: what it writes into memory and registers."""

    def __init__(self, qtest):
        self.qtest, self._tail, self._tables = qtest, 0, TABLES
        self.bar = enable(PortConfig(qtest), SID, BAR)
        self.store(ROOT, CONTEXT | 1)
        self.store(CONTEXT + 32 * SID, ScalableContext0.of(P=1, PASIDE=1, PASIDDIRPTR=DIRECTORY >> 12))
        self.store(DIRECTORY, PasidDirectoryEntry.of(P=1, SMPTBLPTR=ENTRIES >> 12))
        for register, value in (
            (Registers.IQA, Iqa.of(DW=1, IQA=QUEUE >> 12)),
            (Registers.RTADDR, Rtaddr.of(TTM=Ttm.SCALABLE, RTA=ROOT >> 12)),
        ):
            qtest.write(BASE + register.offset, 8, value)
        for command in (Gcmd.of(SRTP=1), Gcmd.of(QIE=1)):
            qtest.write(BASE + Registers.GCMD.offset, 4, command)
        self.forget(Context.of(TYPE=Type.CONTEXT, G=1))
        self.forget(PasidCache0.of(TYPE=Type.PASID_CACHE, G=3))
        self.forget(Iotlb0.of(TYPE=Type.IOTLB, G=1))
        qtest.write(BASE + Registers.GCMD.offset, 4, Gcmd.of(QIE=1, TE=1))

    def store(self, at, word):
        self.qtest.ram[at : at + 8] = int(word).to_bytes(8, "little")

    def forget(self, command, where=0):
        """An invalidation, carried out."""
        self.store(QUEUE + self._tail, command)
        self.store(QUEUE + self._tail + 8, where)
        self._tail += 32
        self.qtest.write(BASE + Registers.IQT.offset, 8, self._tail)
        assert self.qtest.read(BASE + Registers.IQH.offset, 8) == self._tail

    def table(self):
        """A new first-stage table."""
        self._tables += PAGE
        return self._tables - PAGE

    def bind(self, pasid, root):
        """Let requests with a PASID go by a table; None: they go nowhere."""
        words = Pasid0.of(P=1, PGTT=Pgtt.FIRST, AW=2), Pasid1.of(DID=DID), Pasid2.of(FSPTPTR=(root or 0) >> 12)
        for number, word in enumerate(words if root is not None else (0, 0, 0)):
            self.store(ENTRIES + 64 * pasid + 8 * number, word)
        self.forget(PasidCache0.of(TYPE=Type.PASID_CACHE, G=1, DID=DID, PASID=pasid))
        self.forget(PasidIotlb0.of(TYPE=Type.PASID_IOTLB, G=2, DID=DID, PASID=pasid))

    def map(self, root, iova, at):
        """A page of a table."""
        table = root
        for level in (3, 2, 1):
            entry = table + 8 * (iova >> 12 + 9 * level & 511)
            word = int.from_bytes(self.qtest.ram[entry : entry + 8], "little")
            if not word:
                word = self.table() | 0x27
                self.store(entry, word)
            table = word & -PAGE
        self.store(table + 8 * (iova >> 12 & 511), at | 0x67)

    def transfer(self, iova, pasid, command):
        """Let the device move its buffer."""
        write = self.qtest.write
        write(self.bar + WHERE, 8, iova)
        write(self.bar + PASID, 4, 0 if pasid is None else HAS_PASID | pasid)
        write(self.bar + COMMAND, 4, command)

    def copy(self, source, target, pasids):
        """Let it copy a page, from addresses of one PASID to those of another."""
        self.transfer(source, pasids[0], TO_DEVICE)
        self.transfer(target, pasids[1], FROM_DEVICE)


@pytest.fixture
def guest(request, tmp_path, qemu11):
    """A guest on a machine with the IOMMU that the test names."""
    machine = tmp_path / "machine.toml"
    machine.write_text(MACHINE.format(iommu=request.param))
    supervised = [sys.executable, "-m", "softiommu.cli", "run", "--machine", machine, "--log", tmp_path / "log"]
    program = tmp_path / qemu.PROGRAM
    program.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, [*supervised, "--", qemu11]))} "$@"\n')
    program.chmod(0o755)
    device = qemu.passed(ADDRESS, "test0") + f",addr={SLOT}"
    options = [*nested.virtual_vtd("pasid-bits=16"), *qemu.iommufd(), "-device", device]
    qtest = Qtest(str(program), "q35", range(RAM), options)
    try:
        yield Guest(qtest)
    finally:
        qtest.close()


def calls(tmp_path, name):
    """The calls of a kind that QEMU made, and their results."""
    lines = (tmp_path / "log").read_text().splitlines()
    return [line.split("]", 1)[1].strip() for line in lines if f" {name}(" in line]


@pytest.mark.parametrize("guest", [HARDWARE, SOFTWARE], indirect=True, ids=["hardware", "software"])
def test_each_pasid_has_a_table_of_its_own(guest, tmp_path):
    ram, places = guest.qtest.ram, {pasid: DATA + number * PAGE for number, pasid in enumerate((None, 5, 9))}
    roots = {pasid: guest.table() for pasid in places}
    for pasid, at in places.items():
        guest.map(roots[pasid], IOVA, at)
        guest.bind(pasid or 0, roots[pasid])
        ram[at : at + PAGE] = bytes([pasid or 1]) * PAGE

    def found():
        assert all(ram[at : at + PAGE] == ram[at : at + 1] * PAGE for at in places.values())
        return [ram[at] for at in places.values()]

    guest.copy(IOVA, IOVA, (5, 9))
    assert found() == [1, 5, 5]
    guest.copy(IOVA, IOVA, (None, 5))
    assert found() == [1, 1, 5]
    assert guest.qtest.news() == ""

    def fill(value):
        ram[places[5] : places[5] + PAGE] = bytes([value]) * PAGE

    guest.map(roots[9], IOVA, places[None])
    fill(6)
    guest.copy(IOVA, IOVA, (5, 9))
    assert found() == [1, 6, 6], "what is cached of a table is used until the guest invalidates it"
    guest.forget(PasidIotlb0.of(TYPE=Type.PASID_IOTLB, G=3, DID=DID, PASID=9), IOVA)
    fill(7)
    guest.copy(IOVA, IOVA, (5, 9))
    assert found() == [7, 7, 6]
    assert guest.qtest.news() == ""

    guest.bind(5, None)
    fill(8)
    guest.copy(IOVA, IOVA, (5, 9))
    assert found() == [7, 8, 6], "the device still holds what it read last"
    assert "with PASID 0x5 at iova 0x700000000 is blocked" in guest.qtest.news()
    attached = calls(tmp_path, "VFIO_DEVICE_ATTACH_IOMMUFD_PT")
    assert [line for line in attached if "pasid=" in line] == [
        "VFIO_DEVICE_ATTACH_IOMMUFD_PT(flags=0x1 pt_id=5 pasid=5) = 0",
        "VFIO_DEVICE_ATTACH_IOMMUFD_PT(flags=0x1 pt_id=6 pasid=9) = 0",
    ]
    assert calls(tmp_path, "VFIO_DEVICE_DETACH_IOMMUFD_PT") == ["VFIO_DEVICE_DETACH_IOMMUFD_PT(flags=0x1 pasid=5) = 0"]


@pytest.mark.parametrize("guest", [UNSOUND], indirect=True, ids=["software"])
def test_a_table_that_cannot_be_merged_soundly_is_refused_and_the_log_says_why(guest, tmp_path):
    guest.bind(0, guest.table())
    assert "Attaching to HWPT failed" in guest.qtest.news()
    refused = calls(tmp_path, "VFIO_DEVICE_ATTACH_IOMMUFD_PT")[-1]
    assert "-EINVAL: a shadow hears of new mappings only by invalidations" in refused
