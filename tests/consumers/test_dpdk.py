"""DPDK as Debian packages it: an unmodified user-space driver of the I/OAT engine, and a test that comes with it.

It finds the device in sysfs, takes it by its group and a type 1 container, maps its BAR, where each access traps, and
looks at what was copied. The packages (dpdk-dev, librte-dma-ioat23) are 100 MiB: these tests run where they are there.
"""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = ("dpdk-test", "dpdk-testpmd")
DRIVERS = list(Path("/usr/lib").glob("*/dpdk/pmds-*/librte_dma_ioat.so"))
MEBIBYTES = 128
PINNABLE = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
pytestmark = [
    pytest.mark.skipif(
        not DRIVERS or not all(map(shutil.which, PROGRAMS)),
        reason="needs Debian's packages dpdk-dev and librte-dma-ioat23",
    ),
    pytest.mark.skipif(
        os.geteuid() != 0 and 0 <= PINNABLE < MEBIBYTES << 20,
        reason=f"its memory is pinned: needs root, or RLIMIT_MEMLOCK of {MEBIBYTES} MiB",
    ),
]

#: Options of its environment: memory without huge pages, and no files that other instances could meet.
ALONE = ("--no-huge", "-m", str(MEBIBYTES), "--no-shconf", "--no-telemetry", "-l", "0,1")
ADDRESSES = ("0000:00:09.0", "0000:00:0a.0")
MACHINE = """
name = "dpdk"

[[iommu]]
name = "dmar0"
model = "vtd"
"""
DEVICE = """
[[device]]
name = "ioat{number}"
address = "{address}"
model = "ioat"
"""


@pytest.fixture
def dpdk(tmp_path, monkeypatch):
    """Runs one of DPDK's programs on a machine with two engines; -> what it said."""
    machine = tmp_path / "machine.toml"
    machine.write_text(MACHINE + "".join(DEVICE.format(number=n, address=at) for n, at in enumerate(ADDRESSES)))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    def run(program, *options, devices=ADDRESSES, said=""):
        allowed = [word for address in devices for word in ("-a", address)]
        command = [sys.executable, "-m", "softiommu", "run", "--machine", str(machine), "--", program]
        done = subprocess.run(
            [*command, *ALONE, *allowed, *options], input=said, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "softiommu:" not in done.stderr
        return done.stdout + done.stderr

    return run


def test_testpmd_takes_the_engines_of_two_groups_in_one_container(dpdk):
    told = dpdk("dpdk-testpmd", "--vdev", "net_null0", "--", "-i", "--total-num-mbufs=2048", said="quit\n")
    assert "EAL: Using IOMMU type 1 (Type 1)" in told
    for address in ADDRESSES:
        assert f"EAL: Probe PCI driver: dmadev_ioat (8086:2021) device: {address}" in told
    assert "Bye..." in told


def test_its_driver_s_own_test_passes(dpdk, monkeypatch):
    monkeypatch.setenv("DPDK_TEST", "dmadev_autotest")
    told = dpdk("dpdk-test", devices=ADDRESSES[:1])
    _, _, engine = told.partition(f"### Test dmadev instance 0 [{ADDRESSES[0]}]")
    for part in ("Running copy Tests", "Running burst capacity Tests", "Running fill Tests"):
        assert f"DMA Dev 0: {part}" in engine
    assert "Ops submitted: 85120\tOps completed: 85120\tErrors: 0" in engine
    assert "Test OK" in engine
