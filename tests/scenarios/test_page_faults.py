"""Page faults reach the program, which maps the page and answers: the transfer goes on.

The device asks for a page that it finds missing (PCIe PRI) and the IOMMU queues the request, or the IOMMU holds what
the device sent (stall) and queues an event. Whoever owns the address space answers for a group at a time. What still
waits when a device leaves its address space is answered for it; and so is, on a machine that has a time-out, what waits
for too long.
"""

import mmap
import os
from contextlib import contextmanager
from dataclasses import replace
from errno import EINVAL

import pytest

import softiommu
from softiommu.abi.iommufd import HwptAllocFlags, PgfaultPerm
from softiommu.clock import MS, ManualClock
from softiommu.hardware.iommu import PageRequest, ResponseCode, TranslationFaultError
from softiommu.machine.assemble import Machine
from softiommu.machine.description import load, parse
from softiommu.pagetable.kinds import READ

#: An SMMUv3 with a device that does not ask: its requests are held, and answered by RESUME.
STALLING = """
name = "smmuv3-stalls"

[[iommu]]
name = "smmu0"
model = "smmuv3"

[[device]]
name = "test0"
address = "0000:00:04.0"
model = "pcitest"
pasid_bits = 16
stalls = true
"""
#: An IOMMU of each make, with a device that makes page requests and has PASIDs.
MACHINES = ("vtd-nested", "amd", "riscv", "smmuv3", STALLING)
IOVA, PAGE = 0x40000, 4096
ALLOC_PASID = HwptAllocFlags.ALLOC_PASID
PATIENCE_MS = 250


class Transfers:
    """A device that copies a page to or from a buffer of its own, and asks for pages that are missing."""

    def __init__(self, device):
        self.device = device
        device.enable()

    def _start(self, iova, command, pasid):
        self.device.write(0, 0x10, 4, 0 if pasid is None else 1 << 31 | pasid)
        self.device.write(0, 0, 8, iova)
        self.device.write(0, 8, 4, command)

    def read(self, iova=IOVA, pasid=None):
        """From memory into the buffer."""
        self._start(iova, 3, pasid)

    def write(self, iova=IOVA, pasid=None):
        """From the buffer to memory."""
        self._start(iova, 1, pasid)

    @property
    def waits(self):
        """Whether the transfer is not over."""
        return bool(self.device.read(0, 8, 4) & 1)


def able_name(host):
    """The device that makes page requests."""
    return next(device.name for device in host.backend.machine.description.devices if device.model == "pcitest")


def page(content=b""):
    """A page of this process."""
    there = mmap.mmap(-1, PAGE)
    there[: len(content)] = content
    return there


def described(name):
    """The description of one of MACHINES."""
    return parse(name, "test.toml") if name is STALLING else load(name)


every_make = pytest.mark.parametrize(
    "name", MACHINES, ids=lambda machine: machine if machine.isprintable() else "smmuv3-stalls"
)


@pytest.fixture(params=MACHINES, ids=lambda machine: machine if machine.isprintable() else "smmuv3-stalls")
def host(request):
    with softiommu.open(Machine(described(request.param))) as iommufd:
        yield iommufd


@contextmanager
def attached(host, device, space, faults, *pasids):
    """HWPTs of an address space with a fault queue, attached to the device or to PASIDs of it."""
    flags = ALLOC_PASID if pasids else HwptAllocFlags(0)
    base, table = device.hwpt(space, flags), device.hwpt(space, flags, faults=faults)
    if pasids:
        device.attach(base)
    for pasid in pasids or (None,):
        device.attach(table, pasid)
    yield table
    for pasid in (*pasids, None):
        device.detach(pasid)
    table.destroy()
    base.destroy()


@pytest.mark.parametrize("pasid", [None, 7])
def test_a_transfer_waits_for_its_page_and_goes_on(host, pasid):
    content = os.urandom(PAGE)
    with host.ioas() as space, host.fault_queue() as faults, host.device(able_name(host)) as device:
        transfers = Transfers(device)
        with attached(host, device, space, faults, *(() if pasid is None else (pasid,))):
            transfers.read(pasid=pasid)
            assert transfers.waits
            assert faults.ready
            (fault,) = faults.read()
            assert (fault.device_id, fault.pasid, fault.addr, fault.last) == (device.id, pasid, IOVA, True)
            assert fault.perm & (PgfaultPerm.READ | PgfaultPerm.WRITE) == PgfaultPerm.READ
            with space.map(page(content), iova=IOVA):
                assert transfers.waits
                faults.respond(fault.cookie)
                assert not transfers.waits
                assert not faults.ready
            transfers.write(pasid=pasid)
            (fault,) = faults.read()
            assert fault.perm & PgfaultPerm.WRITE
            target = page()
            with space.map(target, iova=IOVA):
                faults.respond(fault.cookie)
                assert target[:] == content


