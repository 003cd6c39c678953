"""Hostile programs: a deterministic portion of what `fuzz/run.py` does for long, and raw bytes from Hypothesis."""

from __future__ import annotations

import gc
import os
from contextlib import suppress
from itertools import islice
from random import Random

import pytest
from fuzz.arena import PAGE, Arena, WroteOutside
from fuzz.run import run_one, sessions
from fuzz.session import PROFILES, Broken, HostileCaller, Session
from hypothesis import given, settings, strategies as st

from iommufd.soft import build
from softiommu.abi import iommufd_test as test
from softiommu.errors import UapiError
from softiommu.iommufd.ioas import Ioas
from softiommu.iommufd.kernels import KERNELS
from strategies import calm

KERNEL_NAMES = tuple(KERNELS)


def open_descriptors() -> int:
    """How many descriptors this process has once garbage is gone."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
@pytest.mark.parametrize("profile", PROFILES)
def test_hostile_calls_are_refused_or_done_and_leave_nothing(profile: str, kernel: str) -> None:
    before = open_descriptors()
    chosen = sessions(seed=20240617, machines=[(profile, kernel)])
    done = [run_one(session, steps=200) for session in islice(chosen, 6 if profile == "mock" else 2)]
    assert all(done)
    assert open_descriptors() == before


def test_the_same_seed_makes_the_same_calls() -> None:
    first, second = (Session(5, 0, "mock", "7.2") for _ in range(2))
    for session in (first, second):
        run_one(session, steps=100)
    assert first.done == second.done > 0
    assert first.random.random() == second.random.random()


def test_a_byte_written_behind_a_structure_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    write = HostileCaller.write

    def write_one_more(self: HostileCaller, va: int, data: bytes) -> None:
        write(self, va, data)
        if data:
            try:
                write(self, va + len(data), b"\xa5")
            except UapiError:
                return

    monkeypatch.setattr(HostileCaller, "write", write_one_more)
    session = Session(1, 0, "nodev", "7.2")
    with pytest.raises(WroteOutside):
        session.run(400)


def test_an_exception_that_is_no_refusal_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(self: Ioas) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Ioas, "__init__", crash)
    session = Session(1, 0, "nodev", "7.2")
    with pytest.raises(Broken, match="ZeroDivisionError"):
        session.run(50)


COMMANDS = sorted(build("7.3").services.commands)
RAW = st.lists(st.tuples(st.sampled_from(COMMANDS), st.binary(min_size=4, max_size=120)), min_size=1, max_size=12)


@settings(calm, max_examples=150)
@given(calls=RAW, honest=st.booleans(), kernel=st.sampled_from(KERNEL_NAMES))
def test_any_bytes_are_a_call_or_a_refusal(calls: list[tuple[int, bytes]], honest: bool, kernel: str) -> None:
    arena = Arena(Random(0))
    caller = HostileCaller()
    machine = build(kernel)
    file = machine.open_iommu(caller, os.O_RDWR)
    for cmd, raw in calls:
        row = machine.services.commands.get(cmd)
        size = row.struct.SIZE if row and honest else int.from_bytes(raw[:4], "little")
        data = size.to_bytes(4, "little") + raw[4:]
        arena.store(arena.end - PAGE, data)
        with suppress(UapiError):
            file.ioctl(caller, cmd, arena.end - PAGE)
        arena.check([(arena.end - PAGE, min(size, test.TestCmd.SIZE))])
    file.release()
    for fd in list(caller.files):
        caller.close(fd)
    arena.close()
    assert list(file.context.objects) == []
    assert machine.physical.accounts.total == 0
