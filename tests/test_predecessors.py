"""docs/predecessors.md is true: what it names exists, and nothing of what a predecessor does is left out."""
import json
import re
from dataclasses import fields
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name

import pytest

from benchmarks import predecessors
from cifar_fastai import Recipe, cli
from cifar_fastai.policy import Policy
from recipes.__main__ import COMMANDS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "predecessors.md").read_text()
ROWS = [[c.strip() for c in line.strip("|").split("|")] for line in PAGE.splitlines()
        if line.startswith("|") and line.count("|") == 8]
FEATURES = {r[0]: r[6] for r in ROWS[2:] if not r[0].startswith("**")}
PAIRS = [[c.strip() for c in line.strip("|").split("|")] for line in PAGE.split("## Measured")[1].splitlines()
         if re.match(r"\| [A-E] ", line)]
DRAWN = (ROOT / "cifar_fastai" / "runs" / "report.py").read_text()
RUNS = ROOT / "cifar_fastai" / "runs"
WRITTEN = "".join((RUNS / f).read_text() for f in ("report.py", "run_writer.py", "run_folder.py"))

# section 5 of the comparison: everything that at least one of the five does
UNION = """ResNet-18; ResNet-34; ResNet-50; ResNet-101; custom ResNet of 6.57 M; norm by choice; parameter
summary; unused-weight check; CIFAR-10 download; mean and std computed; pad and crop; flip;
cutout; rotation; colour jitter; grey; sample grid; per-class grid; unnormalise; SGD with
momentum; Adam; one-cycle; peak at epoch 5; chosen div factors; ReduceLROnPlateau; StepLR; L1;
weight decay; gradient clipping by value; cross-entropy or NLL; 20, 24, 50 epochs; best weights;
exponential and linear; on training or validation loss; suggestion by steepest, minimum, valley;
plot with marked point; reset; progress bar; epoch table; log file; loss and accuracy curves; LR
and momentum curve; misclassified gallery; Grad-CAM on chosen layers; Grad-CAM of right and
wrong; Grad-CAM with choice of target; per-class accuracy; TensorBoard scalars; TensorBoard
pictures; TensorBoard graph; TensorBoard range test; config and command line; Python API; Colab
notebook; device; full seeding""".replace("\n", " ").split("; ")

TOP = ("LICENSE", "README.md", "requirements.lock", "environment.yml")


def exists(name: str) -> bool:
    "Whether a name of the page stands for something"
    if name.startswith("python -m recipes "): return name.split()[3] in COMMANDS
    if name.startswith("--"): return name[2:].replace("-", "_") in signature(cli.flags).parameters
    if name.startswith("figures/"):
        return any(f'"{name[8:-4]}"{end}' in DRAWN for end in (": lambda", ": interp.", "]"))
    if name.endswith((".txt", ".csv", ".json")): return f'"{name}"' in WRITTEN
    if "/" in name or name in TOP: return (ROOT / name).exists()
    owner, *rest = name.split(".")
    if owner in ("Recipe", "Policy"):
        cls = {"Recipe": Recipe, "Policy": Policy}[owner]
        return rest[0] in {f.name for f in fields(cls)} or hasattr(cls, rest[0])
    try: resolve_name(f"cifar_fastai.{name}")
    except (ImportError, AttributeError): return False
    return True


@pytest.mark.parametrize("feature", FEATURES)
def test_what_our_cell_names_exists(feature):
    named = re.findall(r"`([^`]+)`", FEATURES[feature])
    assert named
    assert [n for n in named if not exists(n)] == []


def test_the_recipes_of_the_first_table_exist():
    named = re.findall(r"`(recipes/[^`]+)`", PAGE)
    assert len(named) >= 6 and all((ROOT / n).exists() for n in named)


def test_a_name_that_does_not_exist_is_noticed():
    wrong = ("--colour", "figures/landscape.png", "notes.txt", "recipes/none.py", "Recipe.colour",
             "models.resnet7", "python -m recipes dance", "explain.gallery.Gallery.plot_everything")
    assert [n for n in wrong if exists(n)] == []


def test_every_feature_of_a_predecessor_has_its_row():
    assert [u for u in UNION if not any(f.lower().startswith(u.lower()) for f in FEATURES)] == []


def test_cells_of_the_five_say_one_of_four_words():
    assert {c for r in ROWS[2:] if not r[0].startswith("**") for c in r[1:6]} == {"yes", "part", "no", "-"}


def test_the_accuracies_beside_the_predecessors_settings_are_those_of_the_record():
    rows = json.loads((ROOT / "benchmarks" / "results" / "predecessors.json").read_text())["rows"]
    said = ["{1:22}  ours {2} %, predecessor's settings {3} %: {4} points, n={5}".format(*r) for r in PAIRS]
    assert said == predecessors.table(rows).splitlines() and len(said) == 5
    rows[0]["ours"] += .01
    assert said != predecessors.table(rows).splitlines()
