"""docs/architecture.md names what there is: modules, functions, files, and every folder on its floor."""
import re
from pathlib import Path
from pkgutil import resolve_name

import pytest
from test_house import FLOORS, HOUSE

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
NAMES = sorted(set(re.findall(r"`([^`\n]+)`", PAGE.split("```")[-1])))


def exists(name: str) -> bool:
    if "(" in name or " " in name or name.isidentifier(): return True           # a way of speaking
    if "/" in name or name.endswith(".py"): return any((top / name).exists() for top in (ROOT, HOUSE))
    try: return resolve_name(f"cifar_fastai.{name}") is not None
    except (ImportError, AttributeError): return False


@pytest.mark.parametrize("name", NAMES)
def test_what_the_page_names_exists(name): assert exists(name)


def test_the_control_a_name_that_does_not_exist_is_noticed():
    assert not any(map(exists, ("data.attic.load", "runs/attic.py", "cli.flag_table")))
    assert len(NAMES) > 40


def test_the_drawing_has_every_folder_and_file_on_its_floor():
    rows = [line.partition("·")[0].split() for line in PAGE.split("```")[1].splitlines()]
    place = {word.strip("/"): k for k, row in enumerate(rows) for word in row}
    for above, below in zip(FLOORS[::-1], FLOORS[::-1][1:]):
        for a in above:
            for b in below: assert place[a] < place[b], f"{a} is drawn below {b}"
