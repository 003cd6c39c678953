"""Queues as the controller keeps them: rings in the host's memory, heads and tails. NVM Express 1.4, section 4.1."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from softiommu.hardware.devices.nvme.commands import Completion


@dataclass
class CompletionQueue:
    """Where completions are posted. What finds it full waits."""

    id: int
    base: int
    size: int
    vector: int
    interrupts: bool
    head: int = 0
    tail: int = 0
    phase: int = 1
    waiting: deque[Completion] = field(default_factory=deque)

    @property
    def used(self) -> int:
        """Entries that the host has not consumed."""
        return (self.tail - self.head) % self.size

    @property
    def full(self) -> bool:
        """Whether one more entry would look like none."""
        return self.used == self.size - 1

    def advance(self) -> None:
        """An entry is posted."""
        self.tail += 1
        if self.tail == self.size:
            self.tail, self.phase = 0, self.phase ^ 1


@dataclass
class SubmissionQueue:
    """Where commands come from."""

    id: int
    base: int
    size: int
    cq: CompletionQueue
    head: int = 0
    tail: int = 0

    @property
    def free(self) -> int:
        """Entries that the host may still fill."""
        return (self.head - self.tail - 1) % self.size

    def advance(self) -> None:
        """A command is fetched."""
        self.head = (self.head + 1) % self.size
