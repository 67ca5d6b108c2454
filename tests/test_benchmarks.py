"""The benchmarks' own arithmetic, and that each contender does what it is said to do, on little data."""
import json
import re
from dataclasses import fields
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest
import torch
from tiny import tiny_net

from benchmarks import gpu, harness, loader, maps, predecessors, profile_epoch, scale, step, summary
from benchmarks.harness import Row, alternate, ratio, table
from benchmarks.pictures import coloured, write_folder
from benchmarks.summary import Results
from cifar_fastai.data.sources import load_data
from cifar_fastai.errors import InputError

ROOT = Path(__file__).parents[1]


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


@pytest.mark.parametrize("seconds, says", [(60, r"2 epochs: [\d.]+ s"), (-1, "2 epochs: left out, no time")])
def test_long_training_is_timed_where_the_minutes_allow_it(monkeypatch, seconds, says):
    monkeypatch.setattr(gpu, "BS", 16), monkeypatch.setattr(gpu, "EPOCHS", 2)
    end, cpu = monotonic() + seconds, torch.device("cpu")
    row, = gpu.training(coloured(48, 16), cpu, "fp32", 2, end, step.tiny)
    assert row.goal_id == "P11" and row.measured > 0 and re.search(says, row.note)
    assert "0 workers" in row.note


def test_rounds_end_when_their_time_is_over():
    times = alternate({"a": lambda: 1.0}, rounds=9, warm=0, over=harness.until(monotonic() - 1))
    assert len(times["a"]) == 2 and not harness.until(monotonic() + 60)()


def test_pictures_on_the_device_are_augmented_like_ours():
    data = coloured(16, 4)
    x = torch.tensor(data.x_train).permute(0, 3, 1, 2)
    padded = torch.nn.functional.pad(x.float(), (4,) * 4, "reflect")
    torch.manual_seed(0)
    out = gpu.augmented(padded.to(torch.uint8), torch.arange(16))
    seen = out.permute(0, 2, 3, 1).numpy()
    for k in range(16):     # each is a crop of its own picture, perhaps mirrored, but for the hole
        picture = padded[k].permute(1, 2, 0).numpy()
        crops = [picture[y:y + 32, x:x + 32] for y in range(9) for x in range(9)]
        same = max((seen[k] == c[:, ::d]).all(2).mean() for c in crops for d in (1, -1))
        assert same >= 1 - 64 / 1024


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


