"""Machine descriptions: what they say, and what is wrong with a bad one."""

import pytest

from softiommu.errors import ConfigError
from softiommu.machine import description
from softiommu.machine.description import Iommu, builtin_names, load, parse
from softiommu.machine.pci import PciDevice

HEAD = 'name = "lab"\n'
DEVICE = '[[device]]\nname = "edu0"\naddress = "00:1e.0"\nvendor = 0x1234\ndevice = 0x11e8\n'


def test_the_built_in_machines_are_those_of_the_folder():
    assert builtin_names() == ("mock", "nodev")


@pytest.mark.parametrize("name", builtin_names())
def test_a_built_in_machine_bears_its_files_name_and_says_what_it_is(name):
    loaded = load(name)
    assert loaded.name == name
    assert loaded.summary
    assert loaded.source == f"builtin/{name}.toml"


def test_the_example_of_the_documentation_is_a_machine():
    example = (description.__doc__ or "").split("\n\n", 1)[1]
    loaded = parse("\n".join(line.strip() for line in example.splitlines()), "example")
    assert loaded.kernel == "7.2"
    assert loaded.has_model("mock")
    assert loaded.devices == (PciDevice("edu0", "0000:00:1e.0", 0x1234, 0x11E8, 0xFF00, 0x10, 0x1AF4, 0x1100),)


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
        (HEAD + '[[iommu]]\nname = "a"', "x.toml:2: expected a key 'model' in [[iommu]], one of mock"),
        (HEAD + '[[iommu]]\nname = "a"\nmodel = "mok"', "x.toml:4: unknown model 'mok': expected one of mock (did you"),
        (HEAD + '[[iommu]]\nname = "a"\nmodel = "mock"\n' * 2, "x.toml:6: name 'a' is taken: expected another"),
        (HEAD + "iommu = 3", "x.toml:2: iommu must be an array, not an integer (3)"),
        (HEAD + DEVICE.replace("1e.0", "1e.9"), "x.toml:4: '00:1e.9' is no PCI address: expected one such as 0000:00"),
        (HEAD + DEVICE + DEVICE.replace("edu0", "edu1"), "x.toml:9: address '0000:00:1e.0' is taken by 'edu0'"),
        (HEAD + DEVICE + "class = 0x1000000", "x.toml:7: class is 0x1000000: expected 0x0..0xffffff"),
        (HEAD + DEVICE + "pasid = 3", "x.toml:7: unknown key 'pasid' in [[device]]: expected one of address, name"),
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
        ("nodv", r"^unknown machine 'nodv': expected one of mock, nodev \(did you mean nodev\?\)\nhint: "),
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
