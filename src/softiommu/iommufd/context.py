"""One open `/dev/iommu`: its objects, its options, and who keeps it alive."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from softiommu.errors import UapiError
from softiommu.iommufd.kernels import Kernel
from softiommu.iommufd.objects import Object, ObjectTable
from softiommu.iommufd.regions import Regions
from softiommu.memory.pins import Physical

if TYPE_CHECKING:
    from softiommu.abi.iommufd import IoasCopy
    from softiommu.abi.struct import UserStruct
    from softiommu.clock import Clock
    from softiommu.iommufd.device import Group
    from softiommu.iommufd.dispatch import Command
    from softiommu.iommufd.ioas import Ioas
    from softiommu.memory.client import Caller

Obj = TypeVar("Obj", bound=Object)
T = TypeVar("T")


class CallDone(NamedTuple):
    """One ioctl as it was answered: for the log, the recorder and the checks."""

    context: int
    caller: Caller
    name: str
    cmd: UserStruct | int | None
    result: int
    error: UapiError | None


class Patience(NamedTuple):
    """How long the kernel waits for a program that has to answer: `duration` nanoseconds of `clock`."""

    clock: Clock
    duration: int


class Services:
    """What the machine lends to every open file: memory, the kernel it plays, its commands, and listeners."""

    def __init__(self, kernel: Kernel, physical: Physical) -> None:
        self.kernel = kernel
        self.physical = physical
        #: The ioctl table: what `dispatch.commands(kernel)` gives, and the test command on a machine that has it.
        self.commands: dict[int, Command] = {}
        #: The highest number inside the table.
        self.last_number = 0
        #: Answers the numbers outside the table: `vfio_compat.ioctl`.
        self.vfio_ioctl: Callable[[Context, Caller, int, int], int]
        self.on_call: Callable[[CallDone], None] | None = None
        self.unsafe_interrupts = False
        #: Whether the machine has, or a program can make, devices that report faults and events.
        self.has_devices = False
        #: Set by the test command: a chance to rewrite an IOAS_COPY before it is checked.
        self.prepare_copy: Callable[[Context, IoasCopy], None] | None = None
        #: Whether the kernel is built with CONFIG_VFIO_NOIOMMU.
        self.no_iommu = False
        self.contexts = 0
        #: How long page faults wait for their answer; None: for ever, as Linux has it.
        self.patience: Patience | None = None
        #: Hears what the kernel would print.
        self.report: Callable[[str], None] = lambda line: None
        #: What is to be looked at now and then (see `ViommuHost.mmap_region`), by whose it is. It says whether it found
        #: a store.
        self.pollers: dict[object, Callable[[], object]] = {}
        #: Who uses a group of devices that cannot be isolated from one another: one file at a time.
        self.owners: dict[object, Context] = {}

    def poll(self) -> None:
        """Something is to be done that may depend on what programs stored into pages that they map."""
        for poll in list(self.pollers.values()):
            poll()


class Context:
    """The state behind one iommufd file (iommufd_ctx). It lives until its file, event files and mappings are gone."""

    def __init__(self, services: Services) -> None:
        services.contexts += 1
        self.number = services.contexts
        self.services = services
        self.kernel = services.kernel
        self.physical = services.physical
        self.objects = ObjectTable()
        self.groups: dict[object, Group] = {}
        self.vfio_ioas: Ioas | None = None
        self.no_iommu_mode = False
        #: IOMMU_OPTION_RLIMIT_MODE: charge the process instead of the user.
        self.per_process_limit = False
        self.regions = Regions()
        #: Address and size of the structure of the call in progress; None where it is the caller's own object.
        self.reply_to: tuple[int, int] | None = None
        self._references = 1
        self._caller: Caller | None = None
        self._pending: list[Object] = []

    @property
    def caller(self) -> Caller:
        """The task whose call is being carried out."""
        assert self._caller is not None, "no call is being carried out"
        return self._caller

    def run(self, caller: Caller, handler: Callable[..., T], *args: object) -> T:
        """Carry out one call: objects it made become visible when it returns, and are undone when it raises."""
        if self.services.pollers:
            self.services.poll()
        outer, made = self._caller, self._pending
        self._caller = caller
        pending = self._pending = []
        try:
            result = handler(*args)
        except BaseException:
            # One may take others of the call along.
            while pending:
                self.discard(pending[-1])
            raise
        else:
            for obj in pending:
                obj.ready = True
            return result
        finally:
            self._caller, self._pending = outer, made

    def respond(self, struct: UserStruct) -> None:
        """Write the call's structure back to the caller. EFAULT."""
        if self.reply_to is not None:
            va, size = self.reply_to
            self.caller.write(va, struct.to_bytes()[:size])

    def new(self, obj: Obj) -> Obj:
        """Give `obj` an id; it becomes visible when the call succeeds."""
        self.objects.add(obj)
        self._pending.append(obj)
        return obj

    def adopt(self, stub: Object, obj: Object) -> None:
        """Put `obj` in the place of an object of this call that only kept the id for it."""
        self.objects.swap(stub, obj)
        self._pending.remove(stub)
        self._pending.append(obj)

    def publish(self, obj: Object) -> None:
        """Make an object of this call visible before the call ends."""
        obj.ready = True
        self._pending.remove(obj)

    def discard(self, obj: Object, tombstone: bool = False) -> None:
        """Take an object out of the table and let it give back what it holds."""
        if obj in self._pending:
            self._pending.remove(obj)
        self.objects.remove(obj, tombstone)
        obj.destroy(self)

    def hold(self) -> None:
        """One more file keeps the context alive."""
        self._references += 1

    def put(self) -> None:
        """A file is gone; with the last one everything goes."""
        self._references -= 1
        if not self._references:
            self._close()

    def _close(self) -> None:
        while len(self.objects):
            idle = [obj for obj in self.objects if not obj.users]
            # What a driver owns goes with its owner.
            free = [obj for obj in idle if not obj.internal] or idle
            if not free:
                self._forget_attachments()
            for obj in free:
                if obj.ready and not obj.users:
                    self.discard(obj)
        self.regions.close()
        self.physical.frames.forget_idle()

    def _forget_attachments(self) -> None:
        """Devices that left with a PASID attached still hold its HWPT: the kernel would leak it here."""
        left = [attachment for group in self.groups.values() for attachment in group.attachments.values()]
        assert left, f"objects hold one another: {list(self.objects)}"
        for attachment in left:
            attachment.hwpt.users -= len(attachment.devices)
        self.groups.clear()
