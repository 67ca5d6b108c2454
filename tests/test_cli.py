"""The command line: every flag arrives, every wrong input is one line on stderr and costs seconds."""
import inspect
import os
import signal
import subprocess
import sys

import pytest
from made import picture_folder
from process import at, recipe as small, run, send

from cifar_fastai import cli
from cifar_fastai.checkpoints.stop_on_signal import Stopped
from cifar_fastai.errors import InputError, report_errors
from cifar_fastai.files import write_json
from cifar_fastai.loaders.workers import LoaderError
from cifar_fastai.parts import LRFind
from cifar_fastai.recipe import Recipe, flat
from cifar_fastai.runs import one_run as runs

pytestmark = pytest.mark.no_rounding

recipe = Recipe(name="mine")
CLI = [sys.executable, "-m", "recipes.resnet18_20ep"]


# flags

@pytest.fixture
def trained(monkeypatch):
    "What `train` was called with"
    calls = []
    monkeypatch.setattr("cifar_fastai.runs.train", lambda *args, **kwargs: calls.append((args, kwargs)))
    return calls


FLAGS = {"--epochs": ("3", "epochs", 3), "--bs": ("64", "bs", 64), "--lr": ("0.25", "lr", .25),
         "--lr-its": ("50", "lr.num_it", 50), "--norm": ("gn", "build.norm", "gn"),
         "--accumulate": ("2", "opt.accumulate", 2),
         "--seed": ("7", "seed", 7),
         "--limit": ("100", "limit", 100), "--size": ("16", "size", 16),
         "--valid": ("holdout", "valid", "holdout"),
         "--precision": ("bf16", "precision", "bf16"), "--cam-layer": ("layer4", "explain.layer", "layer4"),
         "--gallery": ("5", "explain.gallery", 5)}
OTHERS = {"--unverified": ((), "unverified", True), "--workers": (("2",), "workers", 2),
          "--device": (("cpu",), "device", "cpu"), "--quiet": ((), "quiet", True),
          "--checkpoint-minutes": (("1.5",), "checkpoint_minutes", 1.5),
          "--data-split": (("0.1",), "split", .1), "--scale-lr": (("sqrt",), "scale_lr", "sqrt"),
          "--compile": ((), "compiled", True)}


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_changes_its_field_of_the_recipe_and_no_other(trained, flag):
    given, field, value = FLAGS[flag]
    cli.main(recipe, ["--data", "digits", flag, given])
    (found, source, out), kwargs = trained[0]
    now, before = flat(found.as_dict()), flat(recipe.as_dict())
    changed = [k for k in now if now[k] != before.get(k)]
    assert changed == ([field, "min_steps"] if field == "bs" else [field])    # a given bs must hold
    assert now[field] == value and (source, out, kwargs["resume"]) == ("digits", None, False)


@pytest.mark.parametrize("flag", OTHERS)
def test_the_other_flags_arrive_where_they_are_used(trained, flag):
    given, name, value = OTHERS[flag]
    cli.main(recipe, ["--data", "digits", "--out", "here", flag, *given])
    args, kwargs = trained[0]
    assert args == (recipe, "digits", "here") and kwargs[name] == value
    assert {k: v for k, v in kwargs.items() if k != name and v} == {}


def test_a_run_that_is_trained_again_on_other_data_forgets_what_was_said_of_its_own(trained):
    before = {"data": "pets", "data_split": .1, "unverified": True, "scale_lr": "sqrt"}
    cli.main(recipe, ["--data", "digits"], before=before)
    cli.main(recipe, ["--epochs", "3"], before=before | {"data": "digits"})
    cli.main(recipe, ["--lr", "find"], before=before | {"data": "digits"})
    said = [(k["split"], k["unverified"], k["scale_lr"]) for _, k in trained]
    assert said == [(None, False, "sqrt"), (.1, True, "sqrt"), (.1, True, None)]


def test_every_flag_is_tried_here():
    tried = {*FLAGS, *OTHERS, "--data", "--out", "--seeds", "--resume", "--debug", "--summary"}
    assert {"--" + name.replace("_", "-") for name in inspect.signature(cli.flags).parameters} == tried


def test_seeds_are_run_one_after_the_other(monkeypatch):
    calls = []
    monkeypatch.setattr("cifar_fastai.runs.train_seeds",
                        lambda *args, **kwargs: calls.append((args, kwargs["quiet"])))
    cli.main(recipe, ["--data", "digits", "--seeds", "3", "1", "--quiet"])
    assert calls == [((recipe, "digits", [3, 1], None), True)]


