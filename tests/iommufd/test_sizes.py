"""Every command of every kernel: its structure short, long, at the end of a page, nowhere, on a read-only page."""

from __future__ import annotations

from collections.abc import Callable
from errno import E2BIG, EFAULT, EINVAL, ENOTTY
from typing import NamedTuple

import pytest

from iommufd.fakes import BASE
from iommufd.good import GOOD
from iommufd.soft import COMMANDS, Soft, build, check_empty, refused
from softiommu.abi.iommufd_test import TEST_CMD
from softiommu.abi.struct import UserStruct
from softiommu.errors import UapiError
from softiommu.iommufd import table
from softiommu.iommufd.dispatch import Command
from softiommu.iommufd.kernels import KERNELS
from softiommu.memory.files import HostFile

PAGE = 4096
#: Where arguments go: a page with a hole behind it.
PLACE = BASE + 40 * PAGE
END = PLACE + PAGE
FILL = 0xA5
Open = Callable[..., Soft]


class Answer(NamedTuple):
    """How a call ended, and the argument's bytes afterwards."""

    errno: int
    after: bytes


def rows(kernel: str) -> list[tuple[int, Command]]:
    """The command table of a kernel with the test command."""
    return sorted(build(kernel).services.commands.items())


CASES = [
    pytest.param(kernel, cmd, row.struct, id=f"{kernel}-{row.name}") for kernel in KERNELS for cmd, row in rows(kernel)
]
every_command = pytest.mark.parametrize(("kernel", "cmd", "struct"), CASES)


def try_call(kernel: str, cmd: int, struct: type[UserStruct], place: Callable[[Soft, bytes], int]) -> Answer:
    """A good call of the command on a new iommufd, with its bytes put where `place` says."""
    soft = Soft(build(kernel, no_iommu=True))
    soft.caller.mm.holes = {41}
    raw = GOOD[struct](soft).to_bytes()
    va = place(soft, raw)
    errno = 0
    try:
        assert soft.file.ioctl(soft.caller, cmd, va) == 0
    except UapiError as error:
        errno = error.errno
    after = soft.caller.mm.ram.read(PLACE, PAGE)
    soft.caller.files = {fd: file for fd, file in soft.caller.files.items() if not isinstance(file, HostFile)}
    soft.close()
    return Answer(errno, after)


def with_size(size: int, tail: bytes = b"", at: int = PLACE) -> Callable[[Soft, bytes], int]:
    """Say `size`, with `tail` after the structure, at an address; all else is filled with a pattern."""

    def place(soft: Soft, raw: bytes) -> int:
        soft.caller.mm.ram.write(PLACE, bytes([FILL]) * PAGE)
        data = (size.to_bytes(4, "little") + raw[4:] + tail)[: max(size, 4)]
        soft.caller.mm.ram.write(at, data[: END - at])
        return at

    return place


def test_the_table_has_a_good_call_for_every_command() -> None:
    assert set(GOOD) == set(COMMANDS)


@every_command
def test_a_structure_of_the_known_size_is_taken(kernel: str, cmd: int, struct: type[UserStruct]) -> None:
    answer = try_call(kernel, cmd, struct, with_size(struct.SIZE))
    assert answer.errno == 0
    assert answer.after[struct.SIZE :] == bytes([FILL]) * (PAGE - struct.SIZE)


@every_command
@pytest.mark.parametrize("cut", [1, 4])
def test_a_structure_that_is_too_short_is_refused(kernel: str, cmd: int, struct: type[UserStruct], cut: int) -> None:
    assert try_call(kernel, cmd, struct, with_size(struct.MIN_SIZE - cut)).errno == EINVAL


@every_command
def test_a_size_of_nothing_is_refused(kernel: str, cmd: int, struct: type[UserStruct]) -> None:
    assert try_call(kernel, cmd, struct, with_size(0)).errno == EINVAL


@every_command
def test_the_first_kernels_structure_is_taken_and_nothing_is_written_behind_it(
    kernel: str, cmd: int, struct: type[UserStruct]
) -> None:
    answer = try_call(kernel, cmd, struct, with_size(struct.MIN_SIZE))
    assert answer.errno == 0
    assert answer.after[struct.MIN_SIZE :] == bytes([FILL]) * (PAGE - struct.MIN_SIZE)


