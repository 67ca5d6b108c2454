"""Every recipe is valid, listed, and trains with its own options."""
import json
import re
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import tiny
from test_models import COUNTS

from cifar_fastai import Recipe, load_data
from cifar_fastai.errors import InputError
from cifar_fastai.parts import Plateau
from cifar_fastai.runs.one_run import train
from recipes.__main__ import main
from recipes.listing import listing, measured, recipes, schedule

ALL = {r.name: r for found in recipes().values() for r in found}
SMALL = {"model": "tiny", "explain.layer": "layer3", "min_steps": 16, "bs": 64, "precision": "fp32",
         "limit": 400, "explain.gallery": 5}
DRAWN = "resnet18_20ep"     # the one whose figures are drawn: it takes most of the time
OF_ALL = {"accuracy", "epochs", "loss", "lr", "parameters", "recipe_fingerprint", "seconds", "versions"}
FIGURES = {"batch", "classes", "lr_find", "lr_schedule", "curves", "top_losses", "misclassified", "gradcam",
           "gradcam_layers", "gradcam_epochs", "confusion", "per_class", "calibration"}


def test_there_is_a_recipe_for_each_predecessor_and_a_deeper_one():
    assert set(ALL) >= {"resnet18_20ep", "resnet18_adam_20ep", "custom_resnet_l1_24ep", "resnet34_20ep",
                        "resnet18_plateau_50ep", "resnet18_jitter_20ep", "custom_resnet_24ep",
                        "custom_resnet_gn_24ep"}


def test_settings_are_those_of_the_predecessors_as_far_as_they_were_sound():
    a, b, c, d, e = (ALL[n] for n in (
        "resnet18_adam_20ep", "custom_resnet_l1_24ep", "resnet18_plateau_50ep", "resnet18_jitter_20ep",
        "custom_resnet_24ep"))
    assert (a.opt.name, a.epochs, a.bs, a.opt.wd, a.aug.cutout) == ("adamw", 20, 512, 1e-2, 16)
    s = b.schedule
    assert (b.regularise.l1, s.div, s.div_final, s.anneal, b.aug.rotate) == (5e-4, 10, 10, "linear", 5)
    assert (c.opt.mom, c.schedule, c.bs) == (.95, Plateau(patience=3, cooldown=1), 128)
    assert (c.valid, c.lr.rule) == ("holdout", "minimum"), "fastai's minimum is a tenth of it"
    assert (d.aug.jitter, d.aug.grey_p, d.warm_up) == ((0, .1, .2, .1), .2, 5)
    assert (e.regularise.clip_value, e.aug.holes, e.aug.cutout_p, e.aug.flip) == (.1, (1, 3), .8, .5)
    assert e.warm_up == pytest.approx(5) and ALL["custom_resnet_gn_24ep"].build.norm == "gn"
    assert not any(getattr(r.lr, "on", "") == "test" or (r.keep.name == "best" and r.valid == "test")
                   for r in ALL.values())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    tiny.register()
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("name", sorted(set(ALL) - {"resnet34_20ep"}))
def test_a_recipe_trains_on_digits_with_its_own_options(name, runs, monkeypatch):
    if name != DRAWN: tiny.undrawn(monkeypatch.setattr)
    given = {"lr": 0.05} if ALL[name].build.norm == "gn" else {}   # it hardly moves in a range test
    r = ALL[name].but(**SMALL, **given, epochs=2)
    run = train(r, "digits", runs / name, quiet=True, device="cpu")
    results = json.loads((run.folder / "results.json").read_text())
    history = pd.read_csv(run.folder / "history.csv")
    assert set(results) >= OF_ALL and results["epochs"] == len(history) == 2
    figures = {p.stem for p in (run.folder / "figures").iterdir()}
    assert figures == (FIGURES if name == DRAWN else {"gradcam_epochs"})
    assert history["train_loss"].iloc[1] < history["train_loss"].iloc[0]
    _options_at_work(r, run)
    log, model = ((run.folder / f).read_text() for f in ("log.txt", "model.txt"))
    assert f"schedule={type(r.schedule).__name__}(" in log and "Unused: none" in model


