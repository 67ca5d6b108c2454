"""The layout of the package: which folder may import which, how long a module may be, what a door says."""
import ast
from pathlib import Path

import pytest

import cifar_fastai

HOUSE = Path(cifar_fastai.__file__).parent
# each may import those to its left; `|` parts floors, on one of which nobody imports a neighbour
ORDER = ("errors machine | files policy models gradcam parts processes | data plots weights recipe "
         "| loaders serve | training | checkpoints tricks | explain | page | runs | cli")
FLOORS = [floor.split() for floor in ORDER.split("|")]
FLOOR = {name: k for k, floor in enumerate(FLOORS) for name in floor}
FOLDERS = sorted(p.name for p in HOUSE.iterdir() if (p / "__init__.py").exists())
ROOMS = sorted(p for p in HOUSE.rglob("*.py"))


def imports(path: Path) -> list[tuple[str, ...]]:
    "What a room imports of the package, also inside functions, as paths of names: ('data', 'trees')"
    base, found = path.relative_to(HOUSE).parent.parts, []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [a.name.split(".") for a in node.names]
            found += [tuple(n[1:]) for n in names if n[0] == "cifar_fastai"]
        if not isinstance(node, ast.ImportFrom): continue
        if not node.level and (node.module or "").split(".")[0] != "cifar_fastai": continue
        at = base[:len(base) - node.level + 1] if node.level else ()
        module = (node.module or "").split(".")[0 if node.level else 1:]
        module = (*at, *filter(None, module))
        inside = HOUSE.joinpath(*module) if module else None
        for a in node.names:     # a name of the door, or a module past it
            past = not module or (inside / f"{a.name}.py").exists()
            found.append((*module, a.name) if past else module)
    return found


def place(path: Path) -> str: return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def faults(path: Path) -> list[str]:
    "What a room imports that it may not"
    here, wrong = place(path), []
    for target in imports(path):
        there = target[0]
        if there == here: continue
        if there not in FLOOR: wrong.append(f"{there} has no floor")
        elif FLOOR[there] >= FLOOR[here]: wrong.append(f"{here} imports {there}, which is not below it")
        elif len(target) > 1: wrong.append(f"{here} imports {'.'.join(target)}, past the door")
    return wrong


@pytest.mark.parametrize("path", [p for p in ROOMS if p != HOUSE / "__init__.py"],
                         ids=lambda p: str(p.relative_to(HOUSE)))
def test_a_room_imports_only_what_stands_below_it_and_through_its_door(path):
    assert faults(path) == []


@pytest.mark.parametrize("line, fault", [
    ("from ..runs import train", "is not below"), ("def f():\n    from .. import cli", "is not below"),
    ("from ..data.trees import open_tree", "past the door"), ("from ..data import trees", "past the door"),
    ("import cifar_fastai.runs", "is not below"),
    ("from cifar_fastai.gradcam.cam import A", "past the door"), ("from ..attic import f", "no floor")])
def test_a_wrong_import_is_noticed(line, fault, tmp_path, monkeypatch):
    room = tmp_path / "training" / "room.py"
    for folder in ("training", "data"): (tmp_path / folder).mkdir()
    (tmp_path / "data" / "trees.py").touch()
    room.write_text(line + "\n")
    monkeypatch.setattr(f"{__name__}.HOUSE", tmp_path)
    assert len(faults(room)) == 1 and fault in faults(room)[0]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_rooms_of_a_folder_import_each_other_in_no_circle(folder):
    rooms = {p.stem: {t[1] for t in imports(p) if t[0] == folder and len(t) > 1}
             for p in (HOUSE / folder).glob("*.py") if p.stem != "__init__"}
    while rooms:
        ground = {name for name, needs in rooms.items() if not needs & rooms.keys()}
        assert ground, f"a circle among {sorted(rooms)}"
        rooms = {name: needs for name, needs in rooms.items() if name not in ground}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_door_says_what_comes_in_what_goes_out_and_what_to_read(folder):
    tree = ast.parse((HOUSE / folder / "__init__.py").read_text())
    doc = ast.get_docstring(tree)
    assert 5 <= len(doc.splitlines()) <= 15 and "In: " in doc and "Out: " in doc and "Read " in doc
    rooms = {p.stem for p in (HOUSE / folder).glob("*.py")} - {"__init__"}
    assert {name for name in rooms if name not in doc} == set()


def test_a_folder_has_at_most_ten_rooms_and_a_room_at_most_260_lines():
    for folder in [HOUSE, *(HOUSE / f for f in FOLDERS)]:
        assert len([p for p in folder.glob("*.py") if p.stem != "__init__"]) <= 10, folder
    assert {str(p): n for p in ROOMS if (n := len(p.read_text().splitlines())) > 260} == {}


def test_the_house_does_not_grow_unseen():
    "A new feature pays for its lines: the page of a run, processes. Lower these where it gets simpler"
    assert len([p for p in ROOMS if p.stem != "__init__"]) <= 81
    assert sum(len(p.read_text().splitlines()) for p in ROOMS) < 12000


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_room_bears_the_name_of_a_function_that_its_door_offers(folder):
    module = __import__(f"cifar_fastai.{folder}", fromlist=["x"])
    rooms = {p.stem for p in (HOUSE / folder).glob("*.py")}
    assert not rooms & set(module.__all__)


def test_no_two_rooms_define_a_function_or_class_of_the_same_name():
    owners = {}
    for path in ROOMS:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                owners.setdefault(node.name, []).append(path.name)
    assert {name: rooms for name, rooms in owners.items() if len(rooms) > 1} == {} and len(owners) > 200


def test_data_nets_and_maps_know_nothing_of_fastai():
    without = {name for floor in FLOORS[:3] for name in floor}
    below = [p for p in ROOMS if place(p) in without]
    def names(path):
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import): found |= {a.name.split(".")[0] for a in node.names}
            if isinstance(node, ast.ImportFrom) and not node.level: found.add(node.module.split(".")[0])
        return found
    assert {str(p) for p in below if "fastai" in names(p)} == set()
    assert "fastai" in names(HOUSE / "training" / "learner.py"), "the control"
