"""One command trains, explains and leaves a folder in which everything agrees with everything."""
import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import recipe as all_of_it, tiny_net, write_folder

from cifar_fastai.data.sources import load_data
from cifar_fastai.errors import InputError
from cifar_fastai.machine import versions
from cifar_fastai.runs import from_recipe, report
from cifar_fastai.runs.one_run import find_lr, fit, learner_of, train
from cifar_fastai.runs.run_folder import load_recipe
from cifar_fastai.training.callbacks import fitting
from cifar_fastai.weights import load_weights

HELPERS = Path(__file__).parents[1] / "helpers"

FIGURES = {"batch", "classes", "lr_find", "lr_schedule", "curves", "top_losses", "misclassified", "gradcam",
           "gradcam_epochs", "confusion", "per_class", "calibration"}
recipe = all_of_it.but(limit=40)   # few enough to be wrong now and then
trained = recipe.but(bs=8, min_steps=4)   # what it comes to on 40 pictures
FILES = {"results.json", "history.csv", "recipe.json", "weights.safetensors", "predictions.csv", "log.txt"}


@pytest.fixture(scope="module")
def done(learnable, tmp_path_factory):
    "The tiny recipe on a folder of pictures, its output piped: (run folder, source, stdout, stderr)"
    root = tmp_path_factory.mktemp("a run")
    source = write_folder(learnable, root / "data ü")
    command = [sys.executable, HELPERS / "tiny.py", "--data", source, "--limit", "40"]
    command += ["--out", root / "run"]
    env = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    end = subprocess.run(command, capture_output=True, text=True, timeout=280, env=env, cwd=root)
    assert end.returncode == 0, end.stderr
    assert {p.name for p in root.iterdir()} == {"data ü", "run"}, "nothing beside the run folder"
    return root / "run", source, end.stdout, end.stderr


@pytest.fixture(scope="module")
def results(done): return json.loads((done[0] / "results.json").read_text())


@pytest.fixture(scope="module")
def predictions(done):
    with (done[0] / "predictions.csv").open() as file: return list(csv.DictReader(file))


# files

def test_every_file_is_there_and_no_other(done):
    found = {p.relative_to(done[0]).as_posix() for p in done[0].rglob("*") if p.is_file()}
    figures = {f"figures/{n}.png" for n in FIGURES}
    assert found >= FILES | figures
    others = {"figures", "tensorboard", "checkpoints", "SHA256SUMS", "model.txt", "report.html"}
    assert {f.split("/")[0] for f in found} - FILES == others
    assert not [f for f in found if f.endswith(".tmp") or "lock" in f]


def test_figures_are_pictures_fit_for_a_page(done):
    for path in (done[0] / "figures").iterdir():
        with Image.open(path) as im:
            x = np.asarray(im.convert("RGB"), float)
            assert min(im.size) > 150 and max(im.size) < 4000 and x.std() > 5, f"{path.name} is blank"


def test_the_output_says_what_was_done_and_has_neither_bars_nor_warnings(done):
    folder, source, out, err = done
    assert err == "" and "\r" not in out and "\x1b" not in out
    starts = [line.split()[0] for line in out.splitlines() if line.strip()]
    for word in ("recipe", "data", "device", "net", "rate", "epoch", "1/2", "2/2", "test", "took", "folder"):
        assert word in starts, word
    assert out.splitlines()[-1] == f"folder      {folder}"
    assert "from the training loss alone" in out and "valley" in out and "fp32" in out
    assert "            the peak is 0.5 × where it is lowest" in out, "two steps of warm-up"


def test_the_log_file_has_the_same_lines_with_the_time(done):
    out = [line for line in done[2].splitlines() if not line.startswith("ImageData")]
    logged = [line[20:] for line in (done[0] / "log.txt").read_text().splitlines()]
    assert [line for line in out if line not in logged] == []


# numbers

def test_results_name_all_that_a_reader_needs(results, done):
    read = load_data(done[1], size=16).limit(40)
    assert results["versions"] == versions() and results["seed"] == 0 and results["epochs"] == 2
    assert results["data"] == str(done[1]) and results["data_fingerprint"] == read.fingerprint
    assert results["parameters"] == sum(p.numel() for p in tiny_net(4).parameters())
    assert (results["judged_on"], results["valid"], results["precision"]) == ("test set", "test", "fp32")
    assert (results["training_pictures"], results["pictures"], results["bs"]) == (40, 48, 8)
    assert 0 < results["lr"] < 10 and results["seconds"] > 0 and len(results["epoch_seconds"]) == 2
    assert results["recipe_fingerprint"] == trained.fingerprint() and results["recipe"] == "tiny"


