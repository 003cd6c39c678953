"""The filter, run here as the kernel runs it, and the reasons when the kernel refuses it."""

from __future__ import annotations

import struct
from errno import EACCES, EBUSY, EINVAL, ENOSYS, EPERM

import pytest

from softiommu.run.seccomp import check_support, filter_program, refusal
from softiommu.run.syscalls import ALWAYS, AUDIT_ARCH, X32_BIT, Nr

THRESHOLD = 896
ALLOW, NOTIFY = 0x7FFF0000, 0x7FC00000


def decide(nr: int, *args: int, arch: int = AUDIT_ARCH) -> int:
    """What the filter returns for a call: a classic BPF machine."""
    data = struct.pack("<IIQ6Q", nr, arch, 0, *[argument % 2**64 for argument in (*args, *[0] * (6 - len(args)))])
    program = list(struct.iter_unpack("<HBBI", filter_program(THRESHOLD)))
    at, accumulator = 0, 0
    while True:
        code, yes, no, k = program[at]
        at += 1
        if code == 0x20:
            accumulator = int.from_bytes(data[k : k + 4], "little")
        elif code == 0x54:
            accumulator &= k
        elif code == 0x06:
            return int(k)
        else:
            holds = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[code]
            at += yes if holds else no


@pytest.mark.parametrize("nr", ALWAYS)
def test_calls_on_paths_are_always_told(nr: Nr) -> None:
    assert decide(nr) == NOTIFY


@pytest.mark.parametrize("nr", [Nr.OPENAT, Nr.IOCTL])
def test_other_instruction_sets_pass(nr: Nr) -> None:
    assert decide(nr, 3, 0x3B81, arch=0x40000003) == ALLOW
    assert decide(nr | X32_BIT, 3, 0x3B81) == ALLOW


@pytest.mark.parametrize(
    ("cmd", "verdict"),
    [(0x3B81, NOTIFY), (0x3B64, NOTIFY), (0xC0303B8A, NOTIFY), (0x4018AEE1, NOTIFY), (0x5401, ALLOW), (0xAE80, ALLOW)],
)
def test_an_ioctl_is_told_by_its_type_byte(cmd: int, verdict: int) -> None:
    assert decide(Nr.IOCTL, 3, cmd) == decide(Nr.IOCTL, 3, cmd | 0xFFFFFFFF00000000) == verdict


@pytest.mark.parametrize("nr", [Nr.READ, Nr.WRITE, Nr.READV, Nr.WRITEV, Nr.DUP, Nr.PREAD64, Nr.PWRITE64])
def test_transfers_are_told_in_the_high_range(nr: Nr) -> None:
    for fd, verdict in [(0, ALLOW), (THRESHOLD - 1, ALLOW), (THRESHOLD, NOTIFY), (2**31 - 1, NOTIFY), (-1, ALLOW)]:
        assert decide(nr, fd) == verdict
        assert decide(nr, fd | 5 << 32) == verdict


def test_far_offsets_are_told_for_every_descriptor() -> None:
    for offset, verdict in [(0, ALLOW), (2**40 - 1, ALLOW), (2**40, NOTIFY), (7 << 40, NOTIFY), (-1, ALLOW)]:
        assert decide(Nr.PREAD64, 5, 0, 0, offset) == decide(Nr.PWRITE64, 5, 0, 0, offset) == verdict
    assert decide(Nr.PREAD64, THRESHOLD, 0, 0, -1) == NOTIFY


@pytest.mark.parametrize("nr", [Nr.PREADV, Nr.PWRITEV, Nr.PREADV2, Nr.PWRITEV2])
def test_vectors_at_far_offsets_are_told_for_every_descriptor(nr: Nr) -> None:
    for offset, verdict in [(0, ALLOW), (2**40 - 1, ALLOW), (2**40, NOTIFY), (23 << 40, NOTIFY), (-1, ALLOW)]:
        assert decide(nr, 5, 0, 0, offset) == verdict
        assert decide(nr, THRESHOLD, 0, 0, offset) == NOTIFY


def test_positions_are_told_of_in_the_high_range_and_far_away() -> None:
    assert decide(Nr.LSEEK, 5, 0, 0) == decide(Nr.LSEEK, 5, -1, 2) == ALLOW
    assert (
        decide(Nr.LSEEK, 5, 2**40, 0)
        == decide(Nr.LSEEK, THRESHOLD, 0, 0)
        == decide(Nr.LSEEK, THRESHOLD, -1, 2)
        == NOTIFY
    )


@pytest.mark.parametrize(("nr", "other"), [(Nr.SENDFILE, 1), (Nr.SPLICE, 2), (Nr.COPY_FILE_RANGE, 2)])
def test_copies_between_files_are_told_when_one_is_in_the_high_range(nr: Nr, other: int) -> None:
    for one, two, verdict in [
        (3, 4, ALLOW),
        (-1, -1, ALLOW),
        (THRESHOLD, 4, NOTIFY),
        (3, THRESHOLD, NOTIFY),
        (-1, THRESHOLD, NOTIFY),
        (THRESHOLD, -1, NOTIFY),
    ]:
        assert decide(nr, one, *[two if index == other else 0 for index in range(1, 3)]) == verdict


def test_advice_is_told_where_it_takes_pages_from_a_file() -> None:
    assert [decide(Nr.MADVISE, 0x1000, 0x1000, advice) for advice in (4, 8, 9, 14)] == [ALLOW, ALLOW, NOTIFY, ALLOW]


def test_copies_are_told_where_the_number_is_free_to_choose() -> None:
    assert decide(Nr.FCNTL, THRESHOLD, 0) == decide(Nr.FCNTL, THRESHOLD, 1030) == NOTIFY
    assert decide(Nr.FCNTL, THRESHOLD, 3) == decide(Nr.FCNTL, 5, 0) == ALLOW


def test_mappings_are_told_when_they_have_a_file_or_take_a_permission() -> None:
    private, anonymous, fixed = 2, 0x20, 0x10
    assert decide(Nr.MMAP, 0, 4096, 1, private) == NOTIFY
    assert decide(Nr.MMAP, 0, 4096, 0, private | anonymous) == ALLOW
    assert decide(Nr.MMAP, 0, 4096, 3, private | anonymous | fixed) == ALLOW
    assert decide(Nr.MMAP, 0, 4096, 1, private | anonymous | fixed) == NOTIFY
    for nr in (Nr.MPROTECT, Nr.PKEY_MPROTECT):
        assert [decide(nr, 0, 4096, prot) for prot in (0, 1, 2, 3, 7)] == [NOTIFY, NOTIFY, NOTIFY, ALLOW, ALLOW]


def test_everything_else_passes() -> None:
    for nr in {*range(470)} - {*Nr}:
        assert decide(nr, THRESHOLD, 0x3B81) == ALLOW


def test_the_kernel_here_is_good_enough() -> None:
    check_support()


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (EBUSY, "already has a seccomp listener"),
        (EPERM, "container"),
        (ENOSYS, "Linux 5.19"),
        (EINVAL, "WAIT_KILLABLE_RECV"),
    ],
)
def test_a_refusal_names_the_cause_and_what_to_try(number: int, reason: str) -> None:
    text = str(refusal(number))
    assert text.startswith("cannot supervise a program: ")
    assert reason in text
    assert "\nhint: " in text


def test_an_unknown_refusal_has_the_systems_words() -> None:
    assert str(refusal(EACCES)) == "cannot supervise a program: seccomp(2) failed: Permission denied"
