"""The call log."""

from __future__ import annotations

import io
from errno import EEXIST, ENOMEM
from typing import NamedTuple

import pytest

from softiommu.abi import iommufd_structs as abi, vfio_structs as vfio
from softiommu.errors import UapiError
from softiommu.memory.files import File
from softiommu.run.log import CallLog, describe


class Who(NamedTuple):
    """A caller that only has a name."""

    name: str


class Done(NamedTuple):
    """A call as a dispatcher tells of it."""

    caller: Who
    name: str
    cmd: object
    result: int
    error: UapiError | None


MAP = abi.IoasMap(flags=5, ioas_id=1, user_va=0x7F0000, length=0x1000, iova=0x10000)


def lines(*calls: Done) -> list[str]:
    """What the log writes of some calls."""
    stream = io.StringIO()
    log = CallLog(stream)
    for call in calls:
        log.on_call(call)  # type: ignore[arg-type]  # the log only asks the caller's name
    return stream.getvalue().splitlines()


def test_a_line_tells_who_what_and_the_result() -> None:
    caller = Who("dma_test[4711]")
    error = UapiError(EEXIST, "iova 0x10000..0x10fff overlaps an area")
    fields = "flags=FIXED_IOVA|READABLE ioas_id=1 user_va=0x7f0000 length=0x1000 iova=0x10000"
    assert lines(Done(caller, "IOAS_MAP", MAP, 0, None), Done(caller, "IOAS_MAP", MAP, -1, error)) == [
        f"1 dma_test[4711] IOAS_MAP({fields}) = 0",
        f"2 dma_test[4711] IOAS_MAP({fields}) = -EEXIST: iova 0x10000..0x10fff overlaps an area",
    ]


def test_a_structure_that_could_not_be_read_has_no_fields() -> None:
    assert lines(Done(Who("x[1]"), "0x3b99", None, -1, UapiError(14, "bad"))) == ["1 x[1] 0x3b99() = -EFAULT: bad"]


@pytest.mark.parametrize(
    ("cmd", "told"),
    [
        (abi.IoasMap(flags=0x82), "WRITEABLE|0x80"),
        (abi.HwptAlloc(flags=1, data_type=0), "ALLOC_NEST_PARENT"),
        (abi.IoasMap(), None),
    ],
    ids=["unknown bit", "named", "none"],
)
def test_flags_have_the_names_of_the_header(cmd: object, told: str | None) -> None:
    assert describe(cmd).get("flags") == told


def test_an_enumeration_is_told_also_when_it_is_zero_or_unknown() -> None:
    assert describe(abi.HwptAlloc(data_type=0))["data_type"] == "NONE"
    assert describe(abi.HwptAlloc(data_type=999))["data_type"] == "0x3e7"


def test_vfio_has_names_too() -> None:
    told = describe(vfio.IrqSet(24, 0x24, 2, 1, 1))
    assert told == {"flags": "DATA_EVENTFD|ACTION_TRIGGER", "index": "MSIX", "start": "0x1", "count": "1"}
    assert describe(vfio.RegionInfo(32, 3, 7, 0, 4096))["index"] == "CONFIG"
    assert describe(vfio.DeviceFeature(8, 0x10001))["flags"] == "GET|0x1"


class Refusing(File):
    """Fails every ioctl."""

    kind = "VFIO device"

    def ioctl(self, caller: object, cmd: int, arg: int) -> int:
        """ENOMEM."""
        raise UapiError(ENOMEM, "no memory")


def test_an_ioctl_that_nobody_else_told_of_gets_a_line() -> None:
    stream = io.StringIO()
    with pytest.raises(UapiError):
        CallLog(stream).ioctl(Who("x[1]"), Refusing(), 0x3B64, 0x1000)  # type: ignore[arg-type]  # only the name
    assert stream.getvalue() == "1 x[1] VFIO device: ioctl(cmd=0x3b64 arg=0x1000) = -ENOMEM: no memory\n"
