"""stat and its kin on paths and descriptors of the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softiommu.run.paths import Resolver
from softiommu.run.session import CONTINUE, Handler, Reply, Session
from softiommu.run.syscalls import Nr

if TYPE_CHECKING:
    from softiommu.run.tracee import Task


class StatCalls:
    """Handlers of calls that ask about a path."""

    def __init__(self, session: Session, resolver: Resolver) -> None:
        numbers = (
            Nr.STAT,
            Nr.LSTAT,
            Nr.FSTAT,
            Nr.NEWFSTATAT,
            Nr.STATX,
            Nr.ACCESS,
            Nr.FACCESSAT,
            Nr.FACCESSAT2,
            Nr.READLINK,
            Nr.READLINKAT,
            Nr.GETXATTR,
            Nr.LGETXATTR,
            Nr.LISTXATTR,
            Nr.LLISTXATTR,
            Nr.GETCWD,
            Nr.GETDENTS64,
        )
        self.handlers: dict[int, Handler] = dict.fromkeys(numbers, self.through)

    def through(self, task: Task, args: tuple[int, ...]) -> Reply:
        return CONTINUE
