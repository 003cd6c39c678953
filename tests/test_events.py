"""The event bus: who is told of what, in which order, and that listeners may come and go meanwhile."""

from typing import NamedTuple

import pytest

from softiommu.events import EventBus


class Mapped(NamedTuple):
    iova: int


class Unmapped(NamedTuple):
    iova: int


def test_a_listener_is_told_of_its_type_only():
    bus, seen = EventBus(), []
    bus.subscribe(Mapped, seen.append)
    bus.emit(Mapped(1))
    bus.emit(Unmapped(1))  # equal as a tuple, and yet another type
    assert seen == [Mapped(1)]
    assert type(seen[0]) is Mapped


def test_listeners_are_told_in_the_order_they_came_and_those_to_all_last():
    bus, seen = EventBus(), []
    bus.subscribe_all(lambda event: seen.append(("all", event)))
    bus.subscribe(Mapped, lambda event: seen.append(("first", event)))
    bus.subscribe(Mapped, lambda event: seen.append(("second", event)))
    bus.emit(Mapped(7))
    assert seen == [("first", Mapped(7)), ("second", Mapped(7)), ("all", Mapped(7))]


def test_a_bus_hears_what_someone_listens_to():
    bus = EventBus()
    assert not bus.hears(Mapped)
    end = bus.subscribe(Mapped, lambda event: None)
    assert bus.hears(Mapped)
    assert not bus.hears(Unmapped)
    end_all = bus.subscribe_all(lambda event: None)
    assert bus.hears(Unmapped)
    end()
    end_all()
    assert not bus.hears(Mapped)
    assert not bus.hears(Unmapped)


def test_ending_twice_ends_one_subscription_only():
    bus, seen = EventBus(), []
    end = bus.subscribe(Mapped, seen.append)
    end()
    end()
    bus.subscribe(Mapped, seen.append)
    bus.emit(Mapped(1))
    assert seen == [Mapped(1)]


def test_a_listener_may_leave_while_an_event_is_delivered():
    bus, seen = EventBus(), []
    ends = []

    def once(event):
        seen.append(("once", event))
        ends[0]()

    ends.append(bus.subscribe(Mapped, once))
    bus.subscribe(Mapped, lambda event: seen.append(("always", event)))
    bus.emit(Mapped(1))
    bus.emit(Mapped(2))
    assert seen == [("once", Mapped(1)), ("always", Mapped(1)), ("always", Mapped(2))]


def test_what_a_listener_raises_reaches_the_emitter():
    bus = EventBus()

    def broken(event):
        raise KeyError(event.iova)

    bus.subscribe(Mapped, broken)
    with pytest.raises(KeyError):
        bus.emit(Mapped(1))