def test_results_are_what_the_predictions_add_up_to(results, predictions):
    right = [row["true"] == row["predicted"] for row in predictions]
    assert len(predictions) == 48 and [int(row["index"]) for row in predictions] == list(range(48))
    assert np.mean(right) == pytest.approx(results["accuracy"]) and right.count(False) == results["mistakes"]
    assert np.mean([float(r["loss"]) for r in predictions]) == pytest.approx(results["loss"], rel=1e-5)
    for name, accuracy in results["accuracy_per_class"].items():
        of_class = [r for r, row in zip(right, predictions) if row["true"] == name]
        assert len(of_class) == 12 and np.mean(of_class) == pytest.approx(accuracy)
    assert 0 < results["mistakes"] < 36, "some are right and some are wrong"
    assert 0 <= results["accuracy_tta"] <= 1 and all(.25 <= float(r["confidence"]) <= 1 for r in predictions)


def test_history_has_a_row_an_epoch_that_ends_at_the_results(done, results):
    with (done[0] / "history.csv").open() as file: rows = list(csv.DictReader(file))
    assert [int(r["epoch"]) for r in rows] == [1, 2]
    assert float(rows[1]["accuracy"]) == pytest.approx(results["accuracy"])
    assert float(rows[1]["valid_loss"]) == pytest.approx(results["loss"], rel=1e-4)


def test_the_recipe_that_was_run_is_written_down(done):
    assert json.loads((done[0] / "recipe.json").read_text()) == json.loads(json.dumps(trained.as_dict()))


def test_the_weights_predict_what_was_predicted(done, predictions, tiny_registered):
    net, about = load_weights(done[0] / "weights.safetensors")
    data = load_data(done[1], size=16).limit(40)
    assert (about.classes, about.size, about.mean) == (data.classes, 16, data.mean) and not net.training
    x = torch.from_numpy(np.array(data.x_test)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (about.mean, about.std))
    with torch.no_grad(): probs = net((x - mean) / std).softmax(1)
    said = [about.classes.index(row["predicted"]) for row in predictions]
    assert torch.allclose(probs[range(48), said], probs.amax(1), atol=1e-4), "of two alike either may be said"
    assert probs.amax(1).tolist() == pytest.approx([float(r["confidence"]) for r in predictions], abs=1e-4)
    assert [about.classes[k] for k in data.y_test] == [row["true"] for row in predictions]


