"""Machine descriptions: what they say, and what is wrong with a bad one."""

import pytest

from softiommu.errors import ConfigError
from softiommu.machine import description
from softiommu.machine.description import Iommu, builtin_names, load, parse
from softiommu.machine.devices import nvme
from softiommu.machine.pci import Bridge, PciDevice

HEAD = 'name = "lab"\n'
DEVICE = '[[device]]\nname = "edu0"\naddress = "00:1e.0"\nvendor = 0x1234\ndevice = 0x11e8\n'
VTD = '[[iommu]]\nname = "dmar0"\nmodel = "vtd"\n'
EDU = '[[device]]\nname = "e"\naddress = "00:04.0"\nmodel = "edu"\n'
NVME = EDU.replace('"edu"', '"nvme"')
IOAT = EDU.replace('"edu"', '"ioat"')
RISCV = VTD.replace('"vtd"', '"riscv"')
VIRTIO = VTD.replace('"vtd"', '"virtio"')
AMD, SMMU = VTD.replace('"vtd"', '"amd"'), VTD.replace('"vtd"', '"smmuv3"')
BRIDGE = '[[bridge]]\nname = "b"\naddress = "00:06.0"\nbus = 2\n'


def test_the_built_in_machines_are_those_of_the_folder():
    assert {"mock", "nodev", "vtd", "vtd-39", "vtd-flts", "vtd-nested", "vtd-noir", "vtd-sc", "vtd-sm"} <= set(
        builtin_names()
    )


@pytest.mark.parametrize("name", builtin_names())
def test_a_built_in_machine_bears_its_files_name_and_says_what_it_is(name):
    loaded = load(name)
    assert loaded.name == name
    assert loaded.summary
    assert loaded.source == f"builtin/{name}.toml"


def test_the_example_of_the_documentation_is_a_machine():
    example = (description.__doc__ or "").split("\n\n", 1)[1]
    loaded = parse("\n".join(line.strip() for line in example.splitlines()), "example")
    assert (loaded.kernel, loaded.memory, loaded.unsafe_interrupts) == ("7.2", 1 << 30, False)
    assert loaded.page_fault_timeout_ms == 10_000
    assert [(iommu.name, iommu.model) for iommu in loaded.iommus] == [("dmar0", "vtd")]
    assert loaded.bridges == (Bridge("bridge0", "0000:00:06.0", 2),)
    edu, card = loaded.devices
    assert (edu.name, edu.address, edu.model, edu.iommu) == ("edu0", "0000:00:04.0", "edu", "dmar0")
    assert card == PciDevice("card", "0000:00:1e.0", 0x1234, 0x11E8, 0xFF00, 0x10, 0x1AF4, 0x1100)


