"""`softiommu run`: exit codes, streams, the log, and machines."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
PYTHON = [sys.executable, "-S", "-E"]


def test_the_exit_code_is_the_programs(softiommu):
    assert softiommu("run", "--", "sh", "-c", "exit 7") == (7, "", "")
    assert softiommu("run", "true") == (0, "", "")


def test_a_program_killed_by_a_signal_ends_the_run_by_it(softiommu):
    assert softiommu("run", "--", "sh", "-c", "kill -TERM $$").code == -signal.SIGTERM


def test_streams_are_the_programs_own(softiommu):
    ended = softiommu("run", "--", "sh", "-c", "echo data; echo words >&2")
    assert ended == (0, "data\n", "words\n")


def test_options_after_the_program_are_its_own(softiommu):
    assert softiommu("run", "echo", "--kernel", "-m", "--help").out == "--kernel -m --help\n"
    assert softiommu("run", "--", "echo", "--", "-k").out == "-- -k\n"


def test_a_program_that_cannot_be_started_is_told_as_a_shell_does(softiommu, tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("no program")
    assert softiommu("run", "no-such-program") == (127, "", "softiommu: no-such-program: command not found\n")
    assert softiommu("run", "./none") == (127, "", "softiommu: ./none: No such file or directory\n")
    assert softiommu("run", str(plain)) == (126, "", f"softiommu: {plain}: Permission denied\n")


def test_an_unmodified_program_maps_memory(softiommu):
    ended = softiommu("run", "--", *PYTHON, str(EXAMPLES / "first_mapping.py"))
    assert (ended.code, ended.err) == (0, "")
    said = ended.out.splitlines()
    assert said[0] == "opened /dev/iommu"
    assert "0x0 to 0xffffffffffffffff" in said[2]
    assert "(File exists)" in said[5]
    assert said[6].startswith("unmapped everything: 68 KiB")


def test_the_kernel_decides_which_commands_there_are(softiommu):
    code = """
import errno, fcntl, os, struct
fd = os.open("/dev/iommu", os.O_RDWR)
try:
    fcntl.ioctl(fd, 0x3B94, bytearray(struct.pack("=I", 48).ljust(48, b"\\0")))
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    answers = [softiommu("run", "-k", kernel, "--", *PYTHON, "-c", code).out for kernel in ("6.12", "7.2")]
    assert answers == ["ENOTTY\n", "ENOTSUP\n"]


@pytest.mark.parametrize(("machine", "answer"), [("nodev", "ENOTTY\n"), ("mock", "ENOENT\n")])
def test_the_machine_decides_whether_there_is_a_test_command(softiommu, machine, answer):
    code = """
import errno, fcntl, os, struct
fd = os.open("/dev/iommu", os.O_RDWR)
try:
    fcntl.ioctl(fd, 0x3BA0, bytearray(struct.pack("=IIII", 72, 2, 99, 0).ljust(72, b"\\0")))
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    assert softiommu("run", "-m", machine, "--", *PYTHON, "-c", code).out == answer


def test_the_devices_of_a_file_are_in_sysfs(softiommu, tmp_path):
    file = tmp_path / "lab.toml"
    file.write_text('name = "lab"\n[[device]]\nname = "edu0"\naddress = "00:1e.0"\nvendor = 0x1234\ndevice = 0x11e8\n')
    code = """
import os
folder = "/sys/bus/pci/devices/0000:00:1e.0"
print(os.path.basename(os.path.realpath(folder)), open(folder + "/vendor").read(), sep="\\n", end="")
"""
    ended = softiommu("run", "-m", str(file), "--", *PYTHON, "-c", code)
    assert ended == (0, "0000:00:1e.0\n0x1234\n", "")


def test_a_drives_file_is_that_of_one_run_and_can_be_shown_meanwhile(softiommu, tmp_path):
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    (tmp_path / "lab.toml").write_text(
        'name = "lab"\n[[iommu]]\nname = "a"\nmodel = "vtd"\n'
        '[[device]]\nname = "n"\naddress = "00:04.0"\nmodel = "nvme"\nfile = "disk.img"\n'
    )
    # A path is seen from the working directory, wherever the description lies.
    first = [sys.executable, "-m", "softiommu", "run", "-m", "lab.toml", "--", "sh", "-c", "echo up; read line"]
    with subprocess.Popen(first, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "up\n"
        refused = softiommu("run", "-m", "lab.toml", "--", "true", cwd=tmp_path)
        assert (refused.code, refused.err.splitlines()[0]) == (
            2,
            "softiommu: lab.toml:9: the file disk.img is in use by another drive or another softiommu",
        )
        assert softiommu("machine", "show", "lab.toml", cwd=tmp_path).code == 0
        assert softiommu("caps", "-m", "lab.toml", cwd=tmp_path).code == 0
        holder.communicate("\n", timeout=60)
    assert softiommu("run", "-m", "lab.toml", "--", "true", cwd=tmp_path) == (0, "", "")
    outside = softiommu("run", "-m", str(tmp_path / "lab.toml"), "--", "true", cwd="/")
    assert "the file disk.img cannot be opened: No such file or directory" in outside.err


LATE = """
name = "late"
page_fault_timeout_ms = 150

