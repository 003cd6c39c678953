"""Queues to the program: page faults and their answers, and a vIOMMU's events."""

from __future__ import annotations

from errno import EBUSY, EEXIST, EFAULT, EINVAL, EOPNOTSUPP, ESPIPE
from typing import NamedTuple

import pytest

from iommufd.fakes import BASE
from iommufd.good import viommu
from iommufd.soft import Soft, refused
from softiommu.abi import iommufd as abi, iommufd_test as test
from softiommu.drivers.driver import PageFault, PageResponse
from softiommu.drivers.mock.driver import MockDevice
from softiommu.iommufd.device import DeviceObject
from softiommu.iommufd.events import EventFile
from softiommu.memory.files import POLLIN, POLLOUT

PAGE = 4096
BUFFER = BASE + 20 * PAGE


class Faulty(NamedTuple):
    """A mock device on an HWPT with a fault queue."""

    soft: Soft
    device: DeviceObject
    selftest: int
    queue: EventFile
    plain: int

    def fault(self, group: int, last: bool = True, pasid: int | None = None) -> None:
        """The device reports a fault."""
        assert self.device.device.on_fault is not None
        self.device.device.on_fault(PageFault(pasid, group, last, 1, 0x5000 + group))

    def read(self, count: int = 400) -> list[abi.HwptPgfault]:
        """What a read gives."""
        done = self.queue.read(self.soft.caller, BUFFER, count)
        raw = self.soft.caller.read(BUFFER, done)
        return [abi.HwptPgfault.from_bytes(raw, at) for at in range(0, done, 40)]

    def respond(self, *answers: tuple[int, int]) -> int:
        """Write (cookie, code) pairs."""
        raw = b"".join(abi.HwptPageResponse(*answer).to_bytes() for answer in answers)
        self.soft.caller.write(BUFFER, raw)
        return self.queue.write(self.soft.caller, BUFFER, len(raw))

    @property
    def responses(self) -> list[tuple[int, PageResponse]]:
        """What the device was answered: group and code."""
        mock = self.device.device
        assert isinstance(mock, MockDevice)
        return [(fault.group, code) for fault, code in mock.responses]


@pytest.fixture
def faulty(soft: Soft) -> Faulty:
    ioas = soft.ioas()
    made = soft.mock(ioas)
    queue = soft.call(abi.FaultAlloc())
    hwpt = soft.hwpt(made.out_idev_id, ioas, 4, fault_id=queue.out_fault_id)
    soft.op(test.TestOp.MOCK_DOMAIN_REPLACE, made.out_stdev_id, test.MockDomainReplace(pt_id=hwpt))
    file = soft.caller.files[queue.out_fault_fd]
    assert isinstance(file, EventFile)
    device = soft.ctx.objects.get(made.out_idev_id, DeviceObject)
    return Faulty(soft, device, made.out_stdev_id, file, ioas)


def test_a_group_of_faults_is_read_whole_with_one_cookie(faulty: Faulty) -> None:
    faulty.fault(3, last=False)
    assert faulty.queue.poll() == POLLOUT
    faulty.fault(3)
    assert faulty.queue.poll() == POLLIN | POLLOUT
    with refused(EINVAL):
        faulty.read(40)
    first, second = faulty.read(80)
    assert (first.cookie, second.cookie) == (1, 1)
    assert (first.flags, second.flags) == (0, 2)
    assert faulty.queue.poll() == POLLOUT


def test_a_read_takes_as_many_groups_as_fit(faulty: Faulty) -> None:
    for group in range(3):
        faulty.fault(group)
    assert [fault.cookie for fault in faulty.read(80)] == [1, 2]
    assert [fault.grpid for fault in faulty.read(80)] == [2]
    assert faulty.read(80) == []


def test_a_cookie_is_the_lowest_that_no_unanswered_group_has(faulty: Faulty) -> None:
    for group in range(4):
        faulty.fault(group)
    assert [fault.cookie for fault in faulty.read()] == [1, 2, 3, 4]
    assert faulty.respond((2, 0), (3, 1)) == 16
    for group in range(4, 7):
        faulty.fault(group)
    assert [fault.cookie for fault in faulty.read()] == [2, 3, 5]
    assert faulty.responses == [(1, PageResponse.SUCCESS), (2, PageResponse.INVALID)]


def test_a_write_stops_at_the_first_bad_answer(faulty: Faulty) -> None:
    faulty.fault(1)
    faulty.read()
    assert faulty.respond((1, 0), (1, 0)) == 8
    with refused(EINVAL):
        faulty.respond((1, 0))
    with refused(EINVAL):
        faulty.respond((9, 2))
    with refused(ESPIPE):
        faulty.queue.write(faulty.soft.caller, BUFFER, 7)
    with refused(EFAULT):
        faulty.queue.write(faulty.soft.caller, 0, 8)
    assert faulty.queue.write(faulty.soft.caller, 0, 0) == 0


def test_a_fault_that_cannot_be_stored_stays_in_the_queue(faulty: Faulty) -> None:
    faulty.fault(1)
    with refused(EFAULT):
        faulty.queue.read(faulty.soft.caller, 0, 40)
    with refused(ESPIPE):
        faulty.queue.read(faulty.soft.caller, BUFFER, 39)
    assert [fault.grpid for fault in faulty.read()] == [1]


def test_a_device_that_moves_gets_its_faults_answered_invalid(faulty: Faulty) -> None:
    faulty.fault(1)
    faulty.read()
    faulty.fault(2)
    cmd = test.MockDomainReplace(pt_id=faulty.plain)
    faulty.soft.op(test.TestOp.MOCK_DOMAIN_REPLACE, faulty.selftest, cmd)
    assert sorted(faulty.responses, key=lambda answer: answer[0]) == [
        (1, PageResponse.INVALID),
        (2, PageResponse.INVALID),
    ]
    assert faulty.queue.poll() == POLLOUT
    with refused(EINVAL):
        faulty.respond((1, 0))


