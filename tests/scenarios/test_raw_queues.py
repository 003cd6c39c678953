"""Raw queues where raw is right.

An SMMUv3 guest's command-queue entries are taken whole, in order: VMID is overwritten, virtual stream ids are
translated, anything else is refused at its entry, and the caller learns how many were consumed. In a queue that the
guest owns, the same commands run without a call, with the error codes that the hardware has.
"""

import errno

import pytest

from api.smmuv3_vm import RW, TEST, Vm
from api.test_guest_queues import Queue, QueueVm
from drivers.smmuv3_guest import atc_inv, tlbi_asid, tlbi_va
from softiommu.hardware.smmuv3.registers import CommandError

IOVA, PAGE = 0x10000, 4096
NO_COMMAND = (0xFF, 0)


class ByCall:
    """Commands by IOMMU_HWPT_INVALIDATE: how many were consumed, and the errno."""

    REFUSED = errno.EIO

    def __init__(self):
        self.vm = Vm()

    def run(self, *commands):
        """Hand them over."""
        return self.vm.command(*commands)


class ByQueue:
    """Commands in the guest's own queue: how many were consumed, and the queue's error."""

    REFUSED = CommandError.ILL

    def __init__(self):
        self.vm = QueueVm()
        self.queue = Queue(self.vm)
        self.queue.enable()

    def run(self, *commands):
        """Put them in memory, and ring the doorbell."""
        error, left = self.queue.run(*commands)
        return len(commands) - left, error


@pytest.fixture(params=[ByCall, ByQueue], ids=lambda way: way.__name__)
def way(request):
    made = request.param()
    yield made
    made.vm.close()


def a_stale_translation(way, pages=2):
    """A guest whose device holds old translations of several pages, which lead elsewhere now; the new contents."""
    vm = way.vm
    table = vm.table()
    new = []
    vm.use(0, table, 5)
    vm.edu.attach(vm.nested(vm.edu))
    for number in range(pages):
        at = IOVA + number * PAGE
        table.map(at, vm.page(b"old %4d" % number), PAGE, RW)
        assert vm.read_by_edu(at) == b"old %4d" % number
        table.unmap(at, PAGE)
        new.append(b"new %4d" % number)
        table.map(at, vm.page(new[-1]), PAGE, RW)
    return new


def test_commands_are_carried_out_in_order_up_to_the_one_that_is_refused(way):
    new = a_stale_translation(way)
    assert way.run(tlbi_va(IOVA, 5), NO_COMMAND, tlbi_va(IOVA + PAGE, 5)) == (1, way.REFUSED)
    assert way.vm.read_by_edu(IOVA) == new[0]
    assert way.vm.read_by_edu(IOVA + PAGE) == b"old    1"


def test_a_guest_names_its_own_streams_and_no_other(way):
    a_stale_translation(way)
    way.vm.test.attach(way.vm.nested(way.vm.test))
    assert way.run(atc_inv(TEST, IOVA)) == (1, 0)
    assert way.run(atc_inv(0x77, IOVA)) == (0, way.REFUSED)


def test_a_guest_forgets_its_own_translations_whatever_vmid_it_writes(way):
    new = a_stale_translation(way)
    low, high = tlbi_asid(5)
    assert way.run((low | 0xFFFF << 32, high)) == (1, 0)
    assert [way.vm.read_by_edu(IOVA + number * PAGE) for number in range(2)] == new
