"""Reading a TOML file: each error names the file, the line and what was expected."""

import pytest

from softiommu.errors import ConfigError
from softiommu.machine.reading import Document, expected

TEXT = """\
# a comment with name = "no key"
name = "lab"
sizes = [
    [1, 2],
]

[[part]]  # the first
size = 1

[[part]]
"size" = 2
kind = "b"
"""


def document():
    return Document("lab.toml", TEXT)


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ((None, 0, "name"), 2),
        ((None, 0, "sizes"), 3),
        ((None, 0, "absent"), 1),
        (("part", 0, "size"), 8),
        (("part", 1, "size"), 11),
        (("part", 1, "absent"), 10),
        (("part", 0), 7),
    ],
)
def test_a_key_is_found_in_the_table_it_belongs_to(where, line):
    assert document().line(*where) == line


def test_a_table_within_braces_is_found_by_its_key():
    assert Document("x", 'a = 1\npart = [{ size = 1 }, { size = "2" }]').line("part", 1, "size") == 2


@pytest.mark.parametrize(("text", "line"), [("a = 1\nb = = 2\nc = 3\n", 2), ("a = 1\nb = [1,\n", 2), ('a = "x', 1)])
def test_a_syntax_error_names_its_line(text, line):
    with pytest.raises(ConfigError, match=rf"^x\.toml:{line}: not TOML: [A-Z]"):
        Document("x.toml", text)


def test_an_empty_file_has_one_line():
    assert Document("x.toml", "").line(None, 0, "a") == 1


def test_values_come_as_their_kind():
    root = document().root
    assert root.text("name") == "lab"
    assert root.text("summary", "none") == "none"
    assert root.choice("colour", ("red",)) is None
    assert not root.flag("dark")
    assert [part.number("size", 10) for part in root.tables("part")] == [1, 2]


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda root: root.number("name", 9), "lab.toml:2: name must be an integer, not a string ('lab')"),
        (lambda root: root.text("sizes"), "lab.toml:3: sizes must be a string, not an array ([[1, 2]])"),
        (lambda root: root.text("title"), "lab.toml:1: expected a key 'title' in the machine"),
        (lambda root: root.choice("name", ("lad", "x")), "lab.toml:2: unknown name 'lab': expected one of lad, x"),
        (lambda root: list(root.tables("sizes")), "lab.toml:3: sizes must be written as [[sizes]] tables"),
        (lambda root: root.finish(), "lab.toml:2: unknown key 'name' in the machine: expected one of "),
        (lambda root: list(root.tables("part"))[1].number("size", 1), "lab.toml:11: size is 0x2: expected 0x0..0x1"),
        (lambda root: next(root.tables("part")).text("kind"), "lab.toml:7: expected a key 'kind' in [[part]]"),
    ],
)
def test_an_error_names_the_line_and_what_was_expected(read, message):
    with pytest.raises(ConfigError) as caught:
        read(document().root)
    assert str(caught.value).startswith(message)


def test_true_is_no_integer():
    with pytest.raises(ConfigError, match="must be an integer, not true or false"):
        Document("x", "a = true").root.number("a", 9)


def test_a_date_is_named_as_what_it_is():
    with pytest.raises(ConfigError, match="a must be a string, not a date"):
        Document("x", "a = 2026-01-01").root.text("a")


def test_a_key_that_was_left_names_the_nearest_that_was_asked_for():
    root = Document("x", 'sumary = "s"').root
    root.text("summary", "")
    root.flag("other")
    with pytest.raises(ConfigError, match=r"^x:1: unknown key 'sumary' .* summary, other \(did you mean summary\?\)$"):
        root.finish()


def test_nothing_near_is_not_suggested():
    assert expected("zzz", ("mock", "nodev")) == "expected one of mock, nodev"