def test_an_answer_before_the_page_is_there_makes_the_device_ask_again(host):
    with host.ioas() as space, host.fault_queue() as faults, host.device(able_name(host)) as device:
        transfers = Transfers(device)
        with attached(host, device, space, faults):
            transfers.read()
            (first,) = faults.read()
            faults.respond(first.cookie)
            (again,) = faults.read()
            assert transfers.waits
            assert again.addr == first.addr
            faults.respond(again.cookie, success=False)
            assert not transfers.waits


def test_a_page_that_is_refused_ends_the_transfer(host):
    with host.ioas() as space, host.fault_queue() as faults, host.device(able_name(host)) as device:
        transfers = Transfers(device)
        with attached(host, device, space, faults):
            transfers.write()
            (fault,) = faults.read()
            faults.respond(fault.cookie, success=False)
            assert not transfers.waits
            assert not faults.ready
            untouched = page(b"kept")
            with space.map(untouched, iova=IOVA):
                assert untouched[:4] == b"kept"


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("pasid", [None, 7])
def test_what_waits_when_the_device_leaves_is_refused(host, pasid, seen):
    """Whether the program has read the fault or not. Its answer then comes too late."""
    with host.ioas() as space, host.fault_queue() as faults, host.device(able_name(host)) as device:
        transfers = Transfers(device)
        with attached(host, device, space, faults, *(() if pasid is None else (pasid,))):
            transfers.read(pasid=pasid)
            cookies = [fault.cookie for fault in faults.read()] if seen else []
            device.detach(pasid)
            assert not transfers.waits
            assert not faults.ready
            for cookie in cookies:
                with pytest.raises(OSError, match="cookie"):
                    faults.respond(cookie)


def test_what_waits_when_the_device_moves_is_refused_and_later_faults_go_to_the_new_queue(host):
    with (
        host.ioas() as space,
        host.fault_queue() as old,
        host.fault_queue() as new,
        host.device(able_name(host)) as device,
    ):
        transfers = Transfers(device)
        with attached(host, device, space, old):
            second = device.hwpt(space, faults=new)
            transfers.read()
            assert old.ready
            device.attach(second)
            assert not transfers.waits
            assert not old.ready
            transfers.read()
            (fault,) = new.read()
            assert not old.ready
            with space.map(page(b"here"), iova=IOVA):
                new.respond(fault.cookie)
                assert not transfers.waits
            device.detach()
            second.destroy()


def test_each_pasid_asks_for_itself(host):
    with host.ioas() as space, host.fault_queue() as faults, host.device(able_name(host)) as device:
        transfers = Transfers(device)
        with attached(host, device, space, faults, 3, 0x1FFE):
            for pasid in (3, 0x1FFE):
                transfers.read(pasid=pasid)
                (fault,) = faults.read()
                assert fault.pasid == pasid
                faults.respond(fault.cookie, success=False)
            transfers.read(pasid=4)  # nobody's
            assert not transfers.waits
            assert not faults.ready


def test_without_a_fault_queue_what_is_missing_is_refused_at_once(host):
    with host.ioas() as space, host.device(able_name(host)) as device:
        transfers = Transfers(device)
        device.attach(space)
        for _ in range(600):  # more than a page of requests
            transfers.read()
            assert not transfers.waits
        with space.map(page(b"more"), iova=IOVA):
            transfers.read()
        target = page()
        with space.map(target, iova=IOVA):
            transfers.write()
            assert target[:4] == b"more"
        device.detach()


# Many groups at once


class Requests:
    """Requests of the device that wants pages, any number at a time: `refused` counts those that will not be served."""

    def __init__(self, host):
        machine = host.backend.machine
        self._wired = next(device for device in machine.hardware.devices if device.pci.model == "pcitest")
        self._unit = machine.hardware.iommus[self._wired.pci.iommu].unit
        self.answers, self.codes = [], []
        if self.stalls:
            self._unit.listen(self._wired.place.sid, lambda again: self.answers.append(bool(again)))
        else:
            self._unit.connect(self._wired.place.sid, self)

    @property
    def stalls(self):
        """Each request is held by the IOMMU: there are no groups of more than one."""
        return self._wired.function.features.stalls

    def ask(self, group, *iovas, last=True, pasid=None):
        """Ask for pages in one group."""
        for number, iova in enumerate(iovas, 1):
            if self.stalls:
                with pytest.raises(TranslationFaultError):
                    self._unit.translate(self._wired.place.sid, iova, READ, pasid)
            else:
                ends = last and number == len(iovas)
                self._unit.page_request(PageRequest(self._wired.place.sid, iova, READ, group, ends, pasid))

    def invalidate(self, pasid, first, last):
        """There is nothing to forget."""
        return True

    def page_response(self, pasid, group, code):
        """A group is answered."""
        self.answers.append(code is ResponseCode.SUCCESS)
        self.codes.append((pasid, group, code))


