"""How a guest ended: QEMU under a supervisor, and the exit code and the sentence that its end is worth.

QEMU ends with 0 when it gets a signal, when its guest panics, and when its guest powers off. So a job that is through
says so itself, by a number that nothing else stores (`isa-debug-exit`), and every other end is a failure.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from softiommu.run.signals import Signals
from softiommu.run.supervisor import EXIT_BUG, RunOptions, supervise

if TYPE_CHECKING:
    from softiommu.machine.nodes import World
    from softiommu.run.log import CallLog

#: What QEMU makes of the number that job.sh stores when it is through (052), and when it has failed (001).
_DONE, _FAILED = 2 * 0o52 + 1, 2 * 0o01 + 1
#: Signals that QEMU obeys by ending with 0.
_FATAL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SIGNALLED = 128


class End(NamedTuple):
    """How QEMU ended. `status` is as a shell has it; `signal`, the first that came meanwhile and ends QEMU; `bugs`,
    how many of softiommu were met."""

    status: int
    signal: int | None = None
    bugs: int = 0

    def told(self, job: bool) -> tuple[int, str | None]:
        """The exit code, and what to say. A job must say that it is through; a shell's guest powers off."""
        if self.status == _DONE if job else not (self.status or self.signal):
            return EXIT_BUG if self.bugs else 0, None
        code, why = self._failure()
        return code, f"the guest {'did not finish its job' if job else 'was cut off'}: {why}"

    def _failure(self) -> tuple[int, str]:
        number = self.status - _SIGNALLED if self.status else self.signal
        if number in signal.valid_signals():
            name = signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"
            return _SIGNALLED + number, f"{name} ended QEMU"
        if self.bugs and self.status in (0, EXIT_BUG):
            return EXIT_BUG, "softiommu met a bug of its own"
        if self.status == _FAILED:
            return 1, "what failed is told above"
        if self.status:
            return 1, f"QEMU ended with {self.status}"
        return 1, "QEMU ended with 0, as it does when a guest panics or powers off"


class _Noted(Signals):
    """Our signals; the first is noted that QEMU ends by."""

    def __init__(self) -> None:
        super().__init__()
        self.first: int | None = None

    def take(self, targets: Callable[[], Iterable[int]], reap: Callable[[], None]) -> None:
        """Take what came."""
        if self.first is None:
            self.first = min(signal.sigpending().intersection(_FATAL), default=None)
        super().take(targets, reap)


def run(world: World, command: Sequence[str], log: CallLog | None) -> End:
    """Run QEMU on a machine to its end. ConfigError: supervision does not work here."""
    signals = _Noted()
    supervisor = supervise(world, command, RunOptions(log=log), signals)
    return End(supervisor.exit_code(die_alike=False), signals.first, supervisor.bugs)
