"""Runs side by side: the table says what the folders say; bad folders are named in one line."""
import csv
import json
import re
import shutil
import subprocess
import sys
from statistics import mean, stdev
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny

from cifar_fastai.errors import InputError
from cifar_fastai.runs import seeds
from cifar_fastai.runs.compare import compare_runs, grouped, plot_confusion_difference, read_runs, table
from cifar_fastai.runs.one_run import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "A run; two made of it that say they are two seeds of a shorter recipe, with other predictions"
    tiny.register()
    out = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as m:      # no figures: what is compared stands in other files
        tiny.undrawn(m.setattr)
        long = tiny.recipe.but(lr=0.1, epochs=3, seed=1)
        train(long, tiny.learnable(), out / "long", quiet=True, device="cpu")
    for seed, accuracy in ((1, 0.5), (2, 0.75)):
        folder = shutil.copytree(out / "long", out / "seeds" / f"seed{seed}")
        _write(folder / "recipe.json", {"seed": seed, "epochs": 2, "lr": "find"})
        numbers = {"accuracy": accuracy, "cross_entropy": accuracy, "gradcam": [
            {"layer": "layer4", "method": "gradcam", "insertion": accuracy, "deletion": accuracy / 2}, {}]}
        _write(folder / "results.json", {"seed": seed, "epochs": 2} | numbers)
        rows = [f"{k},{a},{a if k % 4 < 4 * accuracy else 'ship'},0.9,0.1" for k, a in
                enumerate(tiny.CLASSES * 12)]
        (folder / "predictions.csv").write_text("\n".join(["index,true,predicted,confidence,loss", *rows]))
    return out


def _write(path, changes): path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def results(folder): return json.loads((folder / "results.json").read_text())


def test_seeds_of_a_recipe_stand_together_with_mean_and_sd(runs):
    found = [results(runs / "seeds" / f"seed{s}") for s in (1, 2)]
    row, alone = table(grouped(read_runs([runs / "seeds", runs / "long"]))).to_dict("records")
    assert row["recipe"] == "tiny (epochs=2, lr=find)" and row["n"] == 2
    for name, column, scale, form in (("accuracy", "accuracy", 100, ".2f"),
                                      ("cross_entropy", "cross-entropy", 1, ".4f"),
                                      ("accuracy_tta", "TTA", 100, ".2f")):
        values = [scale * r[name] for r in found]
        assert row[column] == f"{mean(values):{form}} ± {stdev(values):{form}}"
    assert (alone["recipe"], alone["n"], alone["epochs"]) == ("tiny (epochs=3, lr=0.1)", 1, 3)
    assert (row["maps"], row["insertion"], row["deletion"]) == (
        "gradcam at layer4", "0.625 ± 0.177", "0.312 ± 0.088")
    assert [alone[k] for k in ("maps", "insertion", "deletion")] == ["-"] * 3, "too short to be measured"
    assert alone["accuracy"] == f"{100 * results(runs / 'long')['accuracy']:.2f}"


def test_seeds_run_in_turn_and_leave_mean_sd_n_and_what_they_were_measured_with(tmp_path, monkeypatch):
    values, folders = {1: 0.5, 2: 0.75, 3: 0.7}, []

    def quick(recipe, data, out, **kwargs):
        folders.append(out.name)
        found = {"accuracy": values[recipe.seed], "seed": recipe.seed, "recipe": recipe.name, "data": data}
        return SimpleNamespace(results=found)
    monkeypatch.setattr(seeds, "train", quick)
    found = seeds.train_seeds(tiny.recipe, "digits", [1, 2, 3], tmp_path, quiet=True)
    assert json.loads(json.dumps(found)) == json.loads((tmp_path / "seeds.json").read_text())
    assert folders == ["seed1", "seed2", "seed3"]
    assert found["accuracy"] == {"mean": pytest.approx(0.65), "sd": pytest.approx(0.1322875656), "n": 3,
                                 "values": [0.5, 0.75, 0.7], "text": "65.00% ± 13.23 points, n=3"}
    assert found["seeds"] == [1, 2, 3] and found["settings"]["epochs"] == 2
    assert "seed" not in found["settings"]
    with pytest.raises(InputError, match="repeat"): seeds.train_seeds(tiny.recipe, "digits", [1, 1], tmp_path)


def test_a_run_named_twice_counts_once(runs):
    once = read_runs([runs / "seeds", runs / "seeds" / "seed1", str(runs / "seeds")])
    assert [r.folder.name for r in once] == ["seed1", "seed2"]


def test_the_same_seed_again_is_no_second_seed(runs, tmp_path):
    again = [shutil.copytree(runs / "long", tmp_path / name) for name in "ab"]
    rows = table(grouped(read_runs([*again, runs / "long"]))).to_dict("records")
    at = tmp_path.name, tmp_path.name, runs.name
    assert [(r["recipe"], r["n"]) for r in rows] == [
        (f"tiny, {parent}/{name}", 1) for parent, name in zip(at, ("a", "b", "long"))]
    seeds = shutil.copytree(runs / "seeds", tmp_path / "more-seeds")
    labels = [g.label for g in grouped(read_runs([runs / "seeds", seeds, runs / "long"]))]
    assert labels == ["tiny (epochs=2, lr=find), seeds/seed1", "tiny (epochs=2, lr=find), more-seeds/seed1",
                      "tiny (epochs=3, lr=0.1)"]