[[iommu]]
name = "dmar0"
model = "vtd"
unit = "full"

[[device]]
name = "test0"
address = "0000:00:05.0"
model = "pcitest"
"""


def test_a_page_fault_that_a_sleeping_program_does_not_answer_fails_in_time(softiommu, tmp_path):
    file = tmp_path / "late.toml"
    file.write_text(LATE)
    code = """
import os, select, softiommu, time
with softiommu.open_kernel() as iommufd, iommufd.ioas() as ioas, iommufd.fault_queue() as faults:
    device = iommufd.device("/dev/vfio/devices/vfio0")
    device.enable()
    table = device.hwpt(ioas, faults=faults)
    device.attach(table)
    device.write(0, 0, 8, 0x40000)
    device.write(0, 8, 4, 3)
    watch = select.poll()
    watch.register(faults.fd, select.POLLIN)
    print(len(watch.poll(0)))
    for _ in range(500):  # poll is no call on a file of the machine's: nothing tells the supervisor of it
        if not watch.poll(0):
            break
        time.sleep(0.02)
    print(len(watch.poll(0)), device.read(0, 8, 4) & 1, faults.read())
    device.close()
    table.destroy()
"""
    ended = softiommu("run", "-m", str(file), "--", sys.executable, "-c", code)
    assert ended.out == "1\n0 0 []\n", ended.err
    assert "1 page fault of test0, group 0, the last at 0x40000: no answer in time, so FAILURE" in ended.err


def test_the_log_has_a_line_for_each_call(softiommu, tmp_path):
    file = tmp_path / "calls"
    ended = softiommu("run", "--log", str(file), "--", *PYTHON, str(EXAMPLES / "first_mapping.py"))
    assert ended.code == 0
    lines = file.read_text().splitlines()
    assert [line.split()[0] for line in lines] == [str(number) for number in range(1, len(lines) + 1)]
    calls = [line.split()[2].partition("(")[0] for line in lines]
    asked = ["IOAS_ALLOC", "IOAS_IOVA_RANGES", "IOAS_MAP", "IOAS_COPY", "IOAS_MAP", "IOAS_UNMAP"]
    assert [call for call in calls if call.isupper()] == asked
    assert " = -EEXIST: iova 0x40000000..0x40000fff overlaps " in lines[5]


def test_the_log_may_be_standard_error(softiommu):
    ended = softiommu("run", "-l", "-", "--", *PYTHON, "-c", "import os; os.open('/dev/iommu', os.O_RDWR)")
    assert (ended.code, ended.out) == (0, "")
    assert "open(path=/dev/iommu" in ended.err


def test_a_log_that_cannot_be_written_is_told_before_the_program_starts(softiommu, tmp_path):
    ended = softiommu("run", "--log", str(tmp_path), "--", "echo", "started")
    assert ended == (2, "", f"softiommu: the log {tmp_path} cannot be written: Is a directory\n")


def test_what_was_counted_is_told_at_the_end_whatever_the_program_died_of(softiommu, tmp_path):
    file = tmp_path / "counts"
    script = f"{sys.executable} {EXAMPLES / 'first_dma.py'}; kill -TERM $$"
    assert softiommu("run", "--machine", "vtd", "--counts", str(file), "--", "sh", "-c", script).code == -signal.SIGTERM
    told = json.loads(file.read_text())
    assert told["calls"]["IOAS_MAP"] == 1
    assert told["iommus"]["dmar0"]["walked"] > 0
    assert told["invalidated"] == 0


def test_the_program_inherits_nothing_of_ours(softiommu, tmp_path):
    code = "import os; print(sorted(os.listdir('/proc/self/fd'))[:-1])"
    ended = softiommu("run", "--log", str(tmp_path / "calls"), "--", *PYTHON, "-c", code)
    assert ended.out == "['0', '1', '2']\n"


LOCKS = """
import mmap, resource, softiommu
resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 4096))
with softiommu.open_kernel() as iommufd, iommufd.ioas() as ioas, iommufd.device("0000:00:04.0") as device:
    device.attach(ioas)
    ioas.map(mmap.mmap(-1, 8192), iova=0)
"""


def test_memory_may_be_locked_without_limit_where_that_is_asked_for(softiommu):
    as_user = [] if os.geteuid() else ["setpriv", "--bounding-set=-ipc_lock"]
    command = ["--", *as_user, sys.executable, "-c", LOCKS]
    assert "[Errno 12]" in softiommu("run", "-m", "vtd", *command).err
    assert softiommu("run", "-m", "vtd", "--unlimited-memlock", *command) == (0, "", "")
