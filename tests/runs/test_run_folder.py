"""A run's folder: refused before it is touched, written down before training, sealed when it is whole."""
import hashlib
import json
import os

import pytest

from cifar_fastai import Recipe, policy
from cifar_fastai.errors import InputError
from cifar_fastai.files import read_json
from cifar_fastai.recipe import training_fields
from cifar_fastai.runs.run_folder import (
    begin,
    begun,
    choose_folder,
    holds_run,
    listed_sums,
    load_recipe,
    newest_run,
    remove_if_refused,
    seal,
    sealed_files,
)

RECIPE = Recipe(name="demo", lr=.1, aug=policy.pad_crop_flip(pad=2))
DECIDED = {"data": "digits", "data_fingerprint": "abc", "precision": "fp32", "device": "cpu"}


@pytest.fixture
def folder(tmp_path):
    "A run that has begun"
    folder = choose_folder(RECIPE, tmp_path / "run", resume=False)
    begin(folder, RECIPE, DECIDED, resume=False)
    return folder


def test_a_folder_is_named_by_recipe_time_and_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = choose_folder(RECIPE.but(seed=7), None, resume=False)
    assert path.parent.as_posix() == "runs/demo" and path.name.endswith("-seed7") and not path.exists()


def test_what_is_there_is_neither_written_over_nor_taken_for_a_run(folder, tmp_path):
    with pytest.raises(InputError, match="already holds a run"): choose_folder(RECIPE, folder, resume=False)
    assert choose_folder(RECIPE, folder, resume=True) == folder and holds_run(folder)
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="is no run's folder"):
        choose_folder(RECIPE, tmp_path / "holiday", resume=True)


def test_the_newest_run_is_the_one_last_written_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert newest_run(RECIPE) is None
    for k, name in enumerate(("b", "a")):
        begin(tmp_path / "runs" / "demo" / name, RECIPE, DECIDED, resume=False)
        for path in (tmp_path / "runs" / "demo" / name).rglob("*"): os.utime(path, (1e9 + k,) * 2)
        os.utime(tmp_path / "runs" / "demo" / name, (1e9 + k,) * 2)
    assert newest_run(RECIPE).name == "a"


def test_what_was_decided_stands_there_before_training(folder):
    assert begun(folder)["precision"] == "fp32" and begun(folder)["versions"]["torch"]
    assert load_recipe(folder / "recipe.json").as_dict() == RECIPE.as_dict()
    assert begun(folder / "none") == {}


@pytest.mark.parametrize("recipe, decided, says", [
    (RECIPE.but(seed=1), {}, "seed was 0, is now 1"),
    (RECIPE.but(opt={"wd": 0.}), {}, "wd was 0.0005, is now 0.0"),
    (RECIPE, {"data_fingerprint": "xyz"}, 'data was "abc", is now "xyz"')])
def test_a_run_that_was_decided_otherwise_is_not_gone_on_with(folder, recipe, decided, says):
    before = (folder / "recipe.json").read_bytes()
    with pytest.raises(InputError, match=says): begin(folder, recipe, DECIDED | decided, resume=True)
    assert (folder / "recipe.json").read_bytes() == before


def test_fields_that_do_not_touch_the_weights_may_change(folder, caplog):
    other = RECIPE.but(name="other", explain={"gallery": 5}, tta="none")
    begin(folder, other, DECIDED | {"device": "cuda"}, resume=True)
    assert 'device was "cpu", is now "cuda": the end will be the same only to rounding' in caplog.text
    fields = training_fields(RECIPE.as_dict())
    assert "explain.gallery" not in fields and "opt.wd" in fields
    assert begun(folder)["device"] == "cpu", "what was decided first"


@pytest.mark.parametrize("status, there, left", [(2, False, False), (1, False, True), (2, True, True)])
def test_a_run_that_was_refused_leaves_no_folder(tmp_path, status, there, left):
    error, folder = InputError("no"), tmp_path / "run"
    error.exit_status = status
    if there: folder.mkdir()
    with pytest.raises(InputError), remove_if_refused(folder):
        folder.mkdir(exist_ok=True)
        (folder / "log.txt").write_text("refused")
        raise error
    assert folder.exists() is left


def test_the_seal_lists_every_file_but_log_and_checkpoints_and_goes_when_the_run_goes_on(folder):
    (folder / "results.json").write_text("{}")
    (folder / "figures").mkdir()
    (folder / "figures" / "a.png").write_bytes(b"png")
    (folder / "log.txt").write_text("line")
    assert [p.name for p in sealed_files(folder)] == ["a.png", "recipe.json", "results.json"]
    seal(folder)
    files = listed_sums(folder)
    assert sorted(files) == ["figures/a.png", "recipe.json", "results.json"]
    assert files["figures/a.png"] == hashlib.sha256(b"png").hexdigest()
    begin(folder, RECIPE, DECIDED, resume=True)
    assert not (folder / "SHA256SUMS").exists()


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '"a"'])
def test_json_that_is_no_object_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match="a.json") as error: read_json(tmp_path / "a.json")
    assert "\n" not in str(error.value)


def test_a_recipe_with_transforms_of_albumentations_needs_its_own_module(tmp_path):
    import albumentations as A
    recipe = RECIPE.but(aug=A.Compose([A.HorizontalFlip(p=.5)]))
    begin(tmp_path / "run", recipe, DECIDED, resume=False)
    with pytest.raises(InputError, match="holds transforms of Albumentations, which only its own"):
        load_recipe(tmp_path / "run" / "recipe.json")


def test_a_recipe_written_by_hand_has_defaults_and_may_be_given_its_name(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"epochs": 3, "aug": {"name": "pad_crop_flip_cutout", "cutout": 16, "holes": [1, 3]}}')
    aug = policy.pad_crop_flip_cutout(cutout=16, holes=(1, 3))
    assert load_recipe(path, name="mine") == Recipe(name="mine", epochs=3, aug=aug)
    with pytest.raises(InputError, match="mine.json: no recipe: .* 'name'"): load_recipe(path)
    path.write_text(json.dumps(RECIPE.as_dict()))
    assert load_recipe(path, name="mine") == RECIPE, "the file's name before another"


@pytest.mark.parametrize("text, said", [
    ('{"epchs": 3}', "unknown recipe field 'epchs'. Did you mean epochs"),
    ('{"epochs": "3"}', "recipe mine: epochs='3' is a str. Give int"),
    ('{"aug": {"pda": 3}}', "unknown policy field 'pda'. Did you mean pad"),
    ('{"aug": {"pad": -3}}', "policy own: pad=-3. Give a whole number"),
    ('{"aug": {"name": [3]}}', "mine.json: no recipe: .* Give fields of a recipe, as the recipe.json"),
    ("epochs: 3", "mine.json cannot be read as JSON .Expecting value: line 1.*. Mend it")])
def test_a_recipe_written_wrongly_is_refused_by_what_is_wrong(tmp_path, text, said):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(InputError, match=said): load_recipe(tmp_path / "mine.json", name="mine")