@every_command
def test_a_longer_structure_with_zeros_is_the_same_call(kernel: str, cmd: int, struct: type[UserStruct]) -> None:
    known = try_call(kernel, cmd, struct, with_size(struct.SIZE))
    answer = try_call(kernel, cmd, struct, with_size(struct.SIZE + 16, bytes(16)))
    assert answer.errno == 0
    assert answer.after[4 : struct.SIZE] == known.after[4 : struct.SIZE]
    assert answer.after[struct.SIZE :] == bytes(16) + bytes([FILL]) * (PAGE - struct.SIZE - 16)


@every_command
@pytest.mark.parametrize("where", [0, 15])
def test_a_longer_structure_with_a_one_is_refused(kernel: str, cmd: int, struct: type[UserStruct], where: int) -> None:
    tail = bytearray(16)
    tail[where] = 1
    assert try_call(kernel, cmd, struct, with_size(struct.SIZE + 16, bytes(tail))).errno == E2BIG


@every_command
@pytest.mark.parametrize("least", [False, True], ids=["known", "first"])
def test_a_structure_that_ends_with_its_page_is_taken(
    kernel: str, cmd: int, struct: type[UserStruct], least: bool
) -> None:
    size = struct.MIN_SIZE if least else struct.SIZE
    assert try_call(kernel, cmd, struct, with_size(size, at=END - size)).errno == 0


@every_command
def test_a_tail_that_runs_into_a_hole_faults_unless_a_one_comes_first(
    kernel: str, cmd: int, struct: type[UserStruct]
) -> None:
    at = END - struct.SIZE - 8
    assert try_call(kernel, cmd, struct, with_size(struct.SIZE + 16, bytes(16), at)).errno == EFAULT
    one = bytes(7) + b"\1" + bytes(8)
    assert try_call(kernel, cmd, struct, with_size(struct.SIZE + 16, one, at)).errno == E2BIG


@every_command
def test_a_structure_that_runs_into_a_hole_faults(kernel: str, cmd: int, struct: type[UserStruct]) -> None:
    assert try_call(kernel, cmd, struct, with_size(struct.SIZE, at=END - 4)).errno == EFAULT


@every_command
@pytest.mark.parametrize("va", [0, END, 2**64 - 4])
def test_a_structure_where_no_memory_is_faults(kernel: str, cmd: int, struct: type[UserStruct], va: int) -> None:
    assert try_call(kernel, cmd, struct, lambda soft, raw: va).errno == EFAULT


@every_command
def test_an_answer_that_cannot_be_stored_faults(kernel: str, cmd: int, struct: type[UserStruct]) -> None:
    def read_only(soft: Soft, raw: bytes) -> int:
        soft.caller.write(PLACE, raw)
        soft.caller.mm.read_only = {40}
        return PLACE

    answers = build(kernel).services.commands[cmd].replies or cmd == TEST_CMD
    assert try_call(kernel, cmd, struct, read_only).errno == (EFAULT if answers else 0)


@every_command
def test_a_command_number_with_other_size_bits_is_unknown(kernel: str, cmd: int, struct: type[UserStruct]) -> None:
    other = cmd | 40 << 16 | 3 << 30
    assert try_call(kernel, other, struct, with_size(struct.SIZE)).errno == ENOTTY
    assert try_call(kernel, other, struct, lambda soft, raw: 0).errno == EFAULT


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_has_its_own_commands_and_no_later_ones(kernel: str) -> None:
    names = [row.name for row in table.commands(KERNELS[kernel]).values()]
    late = ["IOAS_MAP_FILE", "VIOMMU_ALLOC", "VDEVICE_ALLOC", "IOAS_CHANGE_PROCESS", "VEVENTQ_ALLOC", "HW_QUEUE_ALLOC"]
    assert len(names) == {"6.12": 15, "7.2": 21, "7.3": 22}[kernel]
    assert [name in names for name in late] == [kernel != "6.12"] * len(late)
    assert ("IOAS_NOIOMMU_GET_PA" in names) == (kernel == "7.3")


@pytest.mark.parametrize("kernel", KERNELS)
def test_numbers_past_the_table_never_touch_the_pointer(kernel: str, open_soft: Open) -> None:
    soft = open_soft(kernel, mock=False)
    last = {"6.12": 0x8E, "7.2": 0x94, "7.3": 0x95}[kernel]
    with refused(EFAULT):
        soft.file.ioctl(soft.caller, 0x40003B00 | last, 0)
    with refused(ENOTTY):
        soft.file.ioctl(soft.caller, 0x3B00 | last + 1, 0)
    check_empty(soft)