def test_seeds_that_are_resumed_remember_where_their_pictures_lie(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr("cifar_fastai.runs.train_seeds", lambda *args, **kwargs: calls.append((args, kwargs)))
    begun = {"data": "digits", "data_split": .3, "scale_lr": "sqrt", "compiled": True}
    write_json(tmp_path / "seed3/checkpoints/begun.json", begun)
    cli.main(recipe, ["--seeds", "4", "3", "1", "--resume", str(tmp_path), "--data-split", ".4"])
    (args, kwargs), = calls
    assert args == (recipe, "digits", [4, 3, 1], str(tmp_path)) and kwargs["resume"]
    assert (kwargs["split"], kwargs["scale_lr"], kwargs["compiled"]) == (.4, "sqrt", True)


def test_lr_find_can_be_asked_for(trained):
    cli.main(recipe.but(lr=.1), ["--data", "digits", "--lr", "find"])
    assert trained[0][0][0].lr == LRFind()


def test_the_settings_and_the_net_can_be_printed_instead(trained, capsys):
    cli.main(recipe, ["--summary", "--epochs", "3"])
    out = capsys.readouterr().out
    assert not trained and "epochs=3" in out and "11,173,962" in out


# help

def test_help_names_every_flag_with_its_meaning_and_imports_nothing_heavy():
    code = ("import sys, runpy; sys.argv = ['x', '--help']\n"
            "try: runpy.run_module('recipes.resnet18_20ep', run_name='__main__')\n"
            "except SystemExit as e: status = e.code\n"
            "print('HEAVY', *{'torch', 'fastai', 'albumentations'} & set(sys.modules), status or 0)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "HEAVY 0" and done.stderr == ""
    for name in inspect.signature(cli.flags).parameters: assert f"--{name.replace('_', '-')} " in done.stdout
    assert "passes over the training pictures" in done.stdout and "resnet18, 20 epochs" in done.stdout


# wrong inputs, refused before fastai is imported

@pytest.mark.parametrize("flags, says", [
    (["--epochs", "0"], "recipe resnet18_20ep: epochs=0. Give 1 or more."),
    (["--epoch", "3"], "unknown flag '--epoch'. Did you mean --epochs"),
    (["--epochs", "many"], "argument --epochs: invalid int value: 'many'. See --help."),
    (["--data", "nowhere/at all"], "data nowhere/at all is not there. Give a folder, an archive or one of"),
    (["--data", "digit"], "unknown data source or path 'digit'. Did you mean digits")])
def test_a_wrong_input_is_one_line_on_stderr_and_leaves_nothing(tmp_path, flags, says):
    env = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run([*CLI, *flags], capture_output=True, text=True, timeout=60, cwd=tmp_path, env=env)
    assert done.returncode == 2 and done.stdout == "" and not list(tmp_path.iterdir())
    line, = done.stderr.splitlines()
    assert line.startswith(f"cifar_fastai: {says}")


@pytest.mark.parametrize("module, argv, spared", [
    ("recipes.resnet18_20ep", ["--data", "nowhere"], "fastai torch pandas"),
    ("recipes.resnet18_20ep", ["--epochs", "0"], "fastai torch pandas"),
    ("recipes", ["train", "nowhere.json"], "fastai"), ("recipes", ["verify", "nowhere"], "fastai"),
    ("recipes", ["compare", "nowhere"], "fastai torch")])
def test_it_is_refused_before_what_takes_seconds_is_imported(module, argv, spared):
    code = ("import sys, runpy\n"
            f"sys.argv = ['x', *{argv!r}]\n"
            f"try: runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
            f"except SystemExit as end: print(end.code, *{{*{spared.split()!r}}} & {{*sys.modules}})")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1:] == ["2"], done.stdout + done.stderr


# wrong inputs that only the data or the net can tell

def nine_of_ten(root):
    picture_folder(root, classes=[f"class{k}" for k in range(10)], n=2)
    for p in (root / "train/class3").iterdir(): p.unlink()
    (root / "train/class3").rmdir()
    return "9 classes in train/ but 10 in test/", "class3"


def empty(root):
    root.mkdir()
    return "has no train/ and test/", "nothing"


def unreadable(root):
    picture_folder(root)
    (root / "train/cat/2.png").write_bytes(b"no picture")
    return "cat/2.png", "no picture of a known format"


def truncated(root):
    picture_folder(root)
    path = root / "test/dog/0.png"
    path.write_bytes(path.read_bytes()[:900])
    return "dog/0.png", "Remove or replace it"


def refused(tmp_path, *flags, **kwargs) -> str:
    "The line on stderr of a run that must be refused before it trains, leaving no folder"
    said = tmp_path / "stderr"
    def prepare():
        at(runs, "fit", send(signal.SIGKILL)), at(runs, "find_lr", send(signal.SIGKILL))
        sys.stderr = said.open("w", 1)
    status, shown = run("--out", tmp_path / "run", *flags, prepare=prepare, **kwargs)
    line, = said.read_text().splitlines()
    assert status == 2 and line.startswith("cifar_fastai: ") and "Traceback" not in shown
    assert not (tmp_path / "run").exists()
    return line


@pytest.mark.parametrize("make", [nine_of_ten, empty, unreadable, truncated])
def test_a_folder_that_will_not_do_is_refused_by_name(tmp_path, make):
    says = make(tmp_path / "data ü")
    line = refused(tmp_path, data=str(tmp_path / "data ü"))
    assert all(s in line for s in says), line


@pytest.mark.parametrize("kwargs, says", [
    ({"model": "resnet81"}, "unknown model 'resnet81'. Did you mean resnet18"),
    ({"explain.layer": "layr3"}, "unknown layer 'layr3'. Did you mean layer3"),
    ({"opt": "sgdd"}, "unknown optimiser 'sgdd'. Did you mean sgd"),
    ({"aug": "none"}, None)])
def test_what_a_recipe_cannot_know_by_itself_is_refused_before_training(tmp_path, kwargs, says):
    if says is None:   # the control: this one would train
        with pytest.raises(ValueError, match="unpack"): refused(tmp_path, recipe=small.but(**kwargs))
    else: assert says in refused(tmp_path, recipe=small.but(**kwargs))


def test_an_unknown_policy_is_refused_when_the_recipe_is_made():
    with pytest.raises(InputError, match="Did you mean pad_crop_flip"): small.but(aug="pad_crop_flp")


def test_an_output_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write in" in refused(tmp_path, "--out", tmp_path / "file/run")


@pytest.mark.parametrize("flags, says", [
    (["--seed", "1", "--seeds", "1", "2"], "both --seed and --seeds"), (["--seeds", "1", "1"], "repeat"),
    (["--workers", "-1"], "num_workers=-1"), (["--limit", "5"], "limit 5 is below the 10 classes")])
def test_flags_that_make_no_sense_are_refused(tmp_path, flags, says):
    assert says in refused(tmp_path, *flags)


# how it ends

@pytest.mark.parametrize("error, status, says", [
    (InputError("no"), 2, "cifar_fastai: no\n"), (Stopped("late", 15), 143, "cifar_fastai: late\n"),
    (LoaderError("lost"), 1, "cifar_fastai: lost\n"),
    (KeyboardInterrupt(), 130, "cifar_fastai: stopped by Ctrl-C\n")])
def test_an_error_ends_with_its_status_and_one_line(capsys, error, status, says):
    with pytest.raises(SystemExit) as end, cli.report_errors(): raise error
    assert end.value.code == status and capsys.readouterr().err == says


def test_debug_shows_the_traceback():
    with pytest.raises(InputError), cli.report_errors(debug=True): raise InputError("no")


def test_an_error_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), cli.report_errors(): 1 / 0   # noqa: B018


@pytest.mark.parametrize("status, ranks, said", [
    (2, {}, 1), (2, {"RANK": "1", "LOCAL_RANK": "1"}, 0), (2, {"RANK": "8", "LOCAL_RANK": "0"}, 1),
    (143, {"RANK": "0", "LOCAL_RANK": "0"}, 1), (143, {"RANK": "8", "LOCAL_RANK": "0"}, 0),
    (1, {"RANK": "9", "LOCAL_RANK": "1"}, 1)])
def test_one_of_several_processes_says_what_all_would_say(status, ranks, said, monkeypatch, capsys):
    "A wrong input is one machine's, a signal is the run's; what broke is said where it broke"
    for name in ("RANK", "LOCAL_RANK"): monkeypatch.delenv(name, raising=False)
    for name, value in ranks.items(): monkeypatch.setenv(name, value)
    error = InputError("what was wrong")
    error.exit_status = status
    with pytest.raises(SystemExit, match=f"^{status}$"), report_errors(): raise error
    assert capsys.readouterr().err == "cifar_fastai: what was wrong\n" * said
