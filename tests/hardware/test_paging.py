"""An NVMe controller that asks for missing pages: what it was doing is done once they are there, or fails by itself."""

import pytest
from nvme_driver import FLUSH, READ, WRITE, Driver
from paging_platform import PAGE, Platform, allow

from softiommu.hardware.bus import Port
from softiommu.hardware.devices.nvme.controller import Nvme
from softiommu.hardware.devices.nvme.namespace import Namespace, RamBacking
from softiommu.hardware.pci_config import ExtendedId
from softiommu.memory.physical import PhysicalMemory

DATA_TRANSFER_ERROR = 0x04


class Rig(Driver):
    """The controller, and a driver that has allowed it to ask."""

    def __init__(self):
        memory = PhysicalMemory(16 << 20)
        self.platform = Platform()
        port = Port(memory, 0x38, self.platform)
        self.nvme = Nvme(port, [Namespace(RamBacking(1 << 20))], ats=self.platform)
        super().__init__(self.nvme.function, memory)
        allow(self.function)
        self.platform.answer = self.platform.supply
        assert self.enable() == 1
        self.make_queues()
        assert self.run(1, FLUSH, 1).status == 0
        self.platform.wanted.clear()

    def start(self, opcode, lba, pages):
        """A command of one block a page of data, with nobody waiting for it."""
        prp1, prp2 = self.prps(pages)
        cid = self.push(self.rings[1], opcode, 1, prp1=prp1, prp2=prp2, dword10=lba, dword12=len(pages) * 8 - 1)
        self.ring_doorbell(self.rings[1])
        return cid


@pytest.fixture
def rig():
    return Rig()


def test_an_answer_at_once_is_not_noticed(rig):
    source, target = [rig.alloc() for _ in range(3)], [rig.alloc() for _ in range(3)]
    for number, page in enumerate(source):
        rig.store(page, bytes([number + 1]) * PAGE)
    assert rig.io(WRITE, 0, 24, source).status == 0
    assert rig.io(READ, 0, 24, target).status == 0
    assert [rig.load(page, PAGE) for page in target] == [rig.load(page, PAGE) for page in source]
    assert set(source + target) <= set(rig.platform.asked())
    assert len(rig.platform.asked()) == len(set(rig.platform.asked()))


def test_a_command_waits_until_it_is_answered(rig):
    pages = [rig.alloc() for _ in range(2)]
    rig.store(pages[0], b"a" * PAGE)
    rig.store(pages[1], b"b" * PAGE)
    rig.platform.answer = None
    cid = rig.start(WRITE, 8, pages)
    for count, page in enumerate(pages, 1):
        assert rig.platform.asked() == pages[:count]
        assert rig.peek(rig.rings[1]) is None
        rig.platform.supply(rig.platform.wanted[-1])
        assert page // PAGE in rig.platform.present
    done = rig.pop(rig.rings[1])
    assert (done.cid, done.status, done.sq_head) == (cid, 0, 2)
    assert rig.io(READ, 8, 16, [pages[1], pages[0]]).status == 0
    assert rig.load(pages[1], 1) + rig.load(pages[0], 1) == b"ab"


def test_what_comes_meanwhile_waits_too_and_asks_for_nothing(rig):
    page = rig.alloc()
    rig.platform.answer = None
    first = rig.start(READ, 0, [page])
    second = rig.push(rig.rings[1], FLUSH, 1)
    rig.ring_doorbell(rig.rings[1])
    assert rig.platform.asked() == [page]
    rig.platform.supply(rig.platform.wanted[0])
    assert [rig.pop(rig.rings[1]).cid for _ in range(2)] == [first, second]


def test_a_completion_is_not_lost_when_its_queue_is_not_there(rig):
    ring = rig.rings[1]
    rig.platform.forget(ring.completions)
    rig.platform.answer = None
    cid = rig.push(ring, FLUSH, 1)
    rig.ring_doorbell(ring)
    assert rig.platform.asked() == [ring.completions]
    assert rig.peek(ring) is None
    rig.platform.supply(rig.platform.wanted[0])
    done = rig.pop(ring)
    assert (done.cid, done.status) == (cid, 0)
    assert rig.run(1, FLUSH, 1).status == 0