def test_what_is_left_out_has_a_default():
    loaded = parse(HEAD + DEVICE, "x")
    assert (loaded.summary, loaded.kernel, loaded.no_iommu, loaded.iommus) == ("", None, False, ())
    assert loaded.devices == (PciDevice("edu0", "0000:00:1e.0", 0x1234, 0x11E8),)
    assert not loaded.has_model("mock")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.toml:1: expected a key 'name' in the machine"),
        ('name = 1\nsummary = "s"', "x.toml:1: name must be a string, not an integer (1)"),
        (HEAD + 'kernel = "7.20"', "x.toml:2: unknown kernel '7.20': expected one of 6.12, 7.2, 7.3"),
        (HEAD + "no_iomu = true", "x.toml:2: unknown key 'no_iomu' in the machine: expected one of name"),
        (HEAD + '[[iommu]]\nmodel = "mock"', "x.toml:2: expected a key 'name' in [[iommu]]"),
        (HEAD + '[[iommu]]\nname = "a"', "x.toml:2: expected a key 'model' in [[iommu]], one of amd"),
        (HEAD + '[[iommu]]\nname = "a"\nmodel = "mok"', "x.toml:4: unknown model 'mok': expected one of amd"),
        (HEAD + '[[iommu]]\nname = "a"\nmodel = "mock"\n' * 2, "x.toml:6: name 'a' is taken: expected another"),
        (HEAD + "iommu = 3", "x.toml:2: iommu must be an array, not an integer (3)"),
        (HEAD + DEVICE.replace("1e.0", "1e.9"), "x.toml:4: '00:1e.9' is no PCI address: expected one such as 0000:00"),
        (HEAD + DEVICE + DEVICE.replace("edu0", "edu1"), "x.toml:9: address '0000:00:1e.0' is taken by 'edu0'"),
        (HEAD + DEVICE + "class = 0x1000000", "x.toml:7: class is 0x1000000: expected 0x0..0xffffff"),
        (HEAD + DEVICE + "pasid = 3", "x.toml:7: unknown key 'pasid' in [[device]]: expected one of name, address"),
        (HEAD + "page_fault_timeout_ms = -1", "x.toml:2: page_fault_timeout_ms is -0x1: expected 0x0..0x5265c00"),
        (HEAD + "memory = 0x1000", "x.toml:2: memory is 0x1000: expected a multiple of 2 MiB, and 16 MiB or more"),
        (HEAD + VTD + EDU + 'iommu = "x"', "x.toml:9: unknown iommu 'x': expected one of dmar0"),
        (HEAD + EDU, "x.toml:5: a device of model 'edu' needs an [[iommu]] in front of it"),
        (HEAD + VTD + VTD.replace("dmar0", "b") + EDU, "x.toml:8: expected a key 'iommu' in [[device]], one of dmar0"),
        (
            HEAD + VTD + EDU + "vendor = 3",
            "x.toml:9: unknown key 'vendor' in [[device]]: expected one of name, address",
        ),
        (HEAD + VTD + EDU + "dma_bits = 65", "x.toml:9: dma_bits is 0x41: expected 0x0..0x40"),
        (HEAD + VTD + "ecap = { PASS = 1 }", "x.toml:5: Ecap has no field 'PASS': expected one of C, QI"),
        (HEAD + VTD + "cap = { ND = 8 }", "x.toml:5: ND is 8: expected an integer from 0 to 0x7"),
        (HEAD + VTD + "ecap = { PSS = 19 }", "x.toml:5: there is no such hardware: PASID bits (PSS) need PASIDs"),
        (HEAD + VTD + "ecap = { PASID = 1 }", "x.toml:5: there is no such hardware: PASID needs scalable mode"),
        (HEAD + VTD + "cap = { SAGAW = 2 }", "x.toml:5: there is no such hardware: MGAW is not wider than"),
        (HEAD + VIRTIO + "input_bits = 0", "x.toml:5: input_bits is 0: expected 1..64"),
        (HEAD + VIRTIO + "features = { MAP_UNMAP = 0 }", "x.toml:5: MAP_UNMAP = 0: the driver needs map requests"),
        (HEAD + VIRTIO + "features = { INPUT_RANGE = 0 }", "x.toml:5: virtio-iommu: input_range has limits, but"),
        (HEAD + VTD + NVME + 'serial = ""', "x.toml:9: serial is '': expected 1..20 printable ASCII characters"),
        (HEAD + VTD + NVME + "block = 1024", "x.toml:9: block is 1024: expected 512 or 4096"),
        (HEAD + VTD + NVME + "block = 4097", "x.toml:9: block is 4097: expected 512 or 4096"),
        (HEAD + VTD + NVME + "size = 4096", "x.toml:9: size is 0x1000: expected a multiple of 4096, and 0x100000"),
        (HEAD + VTD + NVME + "pairs = 0", "x.toml:9: pairs is 0: expected 1.."),
        (HEAD + VTD + IOAT + "channels = 0", "x.toml:9: channels is 0: expected 1..8"),
        (HEAD + RISCV + "capabilities = { SV39 = 0 }", "x.toml:5: capabilities.SV48 needs capabilities.SV39"),
        (HEAD + RISCV + "levels = 0", "x.toml:5: levels is 0: expected 1..3"),
        (HEAD + AMD + "efr = { HDSup = 1, HASup = 0 }", "x.toml:5: efr.HDSup needs efr.HASup"),
        (HEAD + AMD + "efr = { PASmax = 20 }", "x.toml:5: efr.PASmax 20: PASIDs have 1 to 20 bits"),
        (HEAD + SMMU + "idr0 = { S1P = 0 }", "x.toml:2: IDR0."),
        (HEAD + SMMU + "idr5 = { GRAN4K = 0, GRAN16K = 0 }", "x.toml:2: IDR5.DS needs granules of 4 or 16 KiB"),
        (HEAD + SMMU + "cmdqv = { NUM_VINTF_LOG2 = 1 }", "x.toml:5: unknown key 'cmdqv' in [[iommu]]"),
        (
            HEAD + SMMU + 'unit = "tegra241"\ncmdqv = { NUM_VCMDQ_LOG2 = 5 }',
            "x.toml:2: PARAM.NUM_VCMDQ_LOG2: every interface has a queue",
        ),
        (HEAD + BRIDGE * 2, "x.toml:7: name 'b' is taken"),
    ],
)
def test_an_error_names_file_line_and_expectation(text, message):
    with pytest.raises(ConfigError) as caught:
        parse(text, "x.toml")
    assert str(caught.value).startswith(message)


def test_a_file_is_named_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "lab.toml").write_text(HEAD + '[[iommu]]\nname = "a"\nmodel = "mock"')
    monkeypatch.chdir(tmp_path)
    assert load("lab.toml").iommus == (Iommu("a", "mock"),)
    assert load(f"{tmp_path}/lab.toml").name == "lab"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nodv", r"^unknown machine 'nodv': expected one of .*mock, nodev, .* \(did you mean nodev\?\)\nhint: "),
        ("./absent.toml", r"^\./absent\.toml: No such file or directory$"),
        ("./folder/", "Is a directory$"),
        ("./latin.toml", "not UTF-8 text: .* at byte 8$"),
    ],
)
def test_a_machine_that_cannot_be_read_says_why(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(ConfigError, match=message):
        load(name)


def test_every_nvme_controller_of_a_machine_has_a_serial_number_of_its_own():
    loaded = parse(HEAD + VTD + NVME + NVME.replace('"e"', '"f"').replace("04.0", "05.0"), "x")
    first, second = (device.options for device in loaded.devices)
    assert isinstance(first, nvme.Options)
    assert isinstance(second, nvme.Options)
    assert first.serial != second.serial
