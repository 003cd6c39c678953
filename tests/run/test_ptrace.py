"""Requests about a traced process: it is stopped, looked at and let go, and one that is gone says so."""

import os
import signal

import pytest

from softiommu.run.trap import ptrace as ptrace


@pytest.fixture
def child():
    """A process of ours that waits, traced."""
    pid = os.fork()
    if not pid:
        while True:
            signal.pause()
    ptrace.seize(pid)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, ptrace.WALL)


def stopped(pid):
    status = os.waitpid(pid, ptrace.WALL)[1]
    assert os.WIFSTOPPED(status)
    return os.WSTOPSIG(status), status >> 16


def test_an_interrupted_process_has_registers_that_can_be_set(child):
    ptrace.interrupt(child)
    assert stopped(child) == (signal.SIGTRAP, ptrace.EVENT_STOP)
    before = ptrace.registers(child)
    r15, rip = ptrace.REGISTERS.index("r15"), ptrace.REGISTERS.index("rip")
    kept, before[r15] = before[r15], 0x1234567890ABCDEF
    ptrace.set_registers(child, before)
    after = ptrace.registers(child)
    assert (after[r15], after[rip]) == (0x1234567890ABCDEF, before[rip])
    before[r15] = kept
    ptrace.set_registers(child, before)
    ptrace.detach(child, 0)


def test_a_signal_tells_its_cause_and_can_be_kept_from_the_process(child):
    os.kill(child, signal.SIGBUS)
    assert stopped(child) == (signal.SIGBUS, 0)
    assert ptrace.fault(child).code <= 0
    ptrace.resume(child, 0)
    os.kill(child, signal.SIGTERM)
    assert stopped(child) == (signal.SIGTERM, 0)


def test_a_process_that_was_killed_answers_nothing():
    pid = os.fork()
    if not pid:
        signal.pause()
    ptrace.seize(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, ptrace.WALL)
    for request in (ptrace.interrupt, ptrace.registers, ptrace.fault, ptrace.listen, ptrace.event_message):
        with pytest.raises(ProcessLookupError):
            request(pid)


def test_whether_tracing_is_possible_is_tried_and_leaves_nothing_open():
    before = os.listdir("/proc/self/fd")
    assert ptrace.refusal() == ""
    assert len(os.listdir("/proc/self/fd")) == len(before)
