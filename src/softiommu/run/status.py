"""/proc/PID/status of a supervised process, with the pages it pinned through our iommufds.

The kernel adds an iommufd's pinned pages to VmPin, and to VmLck where the process pays for them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from softiommu.memory.client import PAGE_SIZE

if TYPE_CHECKING:
    from softiommu.run.session import Session
    from softiommu.run.tracee import Task

_PATH = re.compile(r"/proc/(self|thread-self|\d+)/(?:task/(\d+)/)?status")
_LINE = re.compile(rb"^(VmPin|VmLck):\s*(\d+) kB$", re.MULTILINE)
_PAGE_KB = PAGE_SIZE // 1024


class StatusPages:
    """Finds the process that a status path names, and edits its text."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def content(self, task: Task, text: str) -> bytes | None:
        """The edited text; None where the host's own is right."""
        if not self._session.spaces.any_pinned():
            return None
        match = _PATH.fullmatch(text)
        if match is None:
            return None
        pid = task.tgid if match[1] in ("self", "thread-self") else int(match[1])
        mm = self._session.spaces.known(pid)
        if mm is None or not (mm.pinned or mm.locked):
            return None
        name = str(pid) if match[2] is None else f"{pid}/task/{match[2]}"
        try:
            with open(f"/proc/{name}/status", "rb") as file:
                original = file.read()
        except OSError:
            return None
        pages = {b"VmPin": mm.pinned, b"VmLck": mm.locked}
        return _LINE.sub(lambda m: b"%s:\t%8d kB" % (m[1], int(m[2]) + pages[m[1]] * _PAGE_KB), original)
