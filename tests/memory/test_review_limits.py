"""RLIMIT_MEMLOCK of programs that changed their user, lowered the limit, or are gone."""

from __future__ import annotations

import os
import resource
from errno import ENOMEM
from subprocess import PIPE, Popen

import pytest

from iommufd.fakes import FakeMm
from iommufd.soft import refused
from softiommu.memory.accounts import Accounts, Mode, Payer
from softiommu.memory.client import PAGE_SIZE
from softiommu.memory.process import ProcessMm

LIMIT = 65536
CLIENT = f"ulimit -l {LIMIT >> 10} && echo && cat"


def start(user: int | None = None) -> Popen[bytes]:
    """A process with a limit of its own, that waits for the end of its input. (Of `sh`: another user may run it.)"""
    process = Popen(["/bin/sh", "-c", CLIENT], stdin=PIPE, stdout=PIPE, user=user)
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"
    return process


def end(process: Popen[bytes]) -> None:
    """Let it exit, and wait for it."""
    process.communicate()


def test_the_limit_of_a_process_outlives_it() -> None:
    process = start()
    mm = ProcessMm(process.pid)
    end(process)
    assert mm.memlock_limit() == LIMIT


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a program as another user")
def test_the_limit_of_a_program_of_another_user_is_known_without_prlimit(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(pid: int, which: int) -> tuple[int, int]:
        raise PermissionError

    process = start(user=65534)
    monkeypatch.setattr(resource, "prlimit", forbidden)
    assert ProcessMm(process.pid).memlock_limit() == LIMIT
    end(process)


def test_pages_that_are_pinned_already_can_be_shared_by_a_program_past_its_limit() -> None:
    accounts, mm = Accounts(), FakeMm(1)
    mm.limit = 10 * PAGE_SIZE
    payer = Payer(mm, 5)
    accounts.charge(payer, 6, Mode.USER)
    mm.limit = PAGE_SIZE
    accounts.charge(payer, 0, Mode.USER)
    with refused(ENOMEM):
        accounts.charge(payer, 1, Mode.USER)
    assert accounts.total == 6