def test_a_record_of_pairs_is_added_to_and_refuses_other_settings(tmp_path):
    path, about = tmp_path / "pairs.json", {"data": "jpeg", "limit": 9}
    rows = [{"recipe": "custom_resnet_24ep", "seed": 0}, {"recipe": "resnet18_adam_20ep", "seed": 1}]
    first, second = predecessors.Record(path, about), predecessors.Record(path, about)
    assert first.rows() == []
    first.add(rows[0]), second.add(rows[1])
    assert first.rows() == predecessors.Record(path, about).rows() == rows[::-1], "in the order of the five"
    for other in ({"data": "jpeg", "limit": 10}, {"data": "jpeg"}):
        with pytest.raises(InputError, match="pairs.json was measured"): predecessors.Record(path, other)
    unkept = predecessors.Record(None, about)
    unkept.add(rows[0])
    assert unkept.rows() == rows[:1] and sorted(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_a_number_of_pictures_is_measured_in_a_process_of_its_own():
    found = scale.measured(20_000)
    assert set(found) == {"setup", "epoch", "stock", "find", "explain", "kib"}
    assert all(v > 0 for v in found.values()) and 20_000 * 3 < found["kib"] < 20_000 * 6


@pytest.mark.parametrize("name", predecessors.SETTINGS)
def test_a_predecessors_settings_are_the_recipe_with_its_mistakes(name):
    sides = predecessors.pair(name, {"epochs": 7, "limit": 100})
    ours, theirs = sides["ours"], sides["theirs"]
    said = predecessors.SETTINGS[name]
    assert theirs == ours.but(**said)
    differ = {f.name for f in fields(ours) if getattr(ours, f.name) != getattr(theirs, f.name)}
    assert differ == {k.split(".")[0] for k in said}
    assert ours.epochs == theirs.epochs == 7 and theirs.limit == 100


def test_normalised_pictures_that_are_clipped_lose_all_that_is_dark():
    picture = np.full((4, 4, 3), 40, np.uint8)
    picture[2:] = 150
    out = predecessors.ClipNormalised(p=1)(image=picture)["image"]
    assert (out[:2] == np.round(255 * predecessors.MEAN)).all() and abs(out[2:].astype(int) - 150).max() <= 1


def test_both_sides_are_trained_with_the_same_seeds(learnable, tmp_path, undrawn):
    tiny = {"model": "tiny", "size": 16, "epochs": 1, "explain.layer": "layer3", "precision": "fp32"}
    rows = list(predecessors.run(learnable, ["custom_resnet_24ep"], [1, 2], tmp_path, **tiny))
    assert [(r["recipe"], r["seed"], r["theirs lr"]) for r in rows] == [
        ("custom_resnet_24ep", k, .0416) for k in (1, 2)]
    assert len(list(tmp_path.glob("*/results.json"))) == 4 and rows[0]["ours lr"] != .0416
    have = {("custom_resnet_24ep", 1), ("custom_resnet_24ep", 2)}
    assert not list(predecessors.run(learnable, ["custom_resnet_24ep"], [1, 2], tmp_path, have, **tiny))
    found = [{"recipe": "x", "ours": a, "theirs": b} for a, b in ((.9, .88), (.92, .88))]
    assert predecessors.table(found).split("  ")[-1].strip() == (
        "ours 91.00 ± 1.41 %, predecessor's settings 88.00 ± 0.00 %: +3.00 ± 1.41 points, n=2")
    with pytest.raises(InputError, match="custom_resnet_24ep"): predecessors.pair("custom_resnet_24", {})


def test_unknown_benchmark_is_answered_with_the_nearest():
    from benchmarks.__main__ import _run
    with pytest.raises(InputError, match="loader"): _run(["loder"])


def test_machine_names_processor_and_versions():
    about = harness.machine()
    assert about["cpu"] and about["versions"]["torch"] == torch.__version__.split("+")[0]


def found(goal_id="P1", measured=3.0, **kwargs): return Row(goal_id, "w", "x", 2, measured, **kwargs)


HOW = {"rounds": 5, "threads": 1, "clock": "wall", "load_before": 0.1, "seconds": 9.0}


def test_cpu_time_does_not_count_the_time_that_others_take():
    def wait(): sleep(.2)
    with harness.timed_by("cpu"): asleep = harness.clock(wait)
    assert asleep < .1 < harness.clock(wait)


def test_a_suite_measured_later_joins_those_in_the_file_unless_the_machine_is_another(tmp_path):
    file, here = tmp_path / "r" / "cpu.json", harness.machine()
    first, second, elsewhere = Results(here), Results(here), Results(here | {"cpu": "another"})
    first.add("loader", [found("P5"), found("P1")], HOW), first.save(file)
    second.add("gpu", "no GPU", HOW), second.save(file)
    both = Results.load(file)
    assert [r.goal_id for r in both.rows] == ["P1", "P5"] and both.left_out == ["no GPU"]
    elsewhere.add("step", [found("P3")], HOW)
    with pytest.raises(InputError, match="measured on another machine or with other versions. Name another"):
        elsewhere.save(file)
    assert Results.load(file).suites == both.suites


def test_tables_that_are_no_goals_are_printed_and_do_not_get_into_the_file(tmp_path, monkeypatch, capsys):
    from benchmarks import __main__ as command, memory
    monkeypatch.setattr(memory, "run", lambda rounds: "memory  136 %\nof two lines")
    command._run(["memory", "--json", str(tmp_path / "cpu.json")])
    assert "136 %" in capsys.readouterr().out and Results.load(tmp_path / "cpu.json").suites == {}


def test_chart_shows_how_many_times_as_fast_whichever_way_the_goal_is_written():
    results = Results(harness.machine())
    rows = [found(measured=4.0), found(measured=.25, at_most=True), found(unit="ms")]
    flat = Row("P9", "w", "flat", 1.25, 1.0, at_most=True)      # no speed
    results.add("s", [*rows, flat], HOW)
    assert [(value, goal) for _, value, goal in summary.speedups(results)] == [(4, 2), (4, .5)]


def test_the_page_says_what_the_committed_results_say():
    file, page = ROOT / "benchmarks/results/cpu.json", (ROOT / "docs/performance.md").read_text()
    results = Results.load(file)
    assert summary.write_block(page, "results", summary.markdown(results)) == page
    assert summary.write_block(page, "profile", summary.profile_beside(file)) == page
    assert results.about() in (ROOT / "README.md").read_text()
    results.suites["loader"]["rows"][0]["measured"] += 1
    assert summary.write_block(page, "results", summary.markdown(results)) != page


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="results"): summary.write_block("# a page", "results", "text")


# maps

class Brightest(torch.nn.Module):
    "The probability of class 1 is the brightest pixel"
    def forward(self, x):
        p = x.float().amax((1, 2, 3)).clamp(.001, .999)
        return torch.stack([1 - p, p], 1).log()


def test_a_map_that_knows_the_place_beats_all_controls_and_its_opposite_none():
    x, places = torch.zeros(100, 1, 16, 16), torch.arange(100) * 101 % 256      # each another
    x.view(100, 256)[torch.arange(100), places] = 1
    both = {"right": (x[:, 0], 8), "wrong": (-x[:, 0], 8)}
    right, wrong = maps.measure(Brightest(), x, torch.ones(100, dtype=int), both)
    assert (maps.wins(right), maps.wins(wrong)) == (6, 0) and maps.score(right) > .8 > maps.score(wrong)
    assert right["blank"] == 0 < wrong["blank"] == 1