def test_the_recipe_in_a_runs_folder_is_trained_again_to_the_same_weights(runs, tmp_path, monkeypatch):
    tiny.undrawn(monkeypatch.setattr)
    r = ALL["custom_resnet_24ep"].but(epochs=2, regularise={"mixup": .4}, name="mine", **SMALL)
    run = train(r, "digits", tmp_path / "first", quiet=True, device="cpu")
    flags = ["--device", "cpu", "--quiet", "--out"]        # its pictures are those of the run
    main(["train", str(run.folder), *flags, str(tmp_path / "again")])
    main(["train", str(run.folder / "recipe.json"), "--seed", "1", *flags, str(tmp_path / "other")])
    first, again, other = ((tmp_path / f / "weights.safetensors").read_bytes()
                           for f in ("first", "again", "other"))
    assert first == again and first != other


@pytest.mark.parametrize("argv, said", [
    (["train"], "takes a recipe's file first"), (["train", "--seed"], "takes a recipe's file first"),
    (["train", "nowhere.json"], "nowhere.json cannot be read as JSON .No such file"),
    (["train", "resnet18_20ep"], "is a recipe of this book. Run python -m recipes.resnet18_20ep"),
    (["resnet34_20ep"], "is a recipe of this book. Run python -m recipes.resnet34_20ep"),
    (["trian"], "unknown command of recipes 'trian'. Did you mean train")])
def test_a_wrong_command_is_one_line(argv, said, capsys):
    with pytest.raises(SystemExit, match="2"): main(argv)
    err = capsys.readouterr().err
    assert re.search(said, err) and err.count("\n") == 1


def _options_at_work(r, run):
    "What the recipe says is what the rates, the optimiser and the net show"
    lrs, moms, rate = run.learn.recorder.hps["lr"], run.learn.recorder.hps["mom"], run.results["lr"]
    s = r.schedule
    if s.name == "one_cycle":
        peak = s.pct_start * len(lrs)
        assert lrs[0] == pytest.approx(rate / s.div) and max(lrs) <= rate * (1 + 1e-6)
        assert lrs.index(max(lrs)) == pytest.approx(peak, abs=1)
        assert lrs[-1] < lrs[0] * 1.4 if s.div == s.div_final else lrs[-1] < rate / 5
    else: assert all(lr == pytest.approx(rate) for lr in lrs)
    if getattr(s, "moms", None): assert min(moms) == pytest.approx(.85, abs=.01)
    else: assert set(moms) == {r.opt.mom}
    assert ("GroupNorm" in (run.folder / "model.txt").read_text()) == (r.build.norm == "gn")
    assert ("epoch_of_best" in run.results) == (r.keep.name == "best")


ONE_OF_EACH_NET = {(r.model, r.build.norm): r.name for r in reversed(ALL.values())}.values()


@pytest.mark.slow
@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("name", sorted(ONE_OF_EACH_NET))
def test_each_net_of_the_recipes_trains_at_its_real_size(name, tmp_path):
    r, digits = ALL[name].but(epochs=1, limit=128, lr={"num_it": 60}), load_data("digits")
    few = replace(digits, x_test=digits.x_test[:60], y_test=digits.y_test[:60])
    run = train(r, few, tmp_path / "run", quiet=True, device="cpu")
    assert len(run.interp) == 60 and run.results["parameters"] == COUNTS[ALL[name].model]
    assert (run.folder / "weights.safetensors").stat().st_size > 4 * run.results["parameters"]


def test_the_list_names_every_recipe_and_invents_no_figure():
    blocks = dict(block.split("\n", 1) for block in listing().split("\n\n")[:-1])
    assert {name.split()[0] for name in blocks} == set(recipes()) and "custom_resnet_24ep --norm gn" in blocks
    assert "custom_resnet, 24 epochs, sgd" in blocks["custom_resnet_24ep"]
    assert "resnet18, 50 epochs, sgd, plateau (holdout loss)" in blocks["resnet18_plateau_50ep"]
    assert "jitter=(0.0, 0.1, 0.2, 0.1)" in blocks["resnet18_jitter_20ep"]
    assert max(map(len, listing().splitlines())) <= 106, "fits a terminal"
    assert schedule(ALL["resnet18_adam_20ep"]) == "one_cycle, linear, peak at epoch 5"
    for r in ALL.values(): assert re.fullmatch(r"(\d.* n=\d+ \(\w+\)(; )?)*(nobody has run .*)?", measured(r))


