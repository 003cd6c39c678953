"""What a program finds in the file system of a machine: device nodes, and the sysfs entries around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from softiommu.memory.client import Caller
from softiommu.memory.files import File


class Node(NamedTuple):
    """A character device: `/dev/iommu`, `/dev/vfio/vfio`, ... `open` is its open(2): a new file, or UapiError."""

    major: int
    minor: int
    mode: int
    open: Callable[[Caller, int], File]


class Text(NamedTuple):
    """A regular file of sysfs; `content` is read at each open."""

    content: Callable[[], bytes]


class Link(NamedTuple):
    """A symbolic link; `target` as readlink gives it."""

    target: str


Entry = Node | Text | Link


class World(Protocol):
    """What a front door shows: absolute paths to entries. Folders are implied by the paths below them."""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Every virtual path. A path that is not here, nor a folder above one that is, belongs to the host."""
        ...

    @property
    def pollers(self) -> Mapping[object, Callable[[], object]]:
        """What is to be called now and then, while there is any: it looks at mapped pages, and at time-outs."""
        ...

    def share_time(self) -> None:
        """Let devices do long work bit by bit, in `pollers`."""
        ...
