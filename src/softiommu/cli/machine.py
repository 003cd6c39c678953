"""`softiommu machine`: which hardware there is."""

from __future__ import annotations

import json

import click


@click.group()
def machine() -> None:
    """Show the machines there are."""


@machine.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="The same for programs.")
def list_machines(as_json: bool) -> None:
    """One line for each built-in machine."""
    from softiommu.machine.description import builtin_names, load

    summaries = {name: load(name).summary for name in builtin_names()}
    if as_json:
        print(json.dumps([{"name": name, "summary": summary} for name, summary in summaries.items()], indent=2))
        return
    for name, summary in summaries.items():
        print(f"{name:10} {summary}")


@machine.command()
@click.argument("name")
@click.option("--kernel", "-k", default=None, help="The kernel version to present.")
@click.option("--json", "as_json", is_flag=True, help="The same for programs.")
def show(name: str, kernel: str | None, as_json: bool) -> None:
    """What is in machine NAME (built in, or a TOML file): device nodes, IOMMUs, devices."""
    from softiommu.machine.assemble import machine as assemble

    facts = assemble(name, kernel, claim=False).facts()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    print(f"{facts['name']}: {facts['summary']}")
    print(f"kernel {facts['kernel']}, from {facts['source']}")
    for node in facts["nodes"]:
        print(f"node   {node}")
    for iommu in facts["iommus"]:
        print(f"iommu  {iommu['name']} ({iommu['model']})")
    for device in facts["devices"]:
        print(f"device {device['name']} ({device['id']}) in {device['sysfs']}")
        if "group" in device:
            nodes = ", ".join(device["nodes"]) or "vDPA has it"
            print(f"       behind {device['iommu']}, in group {device['group']}: {nodes}")
    if facts["test_command"]:
        print("a program makes devices of its own with the kernel's test command, IOMMU_TEST_CMD")
    elif not facts["devices"]:
        print("no devices")
