"""Tegra241's CMDQV: whose a queue is, what the host's own take, errors and their maps."""

import pytest
from hypothesis import given, strategies as st

from softiommu.errors import ModelError
from softiommu.hardware.smmuv3.cmdqv import TEGRA241, Cmdqv
from softiommu.hardware.smmuv3.cmdqv_registers import (
    LOGICAL_BASE,
    LOGICAL_STRIDE,
    Allocation,
    Page0,
    Page1,
    Param,
    QueueBase,
    Registers,
    SidMatch,
    VintfConfig,
    VintfRegisters,
    queue_page0,
    queue_page1,
    vintf,
)
from softiommu.hardware.smmuv3.commands import Op, Vmid0
from softiommu.hardware.smmuv3.model import Smmu
from softiommu.hardware.smmuv3.presets import FULL
from softiommu.hardware.smmuv3.registers import CmdqCons, CommandError
from softiommu.memory.physical import PhysicalMemory

LG2 = 3


class Rig:
    """A CMDQV, and the queue of number `queue` as queue `logical` of an interface."""

    def __init__(self, param=TEGRA241, queue=9, interface=4, logical=1, host=False):
        self.memory = PhysicalMemory(1 << 20)
        self.interrupts = 0
        self.cmdqv = Cmdqv(Smmu(self.memory, FULL), self.memory, param, self._interrupt)
        self.queue, self.interface, self.logical, self.host = queue, interface, logical, host
        self.base, self.prod = self.memory.alloc(4096), 0

    def _interrupt(self):
        self.interrupts += 1

    def start(self, base=None):
        base = self.base if base is None else base
        write = self.cmdqv.write
        write(Registers.CONFIG.offset, 4, 1)
        write(vintf(self.interface), 4, VintfConfig.of(EN=1, VMID=7, HYP_OWN=int(self.host)))
        write(queue_page1(self.queue) + Page1.BASE.offset, 8, QueueBase.of(LOG2SIZE=LG2, ADDR=base >> 5))
        whose = Allocation.of(ALLOC=1, VINTF=self.interface, LVCMDQ=self.logical)
        write(Registers.CMDQ_ALLOC.at(self.queue), 4, whose)
        write(queue_page0(self.queue) + Page0.CONFIG.offset, 4, 1)

    def read(self, register):
        return self.cmdqv.read(queue_page0(self.queue) + register.offset, 4)

    def run(self, *commands):
        for low, high in commands:
            at = self.base + 16 * (self.prod & (1 << LG2) - 1)
            self.memory.write_u64(at, low)
            self.memory.write_u64(at + 8, high)
            self.prod = self.prod + 1 & (2 << LG2) - 1
        self.cmdqv.write(queue_page0(self.queue) + Page0.PROD.offset, 4, self.prod)
        return CmdqCons(self.read(Page0.CONS))

    def maps(self):
        at = vintf(self.interface) + VintfRegisters.LVCMDQ_ERR_MAP.at(0)
        return self.cmdqv.read(Registers.VINTF_ERR_MAP.offset, 8), self.cmdqv.read(at, 8)


ALL = (int(Op.TLBI_NSNH_ALL), 0)
GUESTS = (int(Vmid0.of(OPCODE=Op.TLBI_NH_ASID)), 0)


def test_the_hosts_queues_take_any_command_and_a_guests_do_not():
    host, guest = Rig(host=True), Rig()
    for rig in (host, guest):
        rig.start()
    assert host.run(ALL, GUESTS, (int(Op.CFGI_STE), 0)) == CmdqCons.of(RD=3)
    assert guest.run(GUESTS, ALL) == CmdqCons.of(RD=1, ERR=CommandError.ILL)


def test_the_interfaces_page_shows_its_queues():
    rig = Rig()
    at = LOGICAL_BASE + LOGICAL_STRIDE * rig.interface + 0x80 * rig.logical
    assert rig.cmdqv.read(at + Page0.CONFIG.offset, 4) == 0
    rig.start()
    assert rig.cmdqv.read(at + Page0.STATUS.offset, 4) == 1
    rig.memory.write_u64(rig.base, GUESTS[0])
    rig.cmdqv.write(at + Page0.PROD.offset, 4, 1)
    assert rig.read(Page0.CONS) == 1
    assert rig.cmdqv.read(at + 0x10000 + Page1.BASE.offset, 8) & 31 == LG2


