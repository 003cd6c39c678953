"""A guest's own command queue (Tegra241's CMDQV) through iommufd: its memory, its doorbell page, its errors."""

import errno
import fcntl
import os
import struct
import time

import pytest
from hypothesis import given, settings, strategies as st

from api.smmuv3_vm import EDU, NODE, NVME0, RW, TEST, Vm, refusal
from drivers.smmuv3_guest import RAM, RAM_SIZE, atc_inv, cfgi_cd, tlbi_all, tlbi_asid, tlbi_va
from softiommu.abi.iommufd import (
    HwInfoTegra241Cmdqv,
    HwInfoType,
    HwQueueType,
    VeventqType,
    VeventTegra241Cmdqv,
    ViommuTegra241Cmdqv,
    ViommuType,
)
from softiommu.hardware.smmuv3.commands import Op, Signal, Sync0
from softiommu.hardware.smmuv3.registers import CmdqCons, CommandError

TEGRA = HwQueueType.TEGRA241_CMDQV
CONS, PROD, CONFIG, STATUS, GERROR, GERRORN = range(0, 24, 4)
SYNC = (int(Sync0.of(OPCODE=Op.SYNC)), 0)
IOVA = 0x10000
LG2 = 4
SIZE = 16 << LG2


class Queue:
    """A guest's driver of one of its queues: commands in its RAM, registers in the page that it maps."""

    def __init__(self, vm, index=0, lg2=LG2):
        self.vm, self.at, self.lg2 = vm, 0x80 * index, lg2
        self.memory = vm.guest.memory
        self.base = self.memory.alloc(max(4096, 16 << lg2), max(4096, 16 << lg2))
        self.handle = vm.viommu.hw_queue(TEGRA, index, self.base, 16 << lg2)
        self.prod = 0

    def load(self, register):
        return struct.unpack_from("<I", self.vm.page_of_queues, self.at + register)[0]

    def store(self, register, value):
        struct.pack_into("<I", self.vm.page_of_queues, self.at + register, value)

    def enable(self):
        for register, value in ((CONS, 0), (PROD, 0), (CONFIG, 1)):
            self.store(register, value)
        self.vm.viommu.poll()
        assert self.load(STATUS) == 1

    def put(self, *commands, ring=True):
        for low, high in commands:
            at = self.base + 16 * (self.prod & (1 << self.lg2) - 1)
            self.memory.write(at, struct.pack("<QQ", low, high))
            self.prod = self.prod + 1 & (2 << self.lg2) - 1
        if ring:
            self.store(PROD, self.prod)

    def run(self, *commands):
        """The error, and how many commands are left."""
        self.put(*commands)
        self.settle()
        cons = CmdqCons(self.load(CONS))
        return cons.ERR, self.prod - cons.RD & (2 << self.lg2) - 1

    def settle(self):
        """Wait until nothing goes on: without a call, where the machine is not in this process."""
        if not NODE:
            self.vm.viommu.poll()
            return
        begun, patience = time.monotonic(), 10
        while not self.settled and time.monotonic() - begun < patience:
            time.sleep(0.001)

    @property
    def settled(self):
        """Whether the queue is empty, or stopped by an error."""
        return self.load(CONS) == self.prod or bool(self.load(GERROR) ^ self.load(GERRORN))

    def acknowledge(self):
        self.store(GERRORN, self.load(GERROR))
        self.vm.viommu.poll()


class QueueVm(Vm):
    """A guest whose vIOMMU has queues."""

    def __init__(self, machine="tegra241"):
        super().__init__(machine, self._viommu)

    def _viommu(self):
        answer = bytearray(ViommuTegra241Cmdqv.SIZE)
        viommu = self.edu.viommu(ViommuType.TEGRA241_CMDQV, self.parent, answer)
        self.where = ViommuTegra241Cmdqv.from_bytes(bytes(answer))
        self.page_of_queues = self.iommufd.backend.mmap(
            self.where.out_vintf_mmap_offset, self.where.out_vintf_mmap_length
        )
        self.errors = viommu.event_queue(VeventqType.TEGRA241_CMDQV, 8, 16)
        return viommu

    def close(self):
        self.page_of_queues.close()
        self.iommufd.backend.close_fd(self.errors.fd)
        super().close()


