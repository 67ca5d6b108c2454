"""A batch size that a person gave holds or is refused; a recipe's own shrinks on small data."""
import json

import pytest
import tiny

from cifar_fastai import cli
from cifar_fastai.errors import InputError
from cifar_fastai.recipe import Recipe
from cifar_fastai.runs import one_run as runs
from cifar_fastai.runs.run_folder import load_recipe, saved_recipe

pytestmark = pytest.mark.no_rounding

recipe = tiny.recipe.but(lr=.05, epochs=1, bs=64, min_steps=16)      # of 160 pictures: batches of 8


def written(folder) -> tuple:
    "(bs, size) of recipe.json, bs of results.json"
    saved, results = saved_recipe(folder), json.loads((folder / "results.json").read_text())
    return (saved["bs"], saved["size"]), results["bs"]


def trained(recipe, data, folder, **kwargs):
    run = runs.train(recipe, data, folder, device="cpu", quiet=True, **kwargs)
    assert run.learn.dls.train.bs == run.results["bs"] == saved_recipe(folder)["bs"]
    return run


@pytest.mark.parametrize("flags, bs", [([], 8), (["--bs", "128"], 128), (["--bs", "4"], 4)])
def test_a_flag_holds_and_a_default_shrinks(undrawn, tmp_path, learnable, flags, bs):
    source = str(tiny.write_folder(learnable, tmp_path / "data"))
    cli.main(recipe, ["--data", source, "--out", str(tmp_path / "run"), "--device", "cpu", "--quiet", *flags])
    assert written(tmp_path / "run") == ((bs, 16), bs)


def test_a_variant_and_a_file_hold_what_they_name(undrawn, tmp_path, learnable):
    assert trained(recipe.but(bs=128), learnable, tmp_path / "variant").results["bs"] == 128
    (tmp_path / "mine.json").write_text('{"bs": 128, "model": "tiny"}')
    assert load_recipe(tmp_path / "mine.json", name="mine").min_steps == 0
    both = recipe.but(bs=64, min_steps=16)
    (tmp_path / "both.json").write_text(json.dumps(both.as_dict()))
    assert load_recipe(tmp_path / "both.json") == both, "the control: a file that names the rule too"


def test_what_cannot_hold_is_refused_before_training(tmp_path, learnable):
    said = "batches of 161, but only 160 training pictures. Give a batch size .--bs. of 160 or less"
    with pytest.raises(InputError, match=said):
        runs.train(recipe.but(bs=161), learnable, tmp_path / "run", device="cpu", quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_side_of_given_pictures_is_what_is_recorded(undrawn, tmp_path, learnable):
    run = trained(recipe.but(size=32), learnable, tmp_path / "run")
    assert written(tmp_path / "run") == ((8, 16), 8)
    again = trained(load_recipe(tmp_path / "run" / "recipe.json"), learnable, tmp_path / "again")
    assert again.results["recipe_fingerprint"] == run.results["recipe_fingerprint"]
    assert again.results["loss"] == run.results["loss"], "recipe.json says all that the run was"


@pytest.mark.parametrize("given", [[], ["--bs", "8"]])
def test_a_shrunk_run_is_resumed_with_or_without_its_size(undrawn, tmp_path, learnable, given):
    source, out = str(tiny.write_folder(learnable, tmp_path / "data")), str(tmp_path / "run")
    common = ["--device", "cpu", "--quiet", "--out", out]
    cli.main(recipe, ["--data", source, *common])
    before = (tmp_path / "run" / "weights.safetensors").read_bytes()
    cli.main(recipe, ["--resume", *common, *given])
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == before


def test_another_size_is_refused_when_resumed(undrawn, tmp_path, learnable, capsys):
    trained(recipe, learnable, tmp_path / "run")
    with pytest.raises(InputError, match="cannot resume .*bs"):
        runs.train(recipe.but(bs=128), learnable, tmp_path / "run", resume=True, device="cpu", quiet=True)


def test_a_variant_that_does_not_name_the_size_keeps_the_rule():
    assert Recipe(name="x").but(epochs=3).min_steps == 16 and Recipe(name="x").but(bs=64).min_steps == 0
