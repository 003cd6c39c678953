"""The event bus: models say what happens, the sanitizer and the recorder listen; to nobody it costs next to nothing.

An event is a NamedTuple (or any other class) that the module which emits it declares. On a hot path, ask first:

    if bus.hears(Filled):
        bus.emit(Filled(sid, iova))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

E = TypeVar("E")


class EventBus:
    """Who listens to which type of event. Listeners run at once, in the order in which they came."""

    def __init__(self) -> None:
        #: Tuples, never changed in place: a listener may come or go while an event is delivered.
        self._listeners: dict[type[Any], tuple[Callable[[Any], None], ...]] = {}
        self._to_all: tuple[Callable[[Any], None], ...] = ()

    def subscribe(self, kind: type[E], listener: Callable[[E], None]) -> Callable[[], None]:
        """Call `listener` with each event of exactly this type; -> a function that ends it."""
        self._listeners[kind] = (*self._listeners.get(kind, ()), listener)

        def end() -> None:
            rest = _without(self._listeners.get(kind, ()), listener)
            if rest:
                self._listeners[kind] = rest
            else:
                self._listeners.pop(kind, None)

        return end

    def subscribe_all(self, listener: Callable[[object], None]) -> Callable[[], None]:
        """Call `listener` with each event of any type, after those who chose the type; -> a function that ends it."""
        self._to_all = (*self._to_all, listener)

        def end() -> None:
            self._to_all = _without(self._to_all, listener)

        return end

    def hears(self, kind: type[Any]) -> bool:
        """Whether anyone listens to events of this type: if not, do not make one."""
        return kind in self._listeners or bool(self._to_all)

    def emit(self, event: object) -> None:
        """Deliver an event. What a listener raises reaches the emitter: it is a bug of ours."""
        for listener in self._listeners.get(type(event), ()):
            listener(event)
        for listener in self._to_all:
            listener(event)


def _without(
    listeners: tuple[Callable[[Any], None], ...], gone: Callable[[Any], None]
) -> tuple[Callable[[Any], None], ...]:
    """The tuple without the first of `gone`."""
    if gone not in listeners:
        return listeners
    at = listeners.index(gone)
    return listeners[:at] + listeners[at + 1 :]