@pytest.mark.parametrize("missing", ["whole", "interface", "allocation", "queue"])
def test_a_queue_runs_when_everything_is_enabled(missing):
    rig = Rig()
    rig.start()
    at = {
        "whole": Registers.CONFIG.offset,
        "interface": vintf(rig.interface),
        "allocation": Registers.CMDQ_ALLOC.at(rig.queue),
        "queue": queue_page0(rig.queue) + Page0.CONFIG.offset,
    }[missing]
    rig.cmdqv.write(at, 4, 0)
    assert rig.run(GUESTS).RD == 0
    rig.start()
    rig.cmdqv.write(queue_page0(rig.queue) + Page0.PROD.offset, 4, 1)
    assert rig.read(Page0.CONS) == 1


def test_errors_are_shown_by_interface_and_queue_until_they_are_acknowledged():
    rig = Rig()
    rig.start()
    assert rig.maps() == (0, 0)
    rig.run(ALL)
    assert (rig.maps(), rig.interrupts) == ((1 << rig.interface, 1 << rig.logical), 1)
    rig.memory.write_u64(rig.base, GUESTS[0])
    rig.cmdqv.write(queue_page0(rig.queue) + Page0.GERRORN.offset, 4, 1)
    assert (rig.maps(), rig.interrupts, rig.read(Page0.CONS)) == ((0, 0), 1, 1)
    rig.run(ALL)
    rig.cmdqv.write(Registers.CMDQ_ALLOC.at(rig.queue), 4, 0)
    assert rig.maps() == (0, 0)


def test_a_queue_outside_memory_aborts():
    rig = Rig()
    rig.start(base=1 << 40)
    assert rig.run(GUESTS).ERR == CommandError.ABT


def test_streams_are_replaced_by_pairs():
    rig = Rig()
    heard = []

    class Endpoint:
        def invalidate(self, pasid, first, last):
            heard.append((pasid, first))
            return True

    smmu = rig.cmdqv.queues[0]._commands._smmu
    smmu.connect(0x1234, Endpoint())
    smmu.enabled = True
    rig.start()
    rig.cmdqv.write(vintf(4) + VintfRegisters.SID_REPLACE.at(3), 4, 0x1234)
    rig.cmdqv.write(vintf(4) + VintfRegisters.SID_MATCH.at(3), 4, SidMatch.of(EN=1, SID=0x55))
    assert rig.run((int(Op.ATC_INV) | 0x55 << 32, 0x8000)) == CmdqCons.of(RD=1)
    assert heard == [(None, 0x8000)]
    assert rig.run((int(Op.ATC_INV) | 0x1234 << 32, 0)).ERR == CommandError.ILL


@pytest.mark.parametrize(
    "fields", [{"NUM_VCMDQ_LOG2": 5}, {"NUM_VINTF_LOG2": 7}, {"NUM_VCMDQ_LOG2": 8}, {"NUM_SID_PER_VM_LOG2": 5}]
)
def test_numbers_that_no_hardware_has_are_refused(fields):
    with pytest.raises(ModelError, match="PARAM"):
        Rig(TEGRA241.replace(**fields))


@given(
    writes=st.lists(
        st.tuples(
            st.one_of(
                st.integers(0, 0x400),
                st.integers(0x1000, 0x1400),
                st.integers(0x10000, 0x10200),
                st.integers(0x20000, 0x20200),
                st.integers(0x30000, 0x70000),
            ),
            st.sampled_from([4, 8]),
            st.integers(0, 2**64 - 1),
        ),
        max_size=30,
    )
)
def test_any_writes_are_taken(writes):
    rig = Rig(Param.of(NUM_VCMDQ_LOG2=2, NUM_VINTF_LOG2=1), queue=1, interface=1, logical=0)
    rig.start()
    for at, width, value in writes:
        rig.cmdqv.write(at & -width, width, value & (1 << 8 * width) - 1)
        rig.cmdqv.read(at & -width, width)