def test_ten_thousand_faults_are_read_and_dropped_without_delay(faulty: Faulty) -> None:
    for group in range(10_000):
        faulty.fault(group)
    while faulty.read(PAGE // 40 * 40):
        pass
    cmd = test.MockDomainReplace(pt_id=faulty.plain)
    faulty.soft.op(test.TestOp.MOCK_DOMAIN_REPLACE, faulty.selftest, cmd)
    assert len(faulty.responses) == 10_000


def test_a_fault_of_an_unattached_pasid_has_nobody_to_answer_it_on_a_paging_hwpt(faulty: Faulty) -> None:
    faulty.fault(1, pasid=7)
    assert faulty.responses == [(1, PageResponse.INVALID)]
    assert faulty.read() == []


def test_a_queue_is_busy_while_its_descriptor_is_open_or_an_hwpt_uses_it(faulty: Faulty) -> None:
    number = faulty.queue.queue.id
    assert faulty.soft.errno(abi.Destroy(id=number)) == EBUSY
    fd = next(fd for fd, file in faulty.soft.caller.files.items() if file is faulty.queue)
    faulty.soft.caller.close(fd)
    assert faulty.soft.errno(abi.Destroy(id=number)) == EBUSY


# Events of a vIOMMU


class Noisy(NamedTuple):
    """A vIOMMU's event queue."""

    soft: Soft
    device: int
    file: EventFile

    def trigger(self) -> None:
        """The device reports an event."""
        self.soft.op(test.TestOp.TRIGGER_VEVENT, 0, test.TriggerVevent(dev_id=self.device))

    def read(self, count: int = 4096) -> list[tuple[int, int]]:
        """Flags and sequence number of each event."""
        done = self.file.read(self.soft.caller, BUFFER, count)
        raw, at, events = self.soft.caller.read(BUFFER, done), 0, []
        while at < done:
            header = abi.VeventHeader.from_bytes(raw, at)
            events.append((header.flags, header.sequence))
            at += 8 if header.flags else 12
        return events


def noisy(soft: Soft, depth: int) -> Noisy:
    """A device on a vIOMMU's nested HWPT, and the queue for its events."""
    device, number = viommu(soft)
    soft.call(abi.VdeviceAlloc(viommu_id=number, dev_id=device, virt_id=0x77))
    nested = soft.nested(device, number)
    selftest = next(obj.id for obj in soft.ctx.objects if obj.kind == "selftest")
    soft.op(test.TestOp.MOCK_DOMAIN_REPLACE, selftest, test.MockDomainReplace(pt_id=nested))
    kind = test.VEVENTQ_TYPE_SELFTEST
    made = soft.call(abi.VeventqAlloc(viommu_id=number, type=kind, veventq_depth=depth))
    file = soft.caller.files[made.out_veventq_fd]
    assert isinstance(file, EventFile)
    return Noisy(soft, device, file)


def test_a_full_event_queue_has_one_marker_at_its_tail_with_the_last_lost_number(soft: Soft) -> None:
    queue = noisy(soft, 2)
    for _ in range(5):
        queue.trigger()
    assert queue.read() == [(0, 0), (0, 1), (1, 4)]
    queue.trigger()
    assert queue.read() == [(0, 5)]


def test_a_marker_goes_when_there_is_room_again(soft: Soft) -> None:
    queue = noisy(soft, 2)
    for _ in range(3):
        queue.trigger()
    assert queue.read(12) == [(0, 0)]
    queue.trigger()
    assert queue.read() == [(0, 1), (0, 3)]


def test_an_event_queue_says_what_does_not_fit(soft: Soft) -> None:
    queue = noisy(soft, 2)
    with refused(EINVAL):
        queue.file.read(soft.caller, BUFFER, 7)
    assert queue.read(8) == []
    assert queue.file.poll() == 0
    queue.trigger()
    assert queue.file.poll() == POLLIN
    with refused(EINVAL):
        queue.file.read(soft.caller, BUFFER, 11)
    with refused(EFAULT):
        queue.file.read(soft.caller, 0, 12)
    with refused(EINVAL):
        queue.file.write(soft.caller, BUFFER, 8)
    assert queue.read(12) == [(0, 0)]


def test_a_viommu_has_one_event_queue_of_each_type(soft: Soft) -> None:
    _, number = viommu(soft)
    queue = abi.VeventqAlloc(viommu_id=number, type=5, veventq_depth=1)
    soft.call(queue)
    assert soft.errno(abi.VeventqAlloc(viommu_id=number, type=5, veventq_depth=1)) == EEXIST
    assert soft.errno(abi.VeventqAlloc(viommu_id=number, type=0, veventq_depth=1)) == EOPNOTSUPP
    assert soft.errno(abi.VeventqAlloc(viommu_id=number, type=6, veventq_depth=0)) == EINVAL
    assert soft.errno(abi.VeventqAlloc(viommu_id=number, type=6, veventq_depth=(1 << 19) + 1)) == EINVAL
    assert soft.errno(abi.Destroy(id=number)) == EBUSY


def test_a_change_of_readiness_is_told(soft: Soft) -> None:
    queue = noisy(soft, 2)
    told: list[int] = []
    queue.file.on_poll_change = lambda: told.append(queue.file.poll())
    queue.trigger()
    queue.read()
    assert told == [POLLIN, 0]
