"""The page about front ends says what is so."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "vmm.md").read_text(encoding="utf-8")


def test_its_example_runs(capsys):
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code
    names = {}
    exec(code[1], names)
    assert capsys.readouterr().out == f"the guest reads CAP: {int(names['offer'].cap):#x}\n"
    names["unit"].close()
    names["iommufd"].close()


def test_what_it_links_to_is_there():
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (DOCS / target).exists(), target
