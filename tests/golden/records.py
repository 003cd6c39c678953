"""The recordings: what real kernels answered, call by call. One JSON object a line, compressed."""

import functools
import gzip
import json
import os
import traceback
from pathlib import Path

from golden.player import DifferenceError, Player

DATA = Path(__file__).parent.parent / "data" / "golden"
VTD = ("vtd", "vtd-39", "vtd-sm", "vtd-flts", "vtd-sc", "vtd-noir")
PROFILES = [(kernel, profile) for kernel in ("6.12", "7.2") for profile in ("nodev", "mock", *VTD)]
PROFILES.append(("6.12", "viommu"))


@functools.cache
def load(kernel, profile):
    """The sequences of one kernel and profile."""
    name = f"iommufd-{kernel}{'-mock' if profile == 'mock' else ''}-open.jsonl.gz"
    with gzip.open(DATA / name, "rt") as lines:
        records = [json.loads(line) for line in lines]
    return [record for record in records if record["profile"] == profile]


def play_apart(make_kernel, record):
    """Play one sequence in a process of its own; what differs, or an empty string."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        try:
            Player(make_kernel(), record).play()
        except DifferenceError as difference:
            os.write(writer, str(difference).encode()[:4000])
        except BaseException as error:
            text = "".join(traceback.format_exception(error))
            os.write(writer, f"{record['id']} crashed: {text}".encode()[-4000:])
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as said:
        text = said.read().decode()
    _, status = os.waitpid(pid, 0)
    return text or (f"{record['id']}: the player ended with status {status}" if status else "")
