"""Paths of the machine, as programs reach them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from run.conftest import HERE, Runner

DEVICE = "/sys/devices/pci0000:fd/0000:fd:05.0"
SHORT = "/sys/bus/pci/devices/0000:fd:05.0"


def test_stat_tells_of_nodes_files_links_and_folders(supervise: Runner) -> None:
    result = supervise.python(f"""
import stat
def tell(status): return stat.filemode(status.st_mode), status.st_rdev, status.st_size
print(tell(os.stat("/dev/iommu")) == ("crw-------", os.makedev(10, 120), 0))
print(tell(os.stat("{DEVICE}/vendor")), tell(os.lstat("{SHORT}")), tell(os.stat("{SHORT}")))
print(stat.filemode(os.fstat(os.open("/dev/iommu", os.O_RDWR)).st_mode))
print(error(os.stat, "/dev/iommu/x"), error(os.stat, "{DEVICE}/nothing"), error(os.stat, "/dev/vfio/vfio"))
""")
    assert result.out == (
        "True\n('-r--r--r--', 0, 4096) ('lrwxrwxrwx', 0, 40) ('drwxr-xr-x', 0, 0)\ncrw-------\nENOTDIR ENOENT ENOENT\n"
    )


def test_a_path_leads_to_the_machine_through_links_and_folders(supervise: Runner, tmp_path: Path) -> None:
    (tmp_path / "node").symlink_to("/dev/iommu")
    (tmp_path / "folder").symlink_to("/dev/vfio")
    (tmp_path / "root").symlink_to("/")
    result = supervise.python(f"""
place = {str(tmp_path)!r}
for path in ("/dev/../dev//iommu", place + "/node", place + "/root/dev/iommu", "/proc/self/root/dev/iommu",
             "/dev/./vfio/devices/vfio7", place + "/folder/devices/vfio7", place + "/folder/../iommu"):
    os.close(os.open(path, os.O_RDWR))
os.chdir("/dev"); os.close(os.open("iommu", os.O_RDWR)); os.close(os.open("vfio/devices/vfio7", os.O_RDWR))
os.chdir(place); os.close(os.open("node", os.O_RDWR)); os.close(os.open("../" * 20 + "dev/iommu", os.O_RDWR))
print(open("{SHORT}/vendor").read(), os.readlink("{SHORT}/iommu_group"))
print(os.path.realpath("{SHORT}/iommu_group"))
print(error(os.open, place + "/node", os.O_RDWR | os.O_NOFOLLOW), error(os.open, "{SHORT}", os.O_NOFOLLOW))
""")
    assert result.opened == 11
    assert result.out == ("0x1234\n ../../../kernel/iommu_groups/7\n/sys/kernel/iommu_groups/7\nELOOP ELOOP\n")


def test_a_dot_at_the_end_is_the_folder_and_not_the_link_to_it(supervise: Runner) -> None:
    result = supervise.python(f"""
import stat
def kind(path): return stat.filemode(os.lstat(path).st_mode)[0]
print(*map(kind, ("{SHORT}", "{SHORT}/", "{SHORT}/.", "{SHORT}//./.", "{SHORT}/iommu_group/.", "/dev/vfio/.")))
print(error(os.lstat, "/dev/iommu/."), error(os.lstat, "{SHORT}/vendor/."), error(os.lstat, "{SHORT}/nothing/."))
print(error(os.readlink, "{SHORT}/."), "vendor" in os.listdir(os.open("{SHORT}/.", os.O_NOFOLLOW)))
os.fchdir(os.open("{SHORT}", os.O_RDONLY))
print(*map(kind, ("iommu_group", "iommu_group/.", ".", "./.")))
""")
    assert result.out == "l d d d d d\nENOTDIR ENOTDIR ENOENT\nEINVAL True\nl d d d\n"


def test_a_folder_descriptor_leads_on(supervise: Runner) -> None:
    result = supervise.python(f"""
