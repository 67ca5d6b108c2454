"""The benchmarks' own arithmetic, and that each contender does what it is said to do, on little data."""
import json

import numpy as np
import pytest
import torch

from benchmarks import gpu, harness, loader, profile_epoch, step
from benchmarks.harness import Row, alternate, ratio, table
from benchmarks.pictures import coloured, write_folder
from cifar_fastai.data import load_data
from cifar_fastai.errors import InputError


def test_contenders_take_turns_and_warm_rounds_do_not_count():
    order = []
    works = {"a": lambda: order.append("a"), "b": lambda: order.append("b") or 2.0}
    times = alternate(works, rounds=3, warm=1)
    assert order == ["a", "b"] * 4 and len(times["a"]) == 3 and times["b"] == [2.0] * 3


def test_ratio_is_the_median_of_each_rounds_own():
    assert ratio({"s": [10, 8, 100], "f": [5, 2, 10]}, "s", "f") == 4


def test_table_says_pass_or_short_on_the_right_side_of_the_goal():
    rows = [Row("P1", "w", "x", 2, 2.0), Row("P1", "w", "x", 2, 1.99),
            Row("P3", "w", "x", 1, 1.0, at_most=True), Row("P3", "w", "x", 1, 1.01, at_most=True, note="why")]
    assert [r.passes for r in rows] == [True, False, True, False]
    lines = table(rows).splitlines()
    assert [line.split()[-1] for line in lines[1:5]] == ["pass", "short", "pass", "short"]
    assert "why" in lines[5]
    assert json.loads(json.dumps(rows[0].as_dict()))["passes"] is True


def test_coloured_digits_are_the_same_as_a_folder_of_files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = coloured(64, 32)
    read = load_data(write_folder(data, tmp_path / "pictures"))
    want = sorted((int(y), x.tobytes()) for x, y in zip(data.x_train, data.y_train))
    assert want == sorted((int(y), np.asarray(x).tobytes()) for x, y in zip(read.x_train, read.y_train))
    assert coloured(64, 32, seed=1).x_train.tobytes() != data.x_train.tobytes()


def test_the_three_loaders_show_the_same_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(loader, "BS", 16)
    data = coloured(64, 16)
    loader.check_equal(write_folder(data, tmp_path / "p"), data)
    other = coloured(64, 16, seed=1)
    with pytest.raises(AssertionError): loader.check_equal(write_folder(other, tmp_path / "q"), data)


def test_our_step_and_the_hand_written_one_end_in_the_same_weights():
    step.check_equal(step.tiny)


def test_training_on_resident_pictures_runs_on_any_device(monkeypatch):
    monkeypatch.setattr(gpu, "BS", 16)
    seconds = gpu.resident(coloured(48, 16), 1, "fp32", torch.device("cpu"), step.tiny)
    assert 0 < seconds < 60


def test_hole_flip_and_crop_keep_every_pixel_a_pixel_of_the_picture():
    x = torch.arange(1, 3 * 40 * 40 + 1).remainder(119).view(1, 3, 40, 40).expand(64, -1, -1, -1)
    out = gpu.augmented(x, torch.arange(64))
    assert out.shape == (64, 3, 32, 32) and ((out == 120).sum((1, 2, 3)) == 3 * 64).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_table_says_that_p11_was_left_out():
    assert "no CUDA" in gpu.run(1) and isinstance(gpu.run(1), str)


def test_profile_accounts_for_the_epoch(monkeypatch):
    from cifar_fastai import models
    monkeypatch.setitem(models.MODELS, "flat", step.tiny)
    spent, n = profile_epoch.profile("cpu", "flat", 8, 2)
    parts = {"forward", "backward", "loss", "optimiser step", "loader: augment and copy", "batch transforms"}
    assert parts < set(spent) and n == 4 and all(v > 0 for v in spent.values())


def test_unknown_benchmark_is_answered_with_the_nearest():
    from benchmarks.__main__ import _run
    with pytest.raises(InputError, match="loader"): _run(["loder"])


def test_machine_names_processor_and_versions():
    about = harness.machine()
    assert about["cpu"] and about["versions"]["torch"] == torch.__version__.split("+")[0]
