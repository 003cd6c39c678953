"""Objects and their numbers: one space of ids per iommufd file, always the lowest free one."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from errno import EBUSY, ENOENT
from typing import TYPE_CHECKING, ClassVar, TypeVar

from softiommu.errors import UapiError

if TYPE_CHECKING:
    from softiommu.iommufd.context import Context

Obj = TypeVar("Obj", bound="Object")


class Object:
    """Something a program made and names by id. `users` are what keeps DESTROY out (EBUSY)."""

    kind: ClassVar[str] = "object"
    #: Owned by a driver rather than by the program: DESTROY answers EBUSY.
    internal: ClassVar[bool] = False

    def __init__(self) -> None:
        self.id = 0
        self.users = 0
        #: False while it is being made: DESTROY and every look-up answer ENOENT.
        self.ready = False

    def destroy(self, ctx: Context) -> None:
        """Give back what it holds. Called once, when it is no longer in the table."""

    def busy(self) -> str | None:
        """Why it cannot be destroyed now, in words; None when it can."""
        return f"{self.users} other objects use it" if self.users else None

    def __repr__(self) -> str:
        return f"<{self.kind} {self.id} users={self.users}>"


class ObjectTable:
    """The objects of one file by id, from 1. An id that a tombstone keeps is never given again."""

    def __init__(self) -> None:
        self._objects: dict[int, Object | None] = {}
        self._free: list[int] = []
        self._next = 1

    def add(self, obj: Obj) -> Obj:
        """Give `obj` the lowest free id; it stays invisible until `ready`."""
        if self._free:
            obj.id = heapq.heappop(self._free)
        else:
            obj.id = self._next
            self._next += 1
        self._objects[obj.id] = obj
        return obj

    def get(self, id: int, kind: type[Obj]) -> Obj:
        """The object `id`, which must be of `kind`: else ENOENT."""
        obj = self._objects.get(id)
        if obj is None or not obj.ready:
            raise UapiError(ENOENT, f"there is no object {id}")
        if not isinstance(obj, kind):
            raise UapiError(ENOENT, f"object {id} is a {obj.kind}, not a {kind.kind}")
        return obj

    def find(self, id: int) -> Object | None:
        """The object `id` of any kind, or None."""
        obj = self._objects.get(id)
        return obj if obj is not None and obj.ready else None

    def remove(self, obj: Object, tombstone: bool = False) -> None:
        """Forget `obj`; its id is free at once, unless a tombstone keeps it until the file closes."""
        obj.ready = False
        if tombstone:
            self._objects[obj.id] = None
            return
        del self._objects[obj.id]
        heapq.heappush(self._free, obj.id)

    def swap(self, old: Object, new: Object) -> None:
        """Give the id of `old` to `new`."""
        new.id = old.id
        self._objects[old.id] = new

    def check_destroy(self, id: int) -> Object:
        """The object a DESTROY of `id` takes away. ENOENT: none; EBUSY: used."""
        obj = self.get(id, Object)
        reason = "its driver owns it" if obj.internal else obj.busy()
        if reason:
            raise UapiError(EBUSY, f"{obj.kind} {id} cannot be destroyed: {reason}")
        return obj

    def __iter__(self) -> Iterator[Object]:
        return iter([obj for obj in self._objects.values() if obj is not None])

    def __len__(self) -> int:
        return sum(obj is not None for obj in self._objects.values())