@pytest.mark.parametrize("at_once", [True, False])
def test_a_refused_page_fails_its_command_alone(rig, at_once):
    page = rig.alloc()
    rig.platform.answer = rig.platform.refuse if at_once else None
    cid = rig.start(READ, 0, [page])
    if not at_once:
        rig.platform.refuse(rig.platform.wanted[0])
    done = rig.pop(rig.rings[1])
    assert (done.cid, done.status) == (cid, DATA_TRANSFER_ERROR)
    rig.platform.answer = rig.platform.supply
    assert rig.io(READ, 0, 8, [page]).status == 0


@pytest.mark.parametrize("at_once", [True, False])
def test_a_page_that_stays_missing_in_spite_of_good_answers_is_given_up(rig, at_once):
    page = rig.alloc()
    rig.platform.answer = rig.platform.respond if at_once else None
    rig.start(READ, 0, [page])
    answered = 0
    while not at_once and answered < len(rig.platform.wanted) <= 100:
        rig.platform.respond(rig.platform.wanted[answered])
        answered += 1
    assert rig.pop(rig.rings[1]).status == DATA_TRANSFER_ERROR
    assert set(rig.platform.asked()) == {page}
    rig.platform.answer = rig.platform.supply
    assert rig.io(READ, 0, 8, [page]).status == 0


def test_a_reset_ends_the_waiting(rig):
    page = rig.alloc()
    rig.platform.answer = None
    rig.start(READ, 0, [page])
    late = rig.platform.wanted[0]
    rig.function.reset()
    rig.platform.respond(late)
    assert rig.function.read_config(rig.function.find_capability(ExtendedId.PRI) + 6, 2) & 2  # an unexpected group
    rig.function.write_config(4, 2, 6)
    allow(rig.function)
    rig.platform.answer = rig.platform.supply
    assert rig.enable() == 1
    rig.make_queues()
    assert rig.io(READ, 0, 8, [rig.alloc()]).status == 0


def test_without_ats_nothing_is_asked_and_nothing_is_waited_for(rig):
    page, other = rig.alloc(), rig.alloc()
    rig.platform.answer = None
    rig.start(READ, 0, [page])
    allow(rig.function, ats=False)
    rig.ring_doorbell(rig.rings[1])
    assert rig.pop(rig.rings[1]).status == 0
    allow(rig.function)
    rig.platform.wanted.clear()
    rig.start(READ, 0, [other])
    assert rig.platform.asked() == [other]


def test_a_transfer_asks_for_each_page_once_and_does_not_begin_again_for_each(rig, monkeypatch):
    pages = [rig.alloc() for _ in range(64)]
    asked, translate = [], rig.platform.ats_translate

    def counted(sid, iova, *rest):
        asked.append(iova)
        return translate(sid, iova, *rest)

    monkeypatch.setattr(rig.platform, "ats_translate", counted)
    assert rig.io(READ, 0, 512, pages).status == 0
    assert [iova for iova in rig.platform.asked() if iova in pages] == pages
    assert len(asked) <= 4 * len(pages)


def test_what_comes_before_a_refused_page_is_moved_and_the_page_is_asked_for_once(rig):
    pages = [rig.alloc() for _ in range(6)]
    rig.store(pages[0], b"data" * (PAGE // 4))
    assert rig.io(WRITE, 0, 8, pages[:1]).status == 0
    rig.store(pages[0], bytes(PAGE))
    rig.platform.forget(*pages)
    rig.platform.wanted.clear()
    supply, refuse = rig.platform.supply, rig.platform.refuse
    rig.platform.answer = lambda request: (refuse if request.iova == pages[2] else supply)(request)
    rig.start(READ, 0, pages)
    assert rig.pop(rig.rings[1]).status == DATA_TRANSFER_ERROR
    assert rig.platform.asked().count(pages[2]) == 1
    assert rig.load(pages[0], 4) == b"data"
    assert not set(pages[3:]) & set(rig.platform.asked())
    rig.platform.answer = supply
    assert rig.io(READ, 0, 48, pages).status == 0