def test_a_figure_is_shown_while_it_was_measured_with_these_very_values(tmp_path):
    r = ALL["resnet18_20ep"]
    settings = {k: v for k, v in json.loads(json.dumps(r.as_dict())).items() if k != "seed"}
    found = {"recipe": r.name, "data": "cifar10", "settings": settings, "accuracy": {"text": "94.00% ± 0.10"}}
    (tmp_path / "a.json").write_text(json.dumps(found))
    (tmp_path / "rows.json").write_text('{"rows": []}')
    nobody = "nobody has run it on all of CIFAR-10"
    assert measured(r, tmp_path) == "94.00% ± 0.10 (cifar10)"
    assert measured(r.but(name="mine", seed=5), tmp_path) == measured(r, tmp_path), "neither changes a result"
    assert measured(r.but(opt={"wd": 1e-3}), tmp_path) == measured(ALL["resnet34_20ep"], tmp_path) == nobody
    row = {"judged_on": "test", "data": "jpeg"}
    of = lambda seed: {"settings": json.loads(json.dumps(r.but(seed=seed).as_dict()))}
    lines = [row | {"accuracy": .5} | of(3), row | {"accuracy": .9} | of(3), row | {"accuracy": .92} | of(4),
             row | {"accuracy": .1, "judged_on": "holdout"} | of(5)]    # the later row of a seed counts
    (tmp_path / "accuracy.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert measured(r, tmp_path) == "94.00% ± 0.10 (cifar10); 91.00% ± 1.41 points, n=2 (jpeg)"
    assert measured(ALL["resnet34_20ep"], tmp_path) == nobody
    (tmp_path / "a.json").write_text(json.dumps(found | {"data": "digits"}))
    (tmp_path / "accuracy.jsonl").unlink()
    assert measured(r, tmp_path) == f"94.00% ± 0.10 (digits); {nobody}"
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(InputError, match="broken.jsonl is no JSON"): measured(r, tmp_path)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match="broken.json is no JSON"): measured(r, tmp_path)


def test_listing_imports_no_fastai():
    code = "import recipes.__main__ as m, sys; m.main([]); print(*{'fastai', 'torch'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.startswith("cpu_15min\n") and said.endswith("\n\n"), "fastai or torch was imported"


@pytest.mark.parametrize("wrong, said", [
    ({"schedule": "plateau"}, "schedule=Plateau.*. Give valid=\"holdout\" .* the test set must not choose"),
    ({"keep": "best"}, "name='best'.* Give valid"),
    ({"lr": {"on": "holdout"}}, 'Give valid="holdout"'),
    ({"regularise": {"mixup": .4, "cutmix": 1.}}, "mixup or cutmix, not both"),
    ({"loss": "nll"}, "smoothing=0.1. Give 0"),
    ({"schedule": {"peak_epoch": 20}}, "Give a peak within the 20 epochs"),
    ({"schedule": {"pct_start": 1.}}, "pct_start=1.0. Give a share between 0 and 1"),
    ({"schedule": {"moms": (.9,)}}, "moms=\\(0.9,\\). Give the momentum at start, peak and end"),
    ({"lr": {"start_lr": 1., "end_lr": .1}}, "end_lr=0.1. Give the last rate, above start_lr"),
    ({"regularise": {"clip_value": 0.}}, "clip_value=0.0. Give a number above 0"),
    ({"schedule": {"name": "step", "drop": 1.}}, "drop=1.0"),
    ({"schedule": "flatcos"}, "unknown schedule of recipe x: 'flatcos'. Did you mean flat_cos")])
def test_values_that_make_no_sense_are_refused_when_the_recipe_is_made(wrong, said):
    with pytest.raises(InputError, match=said): Recipe(name="x", **wrong)
    watching = Recipe(name="x", schedule="plateau", keep="best", lr={"on": "holdout"}, valid="holdout")
    assert watching.schedule.patience == 3


def test_settings_print_every_field_and_the_policys_own():
    said = Recipe(name="x").settings()
    assert "aug=pad_crop_flip_cutout(pad=4, flip=0.5, cutout=8)" in said.replace("\n", " ")
    assert all(f"{k}=" in said for k in vars(Recipe(name="x"))) and max(map(len, said.splitlines())) <= 106
