"""A result is a mean and a standard deviation over seeds, with n beside it."""
import json
from statistics import stdev
from types import SimpleNamespace

import pytest
from tiny import recipe

from cifar_fastai.errors import InputError
from cifar_fastai.runs import seeds
from cifar_fastai.runs.seeds import summary, train_seeds


def test_each_seed_has_its_run_folder_and_the_summary_stands_beside_them(undrawn, learnable, tmp_path):
    small = recipe.but(epochs=1, lr=.05, limit=40)
    found = train_seeds(small, learnable, [4, 2], tmp_path / "two", device="cpu", quiet=True)
    results = [json.loads((tmp_path / f"two/seed{k}/results.json").read_text()) for k in (4, 2)]
    assert [r["seed"] for r in results] == found["seeds"] == [4, 2]
    assert results[0]["loss"] != results[1]["loss"], "they are different runs"
    assert found["loss"]["mean"] == pytest.approx((results[0]["loss"] + results[1]["loss"]) / 2)
    assert json.loads((tmp_path / "two/seeds.json").read_text()) == json.loads(json.dumps(found))
    assert {p.name for p in (tmp_path / "two").iterdir()} >= {"seed2", "seed4", "seeds.json"}
    assert found["settings"] == {k: v for k, v in small.as_dict().items() if k != "seed"}


def result(seed, accuracy, **more):
    return {"seed": seed, "recipe": "r", "data": "digits", "accuracy": accuracy, "loss": 1 - accuracy,
            "seconds": 10 * seed, **more}


def test_the_summary_is_mean_and_sample_deviation():
    found = summary([result(1, .9), result(2, .92), result(3, .97)])
    assert found["accuracy"]["mean"] == pytest.approx(.93) and found["accuracy"]["n"] == 3
    assert found["accuracy"]["sd"] == pytest.approx(stdev([.9, .92, .97])) == pytest.approx(.036055, abs=1e-6)
    assert found["accuracy"]["text"] == "93.00% ± 3.61 points, n=3" and found["seconds"]["mean"] == 20
    assert found["accuracy"]["values"] == [.9, .92, .97] and "accuracy_tta" not in found


def test_one_seed_has_no_deviation():
    found = summary([result(1, .9)])["accuracy"]
    assert found["sd"] is None and found["text"] == "90.00%, n=1"


def test_augmented_accuracy_is_summed_up_where_there_is_one():
    found = summary([result(1, .9, accuracy_tta=.91), result(2, .9, accuracy_tta=.93)])
    assert found["accuracy_tta"]["mean"] == pytest.approx(.92)


def test_seeds_that_repeat_are_refused_before_anything_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(seeds, "train", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(InputError, match=r"seeds \[1, 2, 1\] repeat. Give each one once."):
        train_seeds(recipe, "digits", [1, 2, 1], tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there, given, says", [
    (None, [1, 2, -3], "seed=-3"), ("seed3/recipe.json", [1, 2, 3], "seed3 already holds a run"),
    ("seeds.json", [4, 5], "already holds the results of seeds .*Give another folder, or these seeds")])
def test_what_a_later_seed_cannot_do_is_refused_before_the_first_trains(there, given, says, monkeypatch,
                                                                        tmp_path):
    monkeypatch.setattr(seeds, "train", lambda *args, **kwargs: 1 / 0)
    if there:
        (tmp_path / there).parent.mkdir(exist_ok=True)
        (tmp_path / there).write_text("{}")
    with pytest.raises(InputError, match=says): train_seeds(recipe, "digits", given, tmp_path)
    if there:
        with pytest.raises(ZeroDivisionError): train_seeds(recipe, "digits", given, tmp_path, resume=True)


def test_seeds_of_other_pictures_are_not_averaged(monkeypatch, tmp_path):
    found = iter([result(1, .9, data_fingerprint="a"), result(2, .8, data_fingerprint="b")])
    monkeypatch.setattr(seeds, "train", lambda *args, **kwargs: SimpleNamespace(results=next(found)))
    with pytest.raises(InputError, match="had other pictures each. Train them in another folder"):
        train_seeds(recipe, "digits", [1, 2], tmp_path, quiet=True)
    assert not (tmp_path / "seeds.json").exists()


def test_resumed_seeds_do_not_take_the_place_of_others(monkeypatch, tmp_path):
    quick = lambda recipe, *args, **kwargs: SimpleNamespace(results=result(recipe.seed, .9))
    monkeypatch.setattr(seeds, "train", quick)
    train_seeds(recipe, "digits", [1, 2], tmp_path, quiet=True)
    with pytest.raises(InputError, match=r"results of seeds \[1, 2\]"):
        train_seeds(recipe, "digits", [4], tmp_path, resume=True, quiet=True)
    assert train_seeds(recipe, "digits", [1, 2, 4], tmp_path, resume=True, quiet=True)["seeds"] == [1, 2, 4]