@pytest.fixture
def vm():
    with QueueVm() as made:
        yield made


@pytest.fixture
def queue(vm):
    made = Queue(vm)
    made.enable()
    return made


def test_the_hardware_tells_what_there_is(vm):
    info = vm.edu.hw_info(HwInfoType.TEGRA241_CMDQV)
    told = HwInfoTegra241Cmdqv.from_bytes(info.data)
    assert (info.type, told.version, told.log2vcmdqs, told.log2vsids) == (HwInfoType.TEGRA241_CMDQV, 1, 1, 4)
    assert vm.where.out_vintf_mmap_length == 0x10000
    assert vm.edu.hw_info().type == HwInfoType.ARM_SMMUV3
    if NODE:
        return
    with Vm() as plain:
        assert refusal(plain.edu.hw_info, HwInfoType.TEGRA241_CMDQV) == errno.EOPNOTSUPP
        assert refusal(plain.edu.viommu, ViommuType.TEGRA241_CMDQV, plain.parent, bytearray(16)) == errno.EOPNOTSUPP


def test_commands_run_from_the_guests_memory_without_a_call_for_each(vm, queue):
    pages, old, new = vm.table(), vm.page(b"old page"), vm.page(b"new page")
    pages.map(IOVA, old, 4096, RW)
    vm.use(0, pages, 5)
    for device, read, name in ((vm.edu, vm.read_by_edu, EDU), (vm.test, vm.read_by_test, TEST)):
        device.attach(vm.nested(device))
        assert read(IOVA) == b"old page"
        pages.unmap(IOVA, 4096)
        pages.map(IOVA, new, 4096, RW)
        assert read(IOVA) == b"old page"
        queue.put(tlbi_va(IOVA, 5), atc_inv(name, IOVA), SYNC, ring=False)
        assert read(IOVA) == b"old page"
        queue.store(PROD, queue.prod)
        assert read(IOVA) == b"new page"  # the device's doorbell is a call of the machine
        assert queue.load(CONS) == queue.prod
        pages.unmap(IOVA, 4096)
        pages.map(IOVA, old, 4096, RW)
        assert queue.run(tlbi_asid(5), atc_inv(name, 0, lg2=52), SYNC) == (0, 0)


def test_the_queue_wraps(vm, queue):
    for _ in range(5):
        assert queue.run(*[tlbi_va(IOVA, 5)] * 10, SYNC) == (0, 0)
    assert queue.run(*[tlbi_va(IOVA, 5)] * 16) == (0, 0)


@pytest.mark.parametrize(
    "bad",
    [
        tlbi_all(),
        cfgi_cd(EDU, 0),
        (int(Op.CFGI_STE), 1),
        (int(Op.TLBI_S12_VMALL), 0),
        (0xEE, 0),
        atc_inv(0x99, 0),
        (int(Op.TLBI_NH_ASID) | 1 << 8, 0),
        (int(Sync0.of(OPCODE=Op.SYNC, CS=Signal.IRQ)), 0x1000),
    ],
)
def test_an_illegal_command_stops_the_queue_until_it_is_replaced(vm, queue, bad):
    assert not vm.errors.ready
    assert queue.run(tlbi_va(IOVA, 5), bad, tlbi_va(IOVA, 6), SYNC) == (CommandError.ILL, 3)
    assert queue.load(GERROR) ^ queue.load(GERRORN) == 1
    ((_, data),) = vm.errors.read()
    assert VeventTegra241Cmdqv.from_bytes(data) == VeventTegra241Cmdqv(1, 0)
    assert queue.run(tlbi_va(IOVA, 7)) == (CommandError.ILL, 4)
    vm.guest.memory.write(queue.base + 16, struct.pack("<QQ", *SYNC))
    queue.acknowledge()
    assert (queue.load(CONS), queue.load(GERROR)) == (queue.prod, queue.load(GERRORN))
    assert queue.run(SYNC) == (0, 0)


