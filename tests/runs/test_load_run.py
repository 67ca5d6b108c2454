"""A run comes back from its folder: its net, its predictions, its page; nothing in it is unpickled."""
import json
import pickle
import re
import shlex
from shutil import copytree

import pytest
import torch
from official import PY10, members_of, tar
from tiny import learnable as make, recipe as TINY, undrawn, write_folder

from cifar_fastai import cli, serve
from cifar_fastai.data import sources
from cifar_fastai.errors import InputError
from cifar_fastai.runs import load_run, report_again, train, verify_run
from cifar_fastai.runs.run_folder import again
from recipes.__main__ import main

pytestmark = pytest.mark.no_rounding


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_registered):
    "A run on a folder of pictures"
    data = write_folder(make(), tmp_path_factory.mktemp("pictures"))
    return train(TINY, data, tmp_path_factory.mktemp("runs") / "one", quiet=True, device="cpu")


def test_it_predicts_as_it_did(trained):
    again = load_run(trained.folder, device="cpu")
    assert torch.equal(again.interp.preds, trained.interp.preds) and again.accuracy == trained.accuracy
    assert torch.equal(again.interp.tta, trained.interp.tta) and again.results == trained.results
    assert again.learn.recipe == trained.learn.recipe and again.interp.accuracy == trained.accuracy


def test_it_can_be_trained_further_and_explained(trained):
    learn = load_run(trained.folder, device="cpu").learn
    with learn.no_logging(), learn.no_bar(): learn.fit_one_cycle(1, .01)
    assert learn.gradcam(0)[1].raw.shape[0] == 1


def test_nothing_is_unpickled(trained, monkeypatch):
    def refuse(*args, **kwargs): raise AssertionError("unpickled")
    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)
    load_run(trained.folder, device="cpu")


def test_other_pictures_are_refused_and_the_same_ones_taken_from_elsewhere(trained, tmp_path):
    with pytest.raises(InputError, match="holds other pictures than the run"):
        load_run(trained.folder, write_folder(make(seed=5), tmp_path / "other"), device="cpu")
    moved = load_run(trained.folder, write_folder(make(), tmp_path / "same"), device="cpu")
    assert moved.interp.accuracy == trained.accuracy


@pytest.mark.parametrize("gone", ["weights.safetensors", "results.json", "recipe.json"])
def test_a_folder_without_one_of_its_files_is_refused(trained, tmp_path, gone):
    folder = copytree(trained.folder, tmp_path / "run")
    (folder / gone).unlink()
    with pytest.raises(InputError, match=gone.split(".")[0]): load_run(folder, device="cpu")


def mistakes(folder) -> list[int]:
    data = json.loads(re.search(r'id="data">(.*?)</script>', (folder / "report.html").read_text(), re.S)[1])
    return data["index"][:data["mistakes"]]


def test_every_run_has_a_page_with_its_mistakes(trained):
    assert mistakes(trained.folder) == trained.interp.misclassified().tolist()
    assert (trained.folder / "report.html").stat().st_size < 1e6


def test_the_page_is_written_anew_and_the_run_stays_whole(trained, capsys):
    page = trained.folder / "report.html"
    before = mistakes(trained.folder)
    page.unlink()
    main(["report", str(trained.folder), "--device", "cpu"])
    assert capsys.readouterr().out.strip().endswith(str(page)) and mistakes(trained.folder) == before
    assert verify_run(trained.folder)[0] == []


def test_a_run_whose_page_was_changed_by_hand_is_not_sealed_by_another_file(trained):
    table = trained.folder / "predictions.csv"
    kept = table.read_text()
    table.write_text(kept + "1")
    report_again(trained.folder, device="cpu")
    wrong = verify_run(trained.folder)[0]
    table.write_text(kept)
    assert any("predictions.csv is not what was written" in line for line in wrong)
    assert verify_run(trained.folder)[0] == []


@pytest.fixture(scope="module")
def unverified(tmp_path_factory, tiny_registered):
    "A run on an archive of CIFAR's form that is not the official one, in a folder with a blank in its name"
    folder = tmp_path_factory.mktemp("my data")
    archive = tar(folder / PY10.archive, PY10, members_of(PY10))
    small = TINY.but(epochs=1, bs=8, size=32, lr=.05, aug="pad_crop")
    with pytest.MonkeyPatch.context() as m:
        undrawn(m.setattr)
        return train(small, archive, folder / "a run", unverified=True, quiet=True, device="cpu")


def test_a_run_on_an_unverified_archive_comes_back_by_its_fingerprint(unverified):
    again = load_run(unverified.folder, device="cpu")
    assert torch.equal(again.interp.preds, unverified.interp.preds)
    assert serve.tested_pictures(unverified.folder).shape == (4, 32, 32, 3)
    assert report_again(unverified.folder, device="cpu").exists()


def test_pictures_for_a_gallery_are_never_downloaded(unverified, monkeypatch, tmp_path):
    "A run on `cifar10` was copied to a machine without it"
    folder = copytree(unverified.folder, tmp_path / "run")
    begun = json.loads((folder / "checkpoints/begun.json").read_text())
    (folder / "checkpoints/begun.json").write_text(json.dumps(begun | {"data": "cifar10"}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sources, "fetch", lambda name: pytest.fail("a download"))
    assert serve.tested_pictures(folder) is None


def test_there_is_no_command_for_what_no_command_can_make(unverified, tmp_path):
    "Pictures that came from memory, transforms that only their own module can make"
    folder, named = copytree(unverified.folder, tmp_path / "run"), unverified.results
    begun, saved = (json.loads((folder / f).read_text()) for f in ("checkpoints/begun.json", "recipe.json"))
    assert again(folder, named)
    (folder / "checkpoints/begun.json").write_text(json.dumps(begun | {"data": None}))
    assert again(folder, named | {"data": "an array"}) == "" != again(folder, named | {"data": "digits"})
    (folder / "recipe.json").write_text(json.dumps(saved | {"aug": {"transform": {}}}))
    assert again(folder, named | {"data": "digits"}) == ""


def test_the_command_on_the_page_repeats_the_run(unverified, trained, tmp_path):
    words = shlex.split(again(unverified.folder, unverified.results))
    assert words[:5] == ["python", "-m", "recipes", "train", str(unverified.folder)]
    assert words[words.index("--data") + 1].endswith(f"my data0/{PY10.archive}") and "--unverified" in words
    folder = copytree(trained.folder, tmp_path / "run")
    begun = json.loads((folder / "checkpoints/begun.json").read_text())
    how = {"data_split": .3, "scale_lr": "sqrt", "compiled": True, "data": "$HOME/x y"}
    (folder / "checkpoints/begun.json").write_text(json.dumps(begun | how))
    words = shlex.split(again(folder, trained.results))
    args = cli.parse(TINY, words[5:])
    assert (args.data, args.data_split, args.scale_lr, args.compile) == ("$HOME/x y", .3, "sqrt", True)
    assert args.seed == TINY.seed and not args.unverified
