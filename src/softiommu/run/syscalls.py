"""System call numbers, per machine, and which of them the supervisor is told about.

Only x86-64 is supervised. A call of another instruction set (32-bit, x32) is let through untouched, so such a program
sees the host as it is.
"""

from __future__ import annotations

from enum import IntEnum

#: AUDIT_ARCH_X86_64 of linux/audit.h.
AUDIT_ARCH = 0xC000003E
#: Set in the number of a call of the x32 instruction set.
X32_BIT = 0x40000000


class Nr(IntEnum):
    """Numbers of asm/unistd_64.h."""

    READ = 0
    WRITE = 1
    OPEN = 2
    STAT = 4
    FSTAT = 5
    LSTAT = 6
    LSEEK = 8
    MMAP = 9
    MPROTECT = 10
    IOCTL = 16
    PREAD64 = 17
    PWRITE64 = 18
    READV = 19
    WRITEV = 20
    ACCESS = 21
    MADVISE = 28
    DUP = 32
    SENDFILE = 40
    EXECVE = 59
    FCNTL = 72
    TRUNCATE = 76
    FTRUNCATE = 77
    GETCWD = 79
    CREAT = 85
    READLINK = 89
    CAPSET = 126
    PIVOT_ROOT = 155
    CHROOT = 161
    GETXATTR = 191
    LGETXATTR = 192
    LISTXATTR = 194
    LLISTXATTR = 195
    GETDENTS64 = 217
    EXIT_GROUP = 231
    OPENAT = 257
    NEWFSTATAT = 262
    READLINKAT = 267
    FACCESSAT = 269
    UNSHARE = 272
    SPLICE = 275
    FALLOCATE = 285
    PREADV = 295
    PWRITEV = 296
    SETNS = 308
    EXECVEAT = 322
    COPY_FILE_RANGE = 326
    PREADV2 = 327
    PWRITEV2 = 328
    PKEY_MPROTECT = 329
    STATX = 332
    OPENAT2 = 437
    FACCESSAT2 = 439


#: Told about whatever the arguments are.
ALWAYS = (
    Nr.OPENAT, Nr.NEWFSTATAT, Nr.STATX, Nr.READLINK, Nr.ACCESS, Nr.OPEN, Nr.STAT, Nr.LSTAT, Nr.FSTAT, Nr.CREAT,
    Nr.OPENAT2, Nr.READLINKAT, Nr.FACCESSAT, Nr.FACCESSAT2, Nr.GETDENTS64, Nr.GETCWD,
    Nr.GETXATTR, Nr.LGETXATTR, Nr.LISTXATTR, Nr.LLISTXATTR, Nr.TRUNCATE, Nr.FTRUNCATE, Nr.FALLOCATE,
    Nr.EXECVE, Nr.EXECVEAT, Nr.EXIT_GROUP, Nr.CHROOT, Nr.PIVOT_ROOT, Nr.UNSHARE, Nr.SETNS, Nr.CAPSET,
)  # fmt: skip
#: Told about when the descriptor is in the high range, where files with data of their own live.
HIGH_DESCRIPTOR = (Nr.READ, Nr.WRITE, Nr.READV, Nr.WRITEV, Nr.DUP)
#: The same, and for far offsets whatever the descriptor is; with the number of the argument that is the offset.
AT_OFFSET = {
    Nr.PREAD64: 3, Nr.PWRITE64: 3, Nr.PREADV: 3, Nr.PWRITEV: 3, Nr.PREADV2: 3, Nr.PWRITEV2: 3, Nr.LSEEK: 1,
}  # fmt: skip
#: Told about when one of two descriptors is in the high range; with the numbers of those arguments.
BETWEEN = {Nr.SENDFILE: (0, 1), Nr.SPLICE: (0, 2), Nr.COPY_FILE_RANGE: (0, 2)}