@pytest.mark.skipif(bool(NODE), reason="it reaches into the machine")
def test_a_device_that_does_not_answer_is_an_error_of_the_sync(vm, queue):
    tlb = vm.iommufd.backend.machine.hardware.devices[2].function.port.iommu
    tlb.invalidate = lambda pasid, first, last: False
    assert queue.run(atc_inv(TEST, 0), tlbi_va(IOVA, 5), SYNC, tlbi_va(IOVA, 5)) == (CommandError.ATC_INV_SYNC, 2)
    queue.acknowledge()
    assert queue.run() == (0, 0)


class FileQueue(Queue):
    """A queue in a file of its own, full of commands, which can be cut short."""

    LENGTH = 2 << 20

    def __init__(self, vm):
        self.vm, self.at, self.lg2, self.base, self.prod = vm, 0, 7, 1 << 40, 0
        self.fd = os.memfd_create("queue")
        self.fill()
        vm.ioas.map_file(self.fd, 0, self.LENGTH, iova=self.base)
        self.handle = vm.viommu.hw_queue(TEGRA, 0, self.base, 16 << self.lg2)

    def fill(self):
        os.ftruncate(self.fd, self.LENGTH)
        os.pwrite(self.fd, struct.pack("<4Q", *tlbi_va(IOVA, 5), *SYNC) * (1 << self.lg2 - 1), 0)

    def ring(self, count):
        self.prod += count
        self.store(PROD, self.prod)
        return self.run()


def test_a_queue_whose_memory_is_gone_aborts_until_it_is_back(vm):
    queue = FileQueue(vm)
    queue.enable()
    assert queue.ring(2) == (0, 0)
    os.ftruncate(queue.fd, 0)
    assert queue.ring(2) == (CommandError.ABT, 2)
    assert queue.load(GERROR) ^ queue.load(GERRORN) == 1
    assert VeventTegra241Cmdqv.from_bytes(vm.errors.read()[0].data) == VeventTegra241Cmdqv(1, 0)
    queue.acknowledge()
    assert queue.run() == (CommandError.ABT, 2)
    queue.fill()
    queue.acknowledge()
    assert queue.ring(60) == (0, 0)
    os.close(queue.fd)


def test_two_queues_are_two(vm, queue):
    second = Queue(vm, 1)
    second.enable()
    assert second.run((0xEE, 0)) == (CommandError.ILL, 1)
    assert queue.run(tlbi_va(IOVA, 5), SYNC) == (0, 0)
    assert VeventTegra241Cmdqv.from_bytes(vm.errors.read()[0].data) == VeventTegra241Cmdqv(2, 0)
    assert refusal(queue.handle.destroy) == errno.EBUSY
    second.handle.destroy()
    queue.handle.destroy()
    Queue(vm, 0).enable()


def test_what_makes_no_queue_is_refused(vm):
    def ask(index=0, iova=RAM, length=4096, type=TEGRA):
        return refusal(vm.viommu.hw_queue, type, index, iova, length)

    assert ask(type=99) == errno.EOPNOTSUPP
    assert ask(index=2) == errno.EINVAL
    assert ask(index=1) == errno.EIO
    assert ask(length=4096 + 16) == errno.EFAULT  # pages of a file lie apart
    assert ask(length=48) == errno.EINVAL
    assert ask(length=16) == errno.EINVAL
    assert ask(iova=RAM + 1024, length=2048) == errno.EINVAL
    assert ask(iova=RAM + RAM_SIZE) in (errno.ENOENT, errno.EFAULT, errno.EINVAL)
    made = Queue(vm)
    assert ask() == errno.EEXIST
    assert refusal(vm.viommu.destroy) == errno.EBUSY
    made.handle.destroy()
    for data in (None, bytearray(8), bytearray(24)):
        assert refusal(vm.edu.viommu, ViommuType.TEGRA241_CMDQV, vm.parent, data) == errno.EINVAL
    nvme = vm.device(NVME0)
    assert refusal(vm.viommu.vdevice, nvme, 1 << 31) == errno.EINVAL
    vm.viommu.vdevice(nvme, (1 << 31) - 1)


