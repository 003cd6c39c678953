"""What a hostile program puts into a field: by the field's name something that often is right, else an edge."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from fuzz.arena import FIXED_PAGES, PAGE, PAGES, Arena
from softiommu.abi import iommufd_test as test
from softiommu.abi.struct import UserStruct

EDGES = (
    *(0, 1, 2, 3, 7, 8, 0x7FF, 0x800, 0xFFF, 0x1000, 0x1001, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000),
    *(2**32 - 1, 2**32, 2**47 - 4096, 2**47, 2**63 - 1, 2**63, 2**64 - 8192, 2**64 - 4096, 2**64 - 2, 2**64 - 1),
)
APERTURE = int(test.Mock.APERTURE_START)
#: Types by structure; elsewhere there is nothing of the kind.
TYPES = {
    "HwptAlloc": (0, 0, 0xDEAD, 0xDEAD),
    "HwInfo": (0, 0xFEEDBEEF),
    "VeventqAlloc": (0xBEEFBEEF, 0xBEEFBEEF, 1),
}
FLAGS = {
    "IoasMap": (6, 6, 6, 7, 7, 4, 2, 0),
    "IoasMapFile": (6, 6, 6, 7, 7, 4, 2, 0),
    "IoasCopy": (6, 6, 7, 7, 4, 2, 0, 0x10006),
    "HwptAlloc": (0, 0, 1, 1, 2, 3, 4, 8, 12, 9),
    "HwptSetDirtyTracking": (1, 1, 0),
    "HwptGetDirtyBitmap": (0, 1),
    "HwInfo": (0, 0, 1),
    "CreateAccess": (1, 1, 0),
    "AccessPages": (0, 1, 0x10000),
    "AccessRw": (0, 1, 4, 5),
    "MockDomainFlags": (0, 4, 4, 1, 5),
    "IommuType1DmaMap": (3, 3, 1, 2),
    "IommuType1DmaUnmap": (0, 0, 2),
    "HwptInvalidateSelftest": (0, 1),
}
#: What an id names, by the field's name, as the kinds of objects.
KINDS = {
    "ioas_id": ("IOAS",),
    "dev_id": ("device",),
    "pt_id": ("IOAS", "HWPT_PAGING", "HWPT_NESTED", "vIOMMU"),
    "hwpt_id": ("HWPT_PAGING", "HWPT_NESTED", "vIOMMU"),
    "viommu_id": ("vIOMMU",),
    "fault_id": ("fault queue",),
    "object_id": ("IOAS",),
}


class Values:
    """Chooses fields of structures. `fds` are the descriptors so far, `objects` the ids of the called file by kind."""

    def __init__(self, random: Random, arena: Arena) -> None:
        self._random, self._arena = random, arena
        self.objects: dict[str, list[int]] = {}
        #: Where the called iommufd has areas.
        self.areas: list[int] = []
        self.fds: list[int] = [-1, 0]
        #: How often a field is hostile.
        self.malice = random.choice((0.005, 0.02, 0.08, 0.3))

    def struct(self, kind: type[UserStruct]) -> UserStruct:
        """A structure with every field chosen."""
        fields = {name: self.field(kind, name) for name in kind.FIELDS}
        if kind.__name__ == "HwptAlloc" and self._random.random() > self.malice:
            # The one goes with the other.
            fields["data_len"] = 8 if fields["data_type"] else 0
        return kind(**{name: value for name, value in fields.items() if value is not None})

    def field(self, kind: type[UserStruct], name: str) -> int | bytes | None:
        """A value for a field; None leaves it as the structure has it."""
        width = kind.FIELDS[name][1]
        if kind.CODES[name].endswith("s"):
            return self._random.randbytes(width) if self._random.random() < self.malice / 8 else None
        if name in ("reserved", "reserved2", "padding") and self._random.random() > self.malice / 4:
            return 0
        value = self._hostile() if self._random.random() < self.malice else self._plausible(kind, name)
        bits = 8 * width
        value &= (1 << bits) - 1
        signed = name in ("fd", "dmabuf_fd")
        return value - (1 << bits) if signed and value >> bits - 1 else value

    def _hostile(self) -> int:
        pick = self._random.random()
        if pick < 0.7:
            return self._random.choice(EDGES)
        return self._random.getrandbits(64) if pick < 0.8 else -self._random.randrange(1, 9000)

    def _plausible(self, kind: type[UserStruct], name: str) -> int:
        if name == "size" and kind().to_bytes()[:4] == kind.SIZE.to_bytes(4, "little"):
            return kind.SIZE
        if name.endswith("flags"):
            return self._random.choice(FLAGS.get(kind.__name__, (0,)))
        if name == "op" and kind.__name__ == "VfioIoas":
            return self._random.choice((0, 1, 1, 1, 2))
        if name.endswith("type"):
            return self._random.choice(TYPES.get(kind.__name__, (0xDEADBEEF, 0xDEADBEEF, 0xDEADBEEF, 1)))
        for suffixes, choose in self._table():
            if name.endswith(suffixes):
                return choose()
        return self._random.choice((0, 0, 1, 1, 2, 3))

    def _table(self) -> tuple[tuple[tuple[str, ...], Callable[[], int]], ...]:
        random = self._random
        return (
            (("virt_id", "vdev_id", "cache_id", "iotlb_id"), lambda: random.choice((0, 1, 2, 3, 7))),
            (("pages_id",), lambda: random.randrange(4)),
            (("fd",), lambda: random.choice(self.fds)),
            (("option_id",), lambda: random.randrange(3)),
            *(((name,), self._chooser(kinds)) for name, kinds in KINDS.items()),
            (("id",), self._chooser(())),
            (("iova", "start"), self.iova),
            (("uptr", "user_va", "allowed_iovas", "vaddr"), self.pointer),
            (("entry_len", "data_len"), lambda: random.choice((0, 4, 8, 8, 12, 16, 24))),
            (("length",), self.length),
            (("page_size",), lambda: random.choice((2048, 4096, 4096, 1 << 20, 1))),
            (("pasid",), lambda: random.choice((0, 1, 2, 1024, 1 << 20))),
            (("data",), self.pointer),
            (("limit",), lambda: random.choice((8, 12, 4096))),
            (("depth", "num_iovas", "entry_num"), lambda: random.choice((0, 1, 1, 2, 5))),
            (("argsz",), lambda: random.choice((16, 24, 32, 40, 64, 120))),
        )

    def _chooser(self, kinds: tuple[str, ...]) -> Callable[[], int]:
        return lambda: self.id(*kinds)

    def id(self, *kinds: str) -> int:
        """The id of an object of these kinds, where there is one; now and then of any."""
        wanted = [id for kind in kinds for id in self.objects.get(kind, ())]
        if not wanted or self._random.random() < 0.05:
            wanted = [id for ids in self.objects.values() for id in ids] + [self._random.randrange(20)]
        return self._random.choice(wanted)

    def iova(self) -> int:
        """An I/O address: of an area, or a free one, in the mock's aperture more often than not."""
        if self.areas and self._random.random() < 0.5:
            return self._random.choice(self.areas)
        base = self._random.choice((0, PAGE, APERTURE, APERTURE, APERTURE, APERTURE + (1 << 20)))
        return base + self._random.randrange(8) * self._random.choice((PAGE, PAGE, 2048))

    def length(self) -> int:
        """A length, of whole pages mostly."""
        return self._random.randrange(1, 6) * self._random.choice((PAGE, PAGE, PAGE, 2048, 1))

    def pointer(self) -> int:
        """An address of the arena: in its pages, near an edge of them, in a hole, where nothing can be written."""
        random, arena = self._random, self._arena
        pick = random.random()
        if pick < 0.65:
            return arena.start + random.randrange(PAGES - 4) * PAGE
        if pick < 0.8:
            return arena.start + random.randrange(PAGES * PAGE)
        if pick < 0.9:
            return arena.end - random.choice((1, 4, 8, 16, 24, 2048, PAGE))
        if pick < 0.95:
            return arena.fixed + random.randrange(FIXED_PAGES * PAGE)
        return random.choice((0, arena.start - 4, arena.end, arena.fixed - 8))