def leave_by_detaching(device, space):
    device.detach()


def leave_by_moving(device, space):
    device.attach(space)


def leave_by_closing(device, space):
    device.close()


@pytest.mark.parametrize("leave", [leave_by_detaching, leave_by_moving, leave_by_closing])
def test_every_group_that_waits_is_refused_once_when_the_device_leaves(host, leave):
    space, faults, device = host.ioas(), host.fault_queue(), host.device(able_name(host))
    requests, table = Requests(host), device.hwpt(space, faults=faults)
    device.attach(table)
    for group in range(6):
        requests.ask(group, IOVA + group * PAGE)
    assert len({fault.cookie for fault in faults.read(3)}) == 3
    requests.ask(9, IOVA, last=False)  # its group never ends
    waiting = 7 if requests.stalls else 6
    leave(device, space)
    assert requests.answers == [False] * waiting
    assert not faults.ready
    assert faults.read() == []
    table.destroy()
    faults.close()
    assert len(requests.answers) == waiting


def test_a_group_that_never_ended_is_no_part_of_a_later_one(host):
    with host.ioas() as space, host.fault_queue() as faults, host.device(able_name(host)) as device:
        requests = Requests(host)
        with attached(host, device, space, faults) as table:
            requests.ask(5, IOVA, IOVA + PAGE, last=False)
            device.detach()
            device.attach(table)
            requests.ask(5, IOVA + 7 * PAGE)
            assert [fault.addr for fault in faults.read()] == [IOVA + 7 * PAGE]


def test_a_group_is_read_whole_and_answered_once(host):
    with host.ioas() as space, host.fault_queue() as faults, host.device(able_name(host)) as device:
        requests = Requests(host)
        with attached(host, device, space, faults):
            requests.ask(5, IOVA, IOVA + PAGE, IOVA + 2 * PAGE)
            found = faults.read()
            assert [fault.addr for fault in found] == [IOVA, IOVA + PAGE, IOVA + 2 * PAGE]
            cookies = {fault.cookie for fault in found}
            assert len(cookies) == (3 if requests.stalls else 1)
            for cookie in cookies:
                faults.respond(cookie)
            assert requests.answers == [True] * len(cookies)


# Time-outs


@pytest.fixture
def late(request, name):
    """A machine where faults are to be answered in time, its clock, and its log."""
    clock = ManualClock()
    machine = Machine(replace(described(name), page_fault_timeout_ms=PATIENCE_MS), clock=clock)
    with softiommu.open(machine) as iommufd:
        yield iommufd, clock, machine.messages


@every_make
@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("pasid", [None, 7])
def test_what_nobody_answers_in_time_fails(late, pasid, seen):
    host, clock, messages = late
    with host.ioas() as space, host.fault_queue() as faults, host.device(able_name(host)) as device:
        transfers = Transfers(device)
        with attached(host, device, space, faults, *(() if pasid is None else (pasid,))):
            transfers.read(pasid=pasid)
            cookies = [fault.cookie for fault in faults.read()] if seen else []
            clock.advance(PATIENCE_MS * MS - 1)
            assert transfers.waits
            clock.advance(1)
            assert not transfers.waits
            assert not faults.ready
            assert faults.read() == []
            assert [line for line in messages if "no answer in time" in line and f"{IOVA:#x}" in line]
            for cookie in cookies:
                with pytest.raises(OSError, match="its time is over") as caught:
                    faults.respond(cookie)
                assert caught.value.errno == EINVAL


@every_make
def test_an_answer_in_time_is_no_failure(late):
    host, clock, messages = late
    with host.ioas() as space, host.fault_queue() as faults, host.device(able_name(host)) as device:
        requests = Requests(host)
        with attached(host, device, space, faults):
            requests.ask(1, IOVA)
            clock.advance(PATIENCE_MS * MS // 2)
            requests.ask(2, IOVA + PAGE)
            first, second = faults.read()
            faults.respond(first.cookie)
            clock.advance(PATIENCE_MS * MS // 2)
            assert not faults.ready
            assert requests.answers == [True]
            clock.advance(PATIENCE_MS * MS // 2)
            assert not faults.ready
            assert requests.answers == [True, False]
            if not requests.stalls:
                assert requests.codes == [(None, 1, ResponseCode.SUCCESS), (None, 2, ResponseCode.FAILURE)]
            requests.ask(3, IOVA)
            (third,) = faults.read()
            assert third.cookie not in (second.cookie,), "its late answer would be taken for one of the third"
            with pytest.raises(OSError, match="its time is over"):
                faults.respond(second.cookie)
            faults.respond(third.cookie)
            assert requests.answers == [True, False, True]
    assert len([line for line in messages if "no answer in time" in line]) == 1