def test_a_queue_lies_in_memory_as_the_hardware_reads_it_whatever_its_guest_address(vm):
    fd, size, iova = os.memfd_create("together", os.MFD_ALLOW_SEALING), 64 << 20, 2 << 32
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    mapping = vm.ioas.map_file(fd, 4096, size - 4096, iova=iova)
    # From an odd page of the file on: the hardware would begin to read a page before, which is not the guest's.
    assert refusal(vm.viommu.hw_queue, TEGRA, 0, iova, 8192) == errno.EINVAL
    odd = vm.viommu.hw_queue(TEGRA, 0, iova + 4096, 8192)
    os.pwrite(fd, struct.pack("<QQ", *SYNC) * 4 + struct.pack("<QQ", 0xFF, 0), 8192)
    for register, value in ((CONS, 0), (PROD, 0), (CONFIG, 1), (PROD, 5)):
        struct.pack_into("<I", vm.page_of_queues, register, value)
        vm.viommu.poll()
    cons = CmdqCons(struct.unpack_from("<I", vm.page_of_queues, CONS)[0])
    assert (cons.RD, cons.ERR) == (4, CommandError.ILL)
    odd.destroy()
    mapping.unmap()
    os.close(fd)


def test_names_come_and_go_with_their_vdevices(vm, queue):
    nvme = vm.device(NVME0)
    name = vm.viommu.vdevice(nvme, 0x77)
    assert queue.run(atc_inv(0x77, 0), SYNC) == (0, 0)
    name.destroy()
    assert queue.run(atc_inv(0x77, 0), SYNC) == (CommandError.ILL, 2)


def test_a_page_that_is_mapped_keeps_its_viommu(vm):
    assert refusal(vm.viommu.destroy) == errno.EBUSY


@pytest.mark.skipif(bool(NODE), reason="it needs a machine of its own")
def test_there_are_only_so_many_interfaces():
    from softiommu.machine.assemble import Machine
    from softiommu.machine.description import parse

    text = """
name = "small"
[[iommu]]
name = "smmu0"
model = "smmuv3"
unit = "tegra241"
cmdqv = { NUM_VCMDQ_LOG2 = 2, NUM_VINTF_LOG2 = 1, NUM_SID_PER_VM_LOG2 = 0 }
[[device]]
name = "edu0"
address = "0000:00:04.0"
model = "edu"
[[device]]
name = "pcitest0"
address = "0000:00:08.0"
model = "pcitest"
"""
    import softiommu

    with softiommu.open(Machine(parse(text, "small.toml"))) as iommufd:
        edu, test = iommufd.device("edu0"), iommufd.device("pcitest0")
        parent = edu.hwpt(iommufd.ioas(), 1)
        viommu = edu.viommu(ViommuType.TEGRA241_CMDQV, parent, bytearray(16))
        for data, error in ((bytearray(16), errno.ENOSPC), (None, errno.EINVAL), (bytearray(8), errno.EINVAL)):
            assert refusal(edu.viommu, ViommuType.TEGRA241_CMDQV, parent, data) == error
        viommu.vdevice(edu, 1)
        assert refusal(viommu.vdevice, test, 2) == errno.ENOSPC


@settings(max_examples=10 if NODE else 60)
@given(
    stores=st.lists(
        st.tuples(st.sampled_from([CONS, PROD, CONFIG, STATUS, GERROR, GERRORN]), st.integers(0, 2**32 - 1)),
        max_size=12,
    ),
    commands=st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=16),
)
def test_garbage_in_the_page_and_the_queue_stops_nobody_else(stores, commands):
    with QueueVm() as vm:
        queue = Queue(vm)
        queue.put(*commands, ring=False)
        for register, value in stores:
            queue.store(register, value)
            vm.viommu.poll()
        assert vm.command(tlbi_all()) == (1, 0)