dev = os.open("/dev", os.O_RDONLY | os.O_DIRECTORY)
os.close(os.open("iommu", os.O_RDWR, dir_fd=dev))
vfio = os.open("vfio", os.O_PATH, dir_fd=dev)
os.close(os.open("devices/vfio7", os.O_RDWR, dir_fd=vfio))
os.close(os.open("../iommu", os.O_RDWR, dir_fd=vfio))
device = os.open("{SHORT}", os.O_RDONLY)
print(os.read(os.open("vendor", os.O_RDONLY, dir_fd=device), 100), os.readlink("iommu_group", dir_fd=device))
print(error(lambda: os.stat("nothing", dir_fd=device)), error(lambda: os.open("new", os.O_CREAT, dir_fd=device)))
os.fchdir(device)
print(os.getcwd(), open("vendor").read(), open("vfio-dev/vfio7/dev").read())
""")
    assert result.opened == 3
    assert result.out == (f"b'0x1234\\n' ../../../kernel/iommu_groups/7\nENOENT ENOENT\n{DEVICE} 0x1234\n 511:7\n\n")


def test_what_lies_above_a_folder_of_the_machine_is_the_hosts(supervise: Runner) -> None:
    result = supervise.python(f"""
def same(one, other):
    return tuple(one)[:7] == tuple(other)[:7] and one.st_mtime_ns == other.st_mtime_ns and one.st_rdev == other.st_rdev
vfio = os.open("/dev/vfio", os.O_RDONLY)
print(same(os.stat("/dev/vfio/.."), os.stat("/dev")), same(os.lstat("/dev/vfio/devices/../.."), os.stat("/dev")))
print(same(os.stat("..", dir_fd=vfio), os.stat("/dev")), same(os.stat("../..", dir_fd=vfio), os.stat("/")))
print(same(os.stat("{SHORT}/../.."), os.stat("/sys/devices")), same(os.stat("/dev/vfio/../null"), os.stat("/dev/null")))
listed, above = os.listdir("/dev/vfio/.."), os.open("..", 0, dir_fd=vfio)
print(sorted(listed) == sorted(os.listdir("/dev")), "iommu" in os.listdir(above))
users = "/dev/vfio/../../etc/passwd"
print(same(os.stat(users), os.stat("/etc/passwd")), open(users).read() == open("/etc/passwd").read())
print(os.readlink("/dev/vfio/../fd"), os.access("/dev/vfio/..", os.R_OK), error(os.stat, "/dev/vfio/../nothing"))
print(error(os.open, "/dev/vfio/../nothing", 0), error(os.open, "/dev/vfio/../..", os.O_RDWR))
print(error(os.open, "/dev/vfio/..", os.O_CREAT | os.O_EXCL), error(os.readlink, "/dev/vfio/.."))
""")
    assert result.out.splitlines() == [
        *["True True"] * 5,
        "/proc/self/fd True ENOENT",
        "ENOENT EISDIR",
        "EEXIST EINVAL",
    ]


@pytest.mark.skipif(os.getuid() != 0, reason="another user can only be had by root")
def test_another_user_sees_nothing_through_us_that_it_may_not_see(supervise: Runner, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    tmp_path.chmod(0o700)
    result = supervise.python(f"""
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
place = "/dev/vfio/../..{tmp_path}/secret"
print(error(os.stat, place), error(os.open, place, 0), error(os.listdir, "/dev/vfio/../..{tmp_path}"))
print(os.stat("/dev/vfio/..").st_ino == os.stat("/dev").st_ino)
""")
    assert result.out == "ENOENT ENOENT ENOENT\nTrue\n"


def test_folders_list_what_the_machine_adds(supervise: Runner) -> None:
    host = sorted(os.listdir("/sys/bus/pci/devices"))
    result = supervise.python(f"""
print(sorted(os.listdir("{SHORT}")), os.listdir("/dev/vfio"), os.listdir("/dev").count("iommu"))
print(sorted(os.listdir("/sys/bus/pci/devices")))
fd = os.open("/sys/bus/pci/devices", os.O_RDONLY)
print(sorted(os.listdir(fd)) == sorted(os.listdir(fd)), [e.is_symlink() for e in os.scandir("{SHORT}/..")])
""")
    names = ["iommu_group", "vendor", "vfio-dev"]
    listed = sorted([*host, "0000:fd:05.0"])
    assert result.out == f"{names} ['devices'] 1\n{listed}\nTrue [False]\n"


def test_the_flags_of_open_mean_what_they_mean(supervise: Runner) -> None:
    result = supervise.python(f"""