@pytest.mark.parametrize("changes, label", [({"processes": 4}, "processes=4"), ({"lr": .4}, "lr=0.4"),
                                            ({"precision": "bf16"}, "precision=bf16")])
def test_runs_of_other_steps_are_no_seeds_of_one_group(runs, tmp_path, changes, label):
    "recipe.json has the batch of a process and the rate before `--scale-lr`"
    other = shutil.copytree(runs / "long", tmp_path / "other")
    _write(other / "results.json", {"seed": 2} | changes)
    _write(other / "recipe.json", {"seed": 2})
    names = [g.label for g in grouped(read_runs([runs / "long", other]))]
    assert len(names) == 2 and names[1] == f"tiny ({label})"


def test_seconds_of_several_machines_are_not_averaged(runs, tmp_path):
    other = shutil.copytree(runs / "long", tmp_path / "other")
    _write(other / "results.json", {"seed": 2, "device": "another"})
    _write(other / "recipe.json", {"seed": 2})
    row, = table(grouped(read_runs([runs / "long", other]))).to_dict("records")
    assert (row["n"], row["seconds"]) == (2, "-")


def test_runs_with_a_limit_that_had_other_test_pictures_are_neither_seeds_nor_compared(runs, tmp_path):
    "With a limit each seed has a fingerprint of its own; the name of a folder says nothing of what is in it"
    pair = [shutil.copytree(runs / "long", tmp_path / name) for name in ("one", "two")]
    for k, folder in enumerate(pair):
        _write(folder / "recipe.json", {"limit": 40, "seed": k, "lr": .1})
        _write(folder / "results.json", {"seed": k})
    assert len(grouped(read_runs(pair))) == 1
    with (pair[1] / "predictions.csv").open("a") as file: file.write("48,cat,cat,0.9,0.1\n")
    found = compare_runs(pair, tmp_path / "out")
    assert len(found) == 2 and (tmp_path / "out" / "comparison.html").exists()


def test_the_difference_of_confusions_is_that_of_shares_averaged_over_seeds(runs):
    many, one = grouped(read_runs([runs / "seeds", runs / "long"]))
    shares = []
    for r in many.runs:
        counts = np.zeros((4, 4))
        with (r.folder / "predictions.csv").open() as f:
            for row in csv.DictReader(f):
                counts[r.classes.index(row["true"]), r.classes.index(row["predicted"])] += 1
        shares.append(counts / counts.sum(1, keepdims=True))
    assert many.shares() == pytest.approx(np.mean(shares, 0))
    assert many.shares().sum(1) == pytest.approx(np.ones(4))
    (image,) = plot_confusion_difference(many, [one]).axes[0].images
    assert np.asarray(image.get_array()) == pytest.approx(100 * (one.shares() - many.shares()))


def test_table_and_figures_are_left_in_a_folder(runs, tmp_path):
    made = compare_runs([runs / "seeds", runs / "long"], tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"comparison.csv", "curves.png", "accuracy.png",
                                                             "confusion.png", "comparison.html"}
    written = pd.read_csv(tmp_path / "out" / "comparison.csv", dtype=str)
    assert written.equals(made.astype(str)) and len(written) == 2


@pytest.mark.parametrize("spoil, said", [
    (lambda f: shutil.rmtree(f), "holds no run: there is no results.json"),
    (lambda f: (f / "results.json").unlink(), "did not end. Resume it, or leave it out"),
    (lambda f: (f / "results.json").write_text("{"), "results.json cannot be read as JSON"),
    (lambda f: (f / "results.json").write_text('{"accuracy": true}'), "results.json has no accuracy, loss"),
    (lambda f: (f / "history.csv").write_text("epoch\n1\n"), "is damaged: history.csv or predictions.csv"),
    (lambda f: (f / "predictions.csv").write_text("index,true,predicted\n0,cat,mouse\n"), "is damaged")])
def test_a_folder_that_is_no_whole_run_is_named_in_one_line(runs, tmp_path, spoil, said):
    bad = shutil.copytree(runs / "long", tmp_path / "bad")
    spoil(bad)
    with pytest.raises(InputError, match=said) as error: read_runs([runs / "seeds", bad])
    assert "bad" in str(error.value) and "\n" not in str(error.value)


def test_the_command_prints_the_table_and_ends_with_2_for_a_bad_folder(runs, tmp_path):
    call = lambda *args: subprocess.run([sys.executable, "-m", "recipes", "compare", *map(str, args)],
                                        capture_output=True, text=True)
    good = call(runs / "seeds", runs / "long", "--out", tmp_path / "out")
    assert good.returncode == 0 and re.search(r"tiny \(epochs=2, lr=find\) +2 ", good.stdout)
    bad = call(tmp_path / "nothing")
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and "holds no run" in bad.stderr
