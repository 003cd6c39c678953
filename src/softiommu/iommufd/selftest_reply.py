"""The test command's answer: the union's member changed, the rest as it was given."""

from __future__ import annotations

from softiommu.abi import iommufd_test as test
from softiommu.abi.struct import UserStruct
from softiommu.iommufd.context import Context


def respond(ctx: Context, cmd: test.TestCmd, payload: UserStruct) -> None:
    """Write the command back with `payload` as its member of the union. EFAULT."""
    raw = payload.to_bytes() + cmd.payload[payload.SIZE :]
    ctx.respond(test.TestCmd(cmd.size, cmd.op, cmd.id, cmd.reserved, raw[:48], cmd.last, cmd.padding))