print(error(os.open, "/dev/iommu", os.O_CREAT | os.O_EXCL), error(os.open, "/dev/iommu", os.O_DIRECTORY))
print(error(os.open, "{DEVICE}/vendor", os.O_RDWR), error(os.open, "{DEVICE}", os.O_RDWR))
fd = os.open("/dev/iommu", os.O_PATH)
print(error(fcntl.ioctl, fd, COUNT), os.readlink(f"/proc/self/fd/{{fd}}"))
os.close(os.open("/dev/iommu", os.O_CREAT | os.O_RDWR))
print(os.access("/dev/iommu", os.R_OK | os.W_OK), os.access("/dev/iommu", os.X_OK), os.access("/dev/vfio", os.X_OK))
""")
    assert (result.opened, result.out) == (1, "EEXIST ENOTDIR\nEACCES EISDIR\nENOTTY /dev/iommu\nTrue False True\n")


def test_paths_of_the_host_stay_as_they_are(supervise: Runner, tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    result = supervise.python(f"""
os.chdir({str(tmp_path)!r})
print(error(os.open, "dangling", 0), error(os.open, "loop", 0), error(os.open, "a/b", 0), error(os.stat, ""))
print(error(os.stat, "x" * 5000), error(os.readlink, "."), os.readlink("dangling"))
os.close(os.open("dangling", os.O_CREAT | os.O_WRONLY))
print(os.listdir("."), os.getcwd() == {str(tmp_path)!r}, os.stat("/dev/null").st_rdev == os.makedev(1, 3))
""")
    lines = result.out.splitlines()
    assert lines[:2] == ["ENOENT ELOOP ENOENT ENOENT", "ENAMETOOLONG EINVAL nowhere"]
    assert "'nowhere'" in lines[2]
    assert lines[2].endswith("True True")


def test_a_bad_path_pointer_faults(supervise: Runner) -> None:
    result = supervise.python("""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
area = mmap.mmap(-1, 8192)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
libc.mprotect(ctypes.c_void_p(start + 4096), 4096, 0)
for path, at in ((b"/dev/iommu", 4096 - 10), (b"/dev/iommu\\0", 4096 - 11)):
    area[at:4096] = path
    fd = libc.open(ctypes.c_void_p(start + at), os.O_RDWR)
    print(fd >= 0, errno.errorcode.get(ctypes.get_errno()))
print(libc.open(ctypes.c_void_p(8), 0), errno.errorcode[ctypes.get_errno()])
""")
    assert result.out == "False EFAULT\nTrue EFAULT\n-1 EFAULT\n"


def test_a_descriptor_of_ours_says_its_path(supervise: Runner) -> None:
    result = supervise.python("""
fd = os.open("/dev/iommu", os.O_RDWR)
print(os.readlink(f"/proc/self/fd/{fd}"), os.readlink(f"/proc/{os.getpid()}/fd/{fd}"))
again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
print(fcntl.ioctl(fd, COUNT), fcntl.ioctl(fd, COUNT), fcntl.ioctl(again, COUNT))
""")
    assert result.out == "/dev/iommu /dev/iommu\n1 2 1\n"


def test_a_file_that_another_gave_is_not_opened_by_its_link(supervise: Runner) -> None:
    result = supervise.python("""
queue = fcntl.ioctl(os.open("/dev/iommu", os.O_RDWR), NEW_QUEUE)
link = f"/proc/self/fd/{queue}"
print(error(os.open, link, os.O_RDWR), error(os.truncate, link, 0), oct(os.stat(link).st_mode), os.readlink(link))
""")
    assert result.out == "ENXIO EINVAL 0o600 anon_inode:[queue]\n"


@pytest.mark.skipif(os.getuid() != 0, reason="chroot needs root")
def test_a_program_with_a_root_of_its_own_finds_the_machine_there(supervise: Runner, tmp_path: Path) -> None:
    (tmp_path / "root" / "dev").mkdir(parents=True)
    (tmp_path / "root" / "etc").symlink_to("dev")
    result = supervise.python(f"""
os.chroot({str(tmp_path / "root")!r}); os.chdir("/")
fd = os.open("/dev/iommu", os.O_RDWR)
print(fcntl.ioctl(fd, COUNT), error(os.open, "/usr/bin/env", 0), os.path.exists("/etc/iommu"))
""")
    assert result.out == "1 ENOENT True\n"


def test_start_imports_nothing_heavy() -> None:
    heavy = {"numpy", "numba", "pyarrow", "rich", "starlette", "asyncio", "click"}
    code = "import sys, softiommu.run.supervisor; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=HERE).stdout
    assert not heavy & set(loaded.split())