def test_tensorboard_shows_scalars_and_pictures(done, results):
    events = EventAccumulator(str(done[0] / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    scalars = {t: [e.value for e in events.Scalars(t)] for t in tags["scalars"]}
    assert {t: len(v) for t, v in scalars.items() if not t.startswith("range")} == {
        "train/loss": 10, "train/lr": 10, "train/momentum": 10, "epoch/train_loss": 2, "epoch/valid_loss": 2,
        "epoch/accuracy": 2}
    assert scalars["epoch/accuracy"][-1] == pytest.approx(results["accuracy"])
    assert max(scalars["train/lr"]) <= results["lr"] * 1.001 and tags["graph"]
    assert set(tags["images"]) >= {"batch", "misclassified", "gradcam"}


# calling it

def test_a_finished_run_is_resumed_by_explaining_it_again(done, results, undrawn):
    weights = (done[0] / "weights.safetensors").read_bytes()
    run = train(recipe, done[1], done[0], resume=True, device="cpu", quiet=True)
    assert run.accuracy == results["accuracy"] and run.folder == done[0]
    assert (done[0] / "weights.safetensors").read_bytes() == weights
    assert json.loads((done[0] / "results.json").read_text())["lr"] == results["lr"], "no second range test"
    assert repr(run) == f"Run({done[0]}: accuracy {run.accuracy:.2%})"
    assert len(run.interp.misclassified()) == results["mistakes"]
    assert run.results["resumed"] and run.results["epoch_seconds"] == results["epoch_seconds"]
    assert run.results["seconds"] > sum(results["epoch_seconds"]), "training counts, whoever did it"


@pytest.mark.parametrize("changes", [
    {}, {"schedule": {"name": "step", "step_every": 1}}, {"regularise": {"clip_norm": .5, "mixup": .4}},
    {"lr": .05, "opt": "adamw", "schedule": {"peak_epoch": 1.0, "anneal": "cos", "moms": (.95, .85, .95)}}],
    ids=str)
def test_the_learner_of_a_recipe_ends_by_hand_in_its_runs_weights(undrawn, learnable, tmp_path, changes):
    changed = recipe.but(**changes)
    learn = learner_of(changed, learnable, device="cpu")
    learn.logger = lambda *_: None
    fit(changed, learn, find_lr(changed, learn).chosen)
    run = train(changed, learnable, tmp_path / "run", device="cpu", quiet=True)
    ours, runs_own = learn.model.state_dict(), run.learn.model.state_dict()
    assert all(torch.equal(v, runs_own[k]) for k, v in ours.items())
    assert learn.recipe == run.learn.recipe and learn.recipe.bs == 8, "32 would leave one step"


class StepCount(Callback):
    "Steps that a fit took, not a range test"
    def before_fit(self): self.run, self.steps = fitting(self.learn), 0
    def after_step(self): self.steps += 1


@pytest.mark.parametrize("listed", [False, True])
def test_callbacks_given_to_train_are_those_of_its_fit(undrawn, learnable, tmp_path, listed):
    cb = StepCount()
    run = train(recipe, learnable, tmp_path / "run", device="cpu", quiet=True, cbs=[cb] if listed else cb)
    assert cb.steps == 10 and cb not in run.learn.cbs, "two epochs of five steps; then it is taken off"


def test_the_rate_is_found_under_the_recipes_own_clipping(undrawn, learnable, tmp_path):
    curves = {}
    for limit in (None, 1e-4):
        clipped = recipe.but(regularise={"clip_value": limit}, limit=None, epochs=1, lr="find")
        train(clipped, learnable, tmp_path / str(limit), device="cpu", quiet=True)
        found = json.loads((tmp_path / str(limit) / "checkpoints" / "lr_find.json").read_text())
        curves[limit] = np.array(found["losses"])[:40]
    free, held = curves.values()
    assert free[0] == held[0], "the same first batch"
    assert np.ptp(held[20:]) < np.ptp(free[20:]), "steps of a ten-thousandth hardly move the net"


def test_the_maps_that_a_run_shows_are_measured_said_and_kept(undrawn, learnable, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "affordable", lambda trained, of, maps: 24)
    changes = {"epochs": 1, "lr": .1, "explain.layer": "layer1"}
    run = train(all_of_it.but(**changes), learnable, tmp_path / "a", device="cpu", quiet=True)
    found = json.loads((run.folder / "results.json").read_text())["gradcam"]
    assert (found[0]["layer"], found[0]["method"], found[0]["pictures"]) == ("layer1", "gradcam", 24)
    again, = run.interp.gradcam_evidence(24, [("layer1", "gradcam")])
    assert found[0]["insertion"] == pytest.approx(again.insertion)
    assert found[0]["better_than_noise"] == again.better
    said, = [x for x in (run.folder / "log.txt").read_text().splitlines() if "Grad-CAM" in x]
    assert ("layer1: insertion" if again.better else "layer1 is not better than noise on this net") in said


def test_a_run_too_short_to_measure_says_nothing_of_its_maps(results, done):
    assert results["gradcam"] == [] and "Grad-CAM" not in done[2]


def test_a_folder_that_holds_a_run_is_not_written_over(done):
    before = (done[0] / "results.json").read_bytes()
    with pytest.raises(InputError, match="already holds a run. Resume it with --resume, or give another"):
        train(recipe, done[1], done[0])
    assert (done[0] / "results.json").read_bytes() == before


def test_without_a_folder_it_is_named_by_recipe_time_and_seed(undrawn, learnable, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train(recipe.but(epochs=1, lr=.1, seed=3), learnable, device="cpu", quiet=True)
    assert run.folder.parts[:2] == ("runs", "tiny") and run.folder.name.endswith("-seed3")
    assert run.results["lr"] == .1 and run.results["data"] == "learnable"


def test_with_a_holdout_the_test_set_is_only_seen_at_the_end(undrawn, learnable, tmp_path):
    dark = replace(learnable, x_test=np.zeros_like(learnable.x_test))     # a test set that would be noticed
    changed = all_of_it.but(lr=.1, valid="holdout", epochs=3)
    run = train(changed, dark, tmp_path / "run", device="cpu", quiet=True)
    with (tmp_path / "run/history.csv").open() as file: rows = list(csv.DictReader(file))
    assert float(rows[-1]["accuracy"]) > .4, "the holdout is watched"
    assert run.accuracy == .25, "the test set, of black pictures here, judges"
    assert run.results["training_pictures"] == 128 and run.results["pictures"] == 48
    assert run.results["valid"] == "holdout" and len(run.interp) == 48


@pytest.mark.parametrize("n, expected", [(50_000, 512), (160, 32), (1437, 256), (40, 8), (9, 2), (1, 2)])
def test_small_data_gets_batches_small_enough_for_some_steps(n, expected):
    assert from_recipe._batch_size(recipe.but(bs=512, min_steps=5), n) == expected


def test_gradients_are_accumulated_over_the_batches_that_the_data_allows(learnable, tmp_path, undrawn):
    "160 pictures allow batches of 8: two of them make a step, also where the run's recipe is trained again"
    asked = all_of_it.but(bs=512, min_steps=16, epochs=1, lr=.05, opt={"accumulate": 2}, aug=None)
    first = train(asked, learnable, tmp_path / "a", quiet=True, device="cpu")
    written = load_recipe(first.folder / "recipe.json")
    again = train(written, learnable, tmp_path / "b", quiet=True, device="cpu")
    assert first.learn.dls.train.bs == again.learn.dls.train.bs == 8
    assert all(torch.equal(v, again.learn.model.state_dict()[k])
               for k, v in first.learn.model.state_dict().items())
    whole = train(asked.but(bs=8, opt={"accumulate": 1}), learnable, tmp_path / "c", quiet=True, device="cpu")
    assert not torch.equal(whole.learn.model.fc.weight, first.learn.model.fc.weight)
