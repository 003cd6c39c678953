"""Random guests of both front ends, and guests that write garbage wherever they can."""

from collections import Counter
from functools import partial

import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import run_state_machine_as_test

from drivers.smmuv3_guest import cfgi_cd, tlbi_all, tlbi_asid, tlbi_va
from softiommu.hardware.smmuv3.commands import COMMAND_BYTES, LAYOUTS as COMMANDS, Op
from softiommu.hardware.smmuv3.registers import CmdqProd, Cr0, Gerror, Registers as SmmuRegisters, Ring
from softiommu.hardware.smmuv3.tables import Eats
from softiommu.hardware.vtd.commands import LAYOUTS, Type
from softiommu.hardware.vtd.registers import Fsts, Gcmd, QueuePointer, Registers as VtdRegisters
from softiommu.words import Word
from vmm import smmuv3_vm, vtd_vm
from vmm.any_guest import PASIDS, AnyGuest
from vmm.rig import BASE, SIZE
from vmm.software_vm import SmmuVm, VtdVm

ANY = settings(max_examples=12, stateful_step_count=30, deadline=None)


class VtdGuest(AnyGuest):
    """PASID entries, of domains 1 to 3."""

    sid = vtd_vm.TEST

    def make_vm(self):
        return vtd_vm.Vm()

    def make(self):
        vm = self.make_vm()
        vm.guest.context(self.sid)
        vm.guest.boot()
        return vm

    def did(self, pasid):
        return 1 + PASIDS.index(pasid)

    def write_entry(self, pasid, pages):
        if pages is None:
            self.vm.guest.absent(self.sid, pasid)
        else:
            self.vm.guest.first(self.sid, pages, self.did(pasid), pasid)

    def tell(self, *descriptors):
        assert self.vm.guest.submit(*descriptors)

    def tell_entry(self, pasid):
        self.tell(vtd_vm.forget_pasid(self.did(pasid), pasid))

    def tell_page(self, pasid, iova):
        self.tell(vtd_vm.forget_pages(self.did(pasid), pasid, iova, leaf=1))

    def tell_pages(self, pasid):
        self.tell(vtd_vm.forget_pages(self.did(pasid), pasid))

    def tell_everything(self):
        self.tell(vtd_vm.forget_context(), *(vtd_vm.forget_domain(did) for did in (1, 2, 3)))

    def off_and_on(self):
        self.vm.guest.command(TE=0)
        self.vm.guest.command(TE=1)


class SmmuGuest(AnyGuest):
    """Context descriptors, of address spaces 10 to 12."""

    sid = smmuv3_vm.TEST

    def make_vm(self):
        return smmuv3_vm.Vm()

    def make(self):
        vm = self.make_vm()
        vm.guest.stream(self.sid, EATS=Eats.OFF)
        vm.guest.boot()
        return vm

    def asid(self, pasid):
        return 10 + PASIDS.index(pasid)

    def write_entry(self, pasid, pages):
        self.vm.guest.use(self.sid, pages, self.asid(pasid), pasid or 0)

    def tell(self, *commands):
        assert self.vm.guest.submit(*commands) == 0

    def tell_entry(self, pasid):
        self.tell(cfgi_cd(self.sid, pasid or 0))

    def tell_page(self, pasid, iova):
        self.tell(tlbi_va(iova, self.asid(pasid)))

    def tell_pages(self, pasid):
        self.tell(tlbi_asid(self.asid(pasid)))

    def tell_everything(self):
        self.tell(smmuv3_vm.forget_streams(), tlbi_all())

    def off_and_on(self):
        self.vm.guest.write(SmmuRegisters.CR0, Cr0.of(CMDQEN=1, EVENTQEN=1))
        self.vm.guest.write(SmmuRegisters.CR0, Cr0.of(CMDQEN=1, EVENTQEN=1, SMMUEN=1))


@pytest.mark.parametrize("kind", [VtdGuest, SmmuGuest])
def test_any_guest_sees_what_is_cached_until_it_invalidates_it(kind):
    seen = Counter()

    class Guest(kind):
        def tally(self, what):
            seen[what] += 1

    run_state_machine_as_test(Guest, settings=ANY)
    assert min(seen["stale"], seen["fresh"]) > 0, seen


# Garbage


words = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.builds(lambda page, low: BASE + 4096 * page | low, st.integers(0, SIZE // 4096), st.integers(0, 4095)),
    st.builds(lambda bit, low: 1 << bit | low, st.integers(0, 63), st.integers(0, 0xFFF)),
)


def run(registers, vm, places, ops):
    """Carry out a guest's writes: to registers, and to memory."""
    for kind, where, value in ops:
        if kind == "register":
            slot = registers[where % len(registers)]
            vm.guest.write(slot, value & (1 << 8 * slot.size) - 1)
        elif kind == "bytes":
            unit = getattr(vm, "unit", None) or vm.smmu
            unit.write(where * 4 % 0x1000, 4, value & 0xFFFFFFFF)
            unit.read(where * 4 % 0x1000, 4)
        else:
            start, length = places[where % len(places)]
            vm.ram.write_u64(start + where // len(places) * 8 % length, value)


def operations(doorbell):
    kinds = st.sampled_from(["register", "memory", "memory", "memory", "bytes"])
    return st.lists(st.tuples(kinds, st.integers(0, 1 << 16), words), max_size=30).map(lambda ops: [*ops, doorbell])


@pytest.mark.parametrize("make", [vtd_vm.Vm, partial(VtdVm, "smmuv3")], ids=["hardware", "software"])
@given(
    ops=operations(("memory", 0, 0)),
    descriptors=st.lists(st.tuples(st.sampled_from(Type), words, words), min_size=1, max_size=8),
    exact=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_garbage_in_a_virtual_vtd_is_an_error_of_the_architecture(make, ops, descriptors, exact):
    vm = make()
    guest = vm.guest
    guest.context(vtd_vm.TEST, DTE=1, PRE=1)
    guest.first(vtd_vm.TEST, vm.table(), 1)
    guest.first(vtd_vm.TEST, vm.table(), 2, 1)
    guest.boot()
    leaf = guest.entry_at(vtd_vm.TEST) & ~4095
    contexts = guest.contexts + 32 * vtd_vm.TEST, 32
    places = [contexts, (guest.directories[vtd_vm.TEST], 64), (leaf, 128), (guest.queue, 4096), (guest.root, 16)]
    registers = [slot.register for slot in VtdRegisters.SLOTS]
    run(registers, vm, places, ops)
    # The guest's driver sets the unit up again, and then puts something in the queue.
    for off in (0, Gcmd.QIE.mask):
        guest.write(VtdRegisters.GCMD, off)
    guest.write(VtdRegisters.FSTS, (1 << 32) - 1)
    guest.tail = 0
    for kind, low, high in descriptors:
        layout = LAYOUTS[kind]
        if exact:  # its fields are anything, and its reserved bits right
            low, high = low & ~layout.low.RESERVED, high & ~(layout.high or Word).RESERVED
        guest.submit((low & ~0xE0F | kind, high if layout.high or not exact else 0))
    for pasid in (None, 1):
        vm.test.run(0x10000, 3, pasid)
        vm.unit.service()
    head, tail = (QueuePointer(guest.read(one)).OFFSET for one in (VtdRegisters.IQH, VtdRegisters.IQT))
    stopped = guest.read(VtdRegisters.FSTS) & (Fsts.IQE.mask | Fsts.ITE.mask)
    assert head == tail or stopped
    vm.close()


@pytest.mark.parametrize("make", [smmuv3_vm.Vm, SmmuVm], ids=["hardware", "software"])
@given(
    ops=operations(("memory", 0, 0)),
    commands=st.lists(st.tuples(st.sampled_from(Op), words, words), min_size=1, max_size=8),
    exact=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_garbage_in_a_virtual_smmuv3_is_an_error_of_the_architecture(make, ops, commands, exact):
    vm = make()
    guest = vm.guest
    guest.stream(smmuv3_vm.TEST)
    guest.use(smmuv3_vm.TEST, vm.table(), 5)
    guest.boot()
    ste = guest.ste_at(smmuv3_vm.TEST), 64
    contexts = guest.contexts[smmuv3_vm.TEST], 128
    places = [ste, ste, contexts, (guest.streams, 32), (guest.commands, 1024), (guest.events, 1024)]
    run([slot.register for slot in SmmuRegisters.SLOTS], vm, places, ops)
    base, ring = guest.read(SmmuRegisters.CMDQ_BASE), Ring(min(guest.read(SmmuRegisters.CMDQ_BASE).LOG2SIZE, 16))
    start, prod = base.ADDR << 5, guest.read(SmmuRegisters.CMDQ_PROD).WR
    for op, low, high in commands:
        at = start + COMMAND_BYTES * ring.slot(prod)
        if exact:
            low, high = low & ~COMMANDS[op].low.RESERVED, high & ~COMMANDS[op].high.RESERVED
        if BASE <= at < BASE + SIZE - COMMAND_BYTES:
            vm.ram.write_u64(at, low & ~0xFF | op)
            vm.ram.write_u64(at + 8, high)
        prod = ring.next(prod)
        guest.write(SmmuRegisters.CMDQ_PROD, CmdqProd.of(WR=prod))
    for pasid in (None, 1):
        vm.test.run(0x10000, 3, pasid)
        vm.smmu.service()
    done = ring.empty(guest.read(SmmuRegisters.CMDQ_PROD).WR, guest.read(SmmuRegisters.CMDQ_CONS).RD)
    stopped = (guest.read(SmmuRegisters.GERROR) ^ guest.read(SmmuRegisters.GERRORN)) & Gerror.CMDQ_ERR.mask
    assert done or stopped or not guest.read(SmmuRegisters.CR0ACK).CMDQEN
    vm.close()


@pytest.mark.parametrize("make", [vtd_vm.Vm, smmuv3_vm.Vm])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_every_place_of_the_register_page_can_be_read_and_written_in_every_width(make, width):
    vm = make()
    unit = getattr(vm, "unit", None) or vm.smmu
    for offset in range(0, 0x600, width):
        assert 0 <= unit.read(offset, width) < 1 << 8 * width
        unit.write(offset, width, (1 << 8 * width) - 1)
    vm.close()