def test_candidates_are_maps_of_each_layer_and_method_alone_and_together():
    net = tiny_net(4).eval()
    xb, target = torch.randn(6, 3, 16, 16), torch.arange(6) % 4
    found = {name: m for name, m, _ in maps.candidates(net, xb, target)}
    assert {m.shape for m in found.values()} == {(6, 16, 16)} and "gradcam layer4+layer2, centred" in found
    alone = [found[f"layercam {n}"].relu() for n in ("layer3", "layer4")]
    first, second = (m / m.amax((1, 2), keepdim=True).clamp_min(1e-12) for m in alone)
    assert torch.allclose(found["layercam layer3 × layer4"], first * second, atol=1e-6)
    assert torch.allclose(found["layercam mean of layer3, layer4"], (first + second) / 2, atol=1e-6)
    flipped = {name: m for name, m, _ in maps.candidates(net, xb.flip(3), target)}
    name = "gradcam layer4+layer2, log-odds, with its mirror"
    assert torch.allclose(found[name], flipped[name].flip(2), atol=1e-5), "the same from either side"


def test_other_targets_are_what_they_say():
    z = torch.tensor([[2., 0, 1], [0, 0, 0]])
    assert torch.allclose(maps.Centred(torch.nn.Identity())(z), torch.tensor([[1.5, -1.5, 0], [0, 0, 0]]))
    p = z.softmax(1)
    assert torch.allclose(maps.Odds(torch.nn.Identity())(z), (p / (1 - p)).log(), atol=1e-6)


def test_a_canvas_is_the_texture_of_another_class_with_the_picture_in_its_quarter():
    x = np.random.default_rng(1).integers(0, 256, (12, 16, 8, 3), np.uint8)
    y = np.arange(12) % 3
    made, classes, quarters = maps.canvases(x, y, 40)
    assert made.shape == (40, 32, 16, 3) and set(quarters) == {0, 1, 2, 3}
    pieces = x.reshape(12, 2, 8, 8, 3).reshape(24, 8, 8, 3)
    for canvas, c, q in zip(made, classes, quarters):
        top, left = q // 2 * 16, q % 2 * 8
        pasted = canvas[top:top + 16, left:left + 8]
        assert [y[i] for i in range(12) if np.array_equal(x[i], pasted)] == [c]
        other = canvas[(top + 16) % 32:][:8, (left + 8) % 16:][:, :8]
        owner, = {i // 2 for i in range(24) if np.array_equal(pieces[i], other)}
        assert y[owner] != c


def test_the_quarter_of_the_heat_is_counted_by_hand():
    m = torch.zeros(4, 4, 6)
    for k, (r, c) in enumerate([(0, 0), (1, 5), (3, 1), (2, 3)]): m[k, r, c] = 3
    m[1, 0, 0], m[2, 0, 0] = 1, -9                     # a quarter of its heat elsewhere; against the class
    assert maps.in_quarter(m, torch.arange(4)) == (1, .9375)
    assert maps.in_quarter(m, torch.tensor([1, 1, 2, 0])) == (.5, .4375)


def test_the_other_libraries_maps_come_from_their_own_code():
    pytest.importorskip("torchcam")
    net = tiny_net(4).eval()
    xb, target = torch.randn(6, 3, 16, 16), torch.arange(6) % 4
    found = maps.rivals(net, xb, target)
    close = lambda a, b: torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > .97
    for name, method in (("pytorch-grad-cam: GradCAM", "gradcam"), ("torch-cam: LayerCAM", "layercam")):
        ours = maps.GradCAM(net, "layer4")(xb, target, method=method).maps
        assert found[name].shape == (6, 16, 16)
        assert all(close(a, b) for a, b in zip(found[name], ours) if b.any())


def test_the_maps_of_other_nets_stay_in_the_file_and_those_of_other_data_are_refused(tmp_path):
    "Nets are known by their bytes: the runs of two folders of seeds have the same names"
    path, about = tmp_path / "maps.json", {"data": "jpeg", "data_fingerprint": "a"}
    name, found = "seed1/weights.safetensors", {"weights": "seed1/weights.safetensors", "sha256": "2"}
    assert maps.others_in(path, about, found) == []
    nets = [{"weights": name, "sha256": s} for s in "12"] + [{"weights": name}, {"weights": "y"}]
    path.write_text(json.dumps(about | {"nets": nets}))
    assert maps.others_in(path, about, found) == [nets[0], nets[3]]
    with pytest.raises(InputError, match="measured on other data"):
        maps.others_in(path, about | {"data_fingerprint": "b"}, found)


def test_the_default_map_is_timed_beside_a_forward_pass():
    from benchmarks import gradcam
    times = {"ours": [1.], "layer4": [1.1], "default": [1.8], "forward": [1.]}
    rows = gradcam._rows(times, "Grad-CAM of 64 pictures at layer3, fp32, cpu")
    row = next(r for r in rows if "default" in r.work)
    assert row.measured == pytest.approx(1.8) and row.goal == 2 and row.passes and "default 36" in row.note
