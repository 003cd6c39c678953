"""A device that was passed to a guest: its routes, and what becomes of refusals."""

import pytest

from softiommu.vmm.passed import PassedDevice


class Hwpt:
    def __init__(self, log, name):
        self.log, self.name = log, name

    def destroy(self):
        self.log.append(f"destroy {self.name}")


class Device:
    """It refuses HWPTs of one name."""

    def __init__(self, log):
        self.log = log

    def attach(self, hwpt, pasid):
        if hwpt.name == "bad":
            raise OSError(22, "no")
        self.log.append(f"attach {hwpt.name} {pasid}")

    def detach(self, pasid):
        self.log.append(f"detach {pasid}")


@pytest.fixture
def log():
    return []


@pytest.fixture
def notes():
    return []


@pytest.fixture
def passed(log, notes):
    return PassedDevice(0x20, Device(log), notes.append)


def made(log, name, own=True):
    return lambda: (Hwpt(log, name), own)


def test_an_equal_route_is_not_attached_again(passed, log):
    passed.attach(None, "a", made(log, "one"))
    passed.attach(None, "a", made(log, "two"))
    assert log == ["attach one None"]


def test_a_route_is_replaced_before_the_old_one_goes(passed, log):
    passed.attach(None, "a", made(log, "one"))
    passed.attach(None, "b", made(log, "two"))
    assert log == ["attach one None", "attach two None", "destroy one"]


def test_an_hwpt_of_others_is_left(passed, log):
    passed.attach(3, "a", made(log, "parent", own=False))
    passed.detach(3)
    assert log == ["attach parent 3", "detach 3"]


def test_what_is_not_attached_is_not_detached(passed, log):
    passed.detach(None)
    assert log == []


def test_a_refused_attachment_blocks_and_is_noted(passed, log, notes):
    passed.attach(5, "a", made(log, "one"))
    passed.attach(5, "b", made(log, "bad"))
    assert log == ["attach one 5", "destroy bad", "detach 5", "destroy one"]
    (note,) = notes
    assert "stream 0x20, PASID 0x5 is blocked, since the host refuses b" in note
    assert not passed.held


def test_a_refused_allocation_blocks_and_is_noted(passed, log, notes):
    def refused():
        raise OSError(12, "no memory")

    passed.attach(None, "a", made(log, "one"))
    passed.attach(None, "b", refused)
    assert log[1:] == ["detach None", "destroy one"]
    assert "no memory" in notes[0]


def test_a_renewed_route_is_another_attachment(passed, log):
    passed.attach(None, "a", made(log, "one"))
    passed.renew(None, made(log, "two"))
    assert log == ["attach one None", "detach None", "destroy one", "attach two None"]


def test_pasids_go_before_the_rid(passed, log):
    for pasid in (None, 2, 1):
        passed.attach(pasid, "a", made(log, "one"))
    log.clear()
    passed.close()
    assert [line for line in log if line.startswith("detach")][-1] == "detach None"
    assert not passed.held
