"""The processes below a process."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress

_PARENT = re.compile(r"\(.*\) \S (\d+)", re.DOTALL)


def descendants(pid: int) -> Iterator[int]:
    """Every process below one, parents first. A process that comes or goes meanwhile may be missed."""
    children = _listed if os.path.exists("/proc/thread-self/children") else _by_parent()
    waiting = [pid]
    while waiting:
        for child in children(waiting.pop()):
            waiting.append(child)
            yield child


def _listed(pid: int) -> list[int]:
    found = []
    with suppress(OSError):
        for tid in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{tid}/children") as children:
                found += [int(child) for child in children.read().split()]
    return found


def _by_parent() -> Callable[[int], list[int]]:
    """For a kernel without CONFIG_PROC_CHILDREN: what each process says of its parent."""
    found: defaultdict[int, list[int]] = defaultdict(list)
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat") as stat:
            match = _PARENT.search(stat.read())
            if match:
                found[int(match[1])].append(int(name))
    return lambda pid: found[pid]
