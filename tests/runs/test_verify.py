"A run folder that is whole is called so; each thing that is wrong with one is named."
import csv
import json
import shutil
import subprocess
import sys

import albumentations as A
import pytest
import torch
from made import flip
from process import at, run, send, whole

from cifar_fastai import Recipe
from cifar_fastai.errors import InputError
from cifar_fastai.runs import one_run as runs, run_writer
from cifar_fastai.runs.verify import verify_run
from recipes.__main__ import main

pytestmark = pytest.mark.no_rounding


@pytest.fixture
def folder(tmp_path):
    "A copy of a whole run"
    return shutil.copytree(whole(), tmp_path / "run")


def test_a_whole_run_is_whole(folder, capsys):
    assert verify_run(folder) == ([], [])
    main(["verify", str(folder)])
    assert capsys.readouterr().out == f"{folder}: whole\n"


def test_transforms_that_only_their_own_module_can_make_are_no_fault(folder):
    made = Recipe(name="small", aug=[A.HorizontalFlip(p=.5)])
    edit(folder / "recipe.json", aug=made.as_dict()["aug"])
    unseal(folder)
    assert verify_run(folder) == ([], [])


def unseal(folder):
    "Let the sums vouch for what is there now: the forger's way"
    run_writer.seal(folder)


def edit(path, **fields): path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def other_weights(folder):
    from safetensors import safe_open
    from safetensors.torch import save_file
    path = folder / "weights.safetensors"
    with safe_open(path, "pt") as f:
        meta, tensors = f.metadata(), {k: f.get_tensor(k) for k in list(f.keys())}
    name = next(k for k, v in tensors.items() if v.is_floating_point())
    tensors[name] = tensors[name] + 1
    save_file(tensors, path, meta)
    unseal(folder)


def other_predictions(folder):
    "All of them right"
    path = folder / "predictions.csv"
    head, *rows = csv.reader(path.read_text().splitlines())
    true, said = head.index("true"), head.index("predicted")
    for row in rows: row[said] = row[true]
    path.write_text("\n".join(",".join(row) for row in (head, *rows)) + "\n")
    unseal(folder)


WRONG = {
    "a bit": (lambda f: flip(f / "weights.safetensors"),
              "weights.safetensors is not what was written (sha256)"),
    "a byte more": (lambda f: (f / "history.csv").open("a").write(" "), "history.csv is not what"),
    "a figure less": (lambda f: (f / "figures/gradcam.png").unlink(), "figures/gradcam.png is missing"),
    "a figure never made": (lambda f: ((f / "figures/confusion.png").unlink(), unseal(f)),
                            "figures/confusion.png is not in SHA256SUMS"),
    "a stranger": (lambda f: (f / "notes.txt").write_text("x"), "notes.txt was put there after the run"),
    "a leftover": (lambda f: (f / ".a.csv.99999999-01234567.tmp").write_text("x"),
                   "was left by a save that was cut short"),
    "a bad checkpoint": (lambda f: flip(f / "checkpoints/epoch-0003.pt"),
                         "checkpoints/epoch-0003.pt is not what was saved"),
    "no checkpoint": (lambda f: [p.unlink() for p in f.glob("checkpoints/epoch*")],
                      "there is no checkpoint"),
    "a better accuracy": (lambda f: (edit(f / "results.json", accuracy=0.99), unseal(f)),
                          "results.json says accuracy 0.99, predictions.csv gives"),
    "another seed": (lambda f: (edit(f / "results.json", seed=5), unseal(f)),
                     "results.json says seed 5, recipe.json 0"),
    "other predictions": (other_predictions, "results.json says mistakes"),
    "other weights": (other_weights, "weights.safetensors has other weights than epoch-0003.pt"),
    "an epoch less": (lambda f: ((f / "history.csv").write_text("epoch,loss\n1,2\n3,4\n"), unseal(f)),
                      "history.csv has epochs 1, 3, not 1 to 3"),
    "a list of elsewhere": (lambda f: (f / "SHA256SUMS").write_text(f"{'0' * 64}  ../../x\n"),
                            "which lies outside"),
    "a torn list": (lambda f: (f / "SHA256SUMS").write_text("0123  a"), "lines that sha256sum does not"),
    "a recipe of another kind": (lambda f: (f / "recipe.json").write_text("[]"), "recipe.json holds a list"),
    "an augmentation that is none": (lambda f: edit(f / "recipe.json", aug=5),
                                     "recipe small: aug=5. Give a policy"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(folder, case, capsys):
    spoil, says = WRONG[case]
    spoil(folder)
    wrong, _ = verify_run(folder)
    assert any(says in line for line in wrong), wrong
    with pytest.raises(SystemExit, match="^1$"): main(["verify", str(folder)])
    assert "wrong" in capsys.readouterr().out.splitlines()[-1]


def test_a_run_that_was_killed_is_told_from_a_whole_one(tmp_path):
    kill = send(9)
    run("--out", tmp_path / "run", prepare=lambda: at(runs, "write_training", kill))
    wrong, _ = verify_run(tmp_path / "run")
    assert wrong[0].startswith("the run did not end: no SHA256SUMS, nor results.json")
    assert wrong[0].endswith(f"Go on with --resume {tmp_path / 'run'}")


def test_other_versions_are_worth_a_note_and_no_fault(folder):
    begun = folder / "checkpoints/begun.json"
    edit(begun, versions={"torch": "1.0"})
    assert verify_run(folder) == ([], [f"made with torch 1.0, here is {torch.__version__.split('+')[0]}"])


def test_what_is_no_run_is_refused_with_2(tmp_path, capsys):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError): verify_run(path)
        with pytest.raises(SystemExit) as end: main(["verify", str(path)])
        assert end.value.code == 2 and str(path) in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"): main(["verify"])
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="no sha256sum here")
def test_sha256sum_reads_the_list(folder):
    command = ["sha256sum", "-c", "--quiet", "SHA256SUMS"]
    check = lambda: subprocess.run(command, cwd=folder, capture_output=True)
    assert check().returncode == 0
    flip(folder / "weights.safetensors")
    assert check().stdout == b"weights.safetensors: FAILED\n"


@pytest.mark.slow
def test_it_runs_as_a_module(folder):
    command = [sys.executable, "-m", "recipes", "verify", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{folder}: whole\n"), done.stderr
