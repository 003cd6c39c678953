"""What is kept of tasks: as long as they live, and not of files that are closed."""

from __future__ import annotations

import gc
import os
import subprocess
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from run.doubles import Events, Queue
from softiommu.run.session import Session


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session(cast(Any, None), cast(Any, SimpleNamespace(fd=os.open(os.devnull, os.O_RDONLY))), 896, None)
    yield made
    made.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def visit(session: Session) -> None:
    """A program makes a call that needs its memory, and ends."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as program:
        task = session.new_task(program.pid)
        task.mm.extents(_readable(program.pid), 1, write=False)
        os.close(task.duplicate(1))


def _readable(pid: int) -> int:
    return int(Path(f"/proc/{pid}/maps").read_text().split("-")[0], 16)


def test_of_any_number_of_programs_only_the_last_few_are_kept(session: Session) -> None:
    before = descriptors()
    most = 0
    for _ in range(60):
        visit(session)
        most = max(most, len(session.tasks))
    assert most <= 17
    gc.collect()
    assert descriptors() - before <= 17 * 6


def test_the_dead_are_forgotten_when_a_file_is_closed(session: Session) -> None:
    for _ in range(3):
        visit(session)
    me = session.new_task(os.getpid())
    record, ours = session.descriptors.make(Queue(Events()), "/dev/queue", os.O_RDWR)
    assert me.record(ours) is record
    assert len(session.tasks) == 4
    os.close(ours)
    session.descriptors.drain()
    assert list(session.tasks) == [os.getpid()]


def test_nobody_holds_a_file_that_is_closed(session: Session) -> None:
    me = session.new_task(os.getpid())
    record, ours = session.descriptors.make(Queue(Events()), "/dev/queue", os.O_RDWR)
    session.current = (me, ours, record)
    assert me.record(ours) is record
    seen = weakref.ref(record.file)
    os.close(ours)
    session.descriptors.drain()
    del record
    gc.collect()
    assert seen() is None
