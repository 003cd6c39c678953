"""An NVMe drive without a kernel driver: this program is the driver. Nothing here knows of softiommu.

    python3 examples/nvme_user_driver 0000:00:07.0 info
    python3 examples/nvme_user_driver 0000:00:07.0 read 0 4096 > first_blocks
    python3 examples/nvme_user_driver 0000:00:07.0 write 0 < image
    python3 examples/nvme_user_driver 0000:00:07.0 check           # overwrites the drive's first 4 MiB

The device must be VFIO's (vfio-pci). It needs only the standard library, and the kernel's headers' numbers.
"""

import argparse
import random
import sys
import time

from nvme import Controller
from vfio import DriverError

CHUNK = 1 << 20
FIRST, LAST = 4 << 10, 1 << 20


def info(controller: Controller, arguments: argparse.Namespace) -> None:
    """What drive it is."""
    size = controller.blocks * controller.block
    print(f"{controller.model}, serial number {controller.serial}")
    print(f"{size >> 20} MiB: {controller.blocks} blocks of {controller.block} bytes")
    print(f"a command moves up to {controller.most >> 10} KiB")
    print(f"registers are {'mapped' if controller.bar.mapped else 'read and written by system calls'}")


def read(controller: Controller, arguments: argparse.Namespace) -> None:
    """Bytes of the drive to standard output."""
    dma = controller.space.allocate(CHUNK)
    for done in range(0, arguments.length, CHUNK):
        size = min(CHUNK, arguments.length - done)
        controller.read(arguments.offset + done, dma, 0, size)
        sys.stdout.buffer.write(dma.memory[:size])


def write(controller: Controller, arguments: argparse.Namespace) -> None:
    """Standard input to the drive."""
    dma, at = controller.space.allocate(CHUNK), arguments.offset
    while data := sys.stdin.buffer.read(CHUNK):
        dma.memory[: len(data)] = data
        controller.write(at, dma, 0, len(data))
        at += len(data)
    controller.flush()


def check(controller: Controller, arguments: argparse.Namespace) -> None:
    """Write and read transfers of every size, from memory at the start of a page and within one."""
    source, target = (controller.space.allocate(LAST + CHUNK) for _ in range(2))
    chance, size, at = random.Random(arguments.seed), FIRST, 0
    while size <= LAST:
        for skew in (0, controller.block):
            data = chance.randbytes(size)
            source.memory[skew : skew + size] = data
            start = time.perf_counter()
            commands = controller.write(at, source, skew, size)
            controller.flush()
            controller.read(at, target, skew, size)
            took = time.perf_counter() - start
            if target.memory[skew : skew + size] != data:
                raise DriverError(f"{size >> 10} KiB at offset {at:#x} were read as others than were written")
            where = f"{skew} bytes into a page" if skew else "at the start of a page"
            times = "1 command" if commands == 1 else f"{commands} commands"
            print(f"{size >> 10:5} KiB {where}: written by {times} and read again, {took * 1000:.1f} ms")
            at += size
        size *= 2


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="nvme_user_driver", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("address", help="the PCI address of the drive, such as 0000:00:07.0")
    parser.add_argument("--poll", action="store_true", help="look for completions all the time: no interrupts")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    verbs.add_parser("info", help=info.__doc__).set_defaults(run=info)
    for verb in (read, write):
        sub = verbs.add_parser(verb.__name__, help=verb.__doc__)
        sub.set_defaults(run=verb)
        sub.add_argument("offset", type=lambda text: int(text, 0), help="in bytes")
        if verb is read:
            sub.add_argument("length", type=lambda text: int(text, 0), help="in bytes")
    sub = verbs.add_parser("check", help=check.__doc__)
    sub.set_defaults(run=check)
    sub.add_argument("--seed", type=int, default=0, help="which data: it is the same for the same number")
    arguments = parser.parse_args()
    try:
        controller = Controller(arguments.address, arguments.poll)
        arguments.run(controller, arguments)
        controller.close()
    except (DriverError, OSError) as error:
        sys.exit(f"nvme_user_driver: {error}")


if __name__ == "__main__":
    main()
