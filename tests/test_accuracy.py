"""The sweep over recipes: what it runs, what it leaves out, what it adds up to."""
import json
import re
from pathlib import Path
from shutil import rmtree

import pytest
from fits import KillAt, Killed
from tiny import recipe as TINY
from torch import nn

from benchmarks import accuracy
from benchmarks.accuracy import ABLATIONS, petaflop, planned, read_rows, sweep, table
from cifar_fastai.errors import InputError
from cifar_fastai.models import resnet18
from recipes.listing import recipes

pytestmark = pytest.mark.no_rounding
ALL = {r.name for of_module in recipes().values() for r in of_module}


def test_the_final_plan_trains_every_recipe_as_it_is():
    runs = planned("final", "", None)
    assert {r.name for _, r in runs} == ALL and {change for change, _ in runs} == {"as it is"}
    assert [r.name for _, r in planned("final", "", ["cpu_15min"], epochs=2)] == ["cpu_15min"]


@pytest.mark.parametrize("base", ABLATIONS)
def test_an_ablation_changes_one_thing_at_a_time_and_asks_a_holdout(base):
    runs = dict(planned("ablation", base, None, limit=100))
    plain = runs["as it is"].as_dict()
    assert all(r.valid == "holdout" and r.limit == 100 for r in runs.values())
    for name, r in runs.items():
        changed = {k for k, v in r.as_dict().items() if v != plain[k]}
        assert bool(changed) == (name != "as it is") and len(changed - {"min_steps"}) <= 2, name
    assert len({r.fingerprint() for r in runs.values()}) == len(runs)


def test_several_changes_can_be_made_at_once_and_smaller_pictures_are_cropped_and_covered_by_as_much():
    name = "whitened stem + ema"
    (_, plain), (found, both) = planned("ablation", "resnet18_20ep", ["as it is", name], size=16, lr=.1)
    assert found == name and both == plain.but(build={"whiten": .01}, keep={"name": "ema", "decay": .951})
    assert (plain.size, plain.aug.pad, plain.aug.cutout, plain.lr) == (16, 2, 4, .1)
    for base, changes in ABLATIONS.items():
        assert len(planned("ablation", base, None, size=16, lr=.1)) == len(changes)   # and a given rate


@pytest.mark.parametrize("wrong, says", [(("final", "", ["resnet19"]), "unknown recipe"),
                                         (("ablation", "resnet", None), "unknown recipe with ablations"),
                                         (("ablation", "cpu_15min", ["no flips"]), "unknown change"),
                                         (("ablation", "cpu_15min", ["lookahead + x"]), "unknown change")])
def test_a_name_that_is_unknown_is_refused(wrong, says):
    with pytest.raises(InputError, match=says): planned(*wrong)


@pytest.fixture
def swept(tmp_path, tiny_registered, learnable, undrawn, monkeypatch):
    "A function that sweeps two variants of the tiny recipe and gives the rows; `trained`: what it trained"
    trained, train = [], accuracy.train
    def counted(recipe, *args, **kwargs):
        trained.append((recipe.opt.wd, recipe.seed, kwargs["resume"]))
        return train(recipe, *args, **kwargs, quiet=True, device="cpu")
    monkeypatch.setattr(accuracy, "train", counted)
    variants = [("as it is", TINY), ("more decay", TINY.but(opt={"wd": .01}))]
    def go(seeds=(0, 1), runs=variants, judge="test", file="rows.jsonl"):
        return list(sweep(runs, seeds, learnable, tmp_path / file, tmp_path / "work", judge))
    go.trained, go.file, go.work = trained, tmp_path / "rows.jsonl", tmp_path / "work"
    return go


def test_what_the_file_has_is_not_trained_again(swept):
    first = swept([0])
    first = json.loads(json.dumps(first))
    assert len(swept.trained) == 2 and read_rows(swept.file) == first
    again = swept()
    assert [t[:2] for t in swept.trained[2:]] == [(5e-4, 1), (.01, 1)] and again[:2] == first
    kept = {"recipe", "change", "data", "fingerprint", "pictures", "accuracy", "accuracy_tta",
            "cross_entropy", "ece", "seconds", "device", "versions", "seed", "petaflop", "lr", "settings"}
    assert kept <= first[0].keys() and first[0]["pictures"] == 48 and first[0]["training_pictures"] == 160


def test_a_sweep_that_was_killed_goes_on_with_the_run_that_it_had_begun(swept):
    whole = swept([0])[0]
    folder = next(p for p in swept.work.iterdir() if TINY.fingerprint() in p.name)
    rmtree(folder)
    begun, train = swept.trained[:], accuracy.train
    with pytest.raises(Killed), pytest.MonkeyPatch.context() as m:
        m.setattr(accuracy, "train", lambda *a, **k: train(*a, **k, cbs=KillAt("after_epoch", 1)))
        swept([0], file="other.jsonl")
    assert list(folder.glob("checkpoints/*.pt"))
    row = swept([0], file="other.jsonl")[0]
    assert swept.trained[len(begun) + 1] == (5e-4, 0, True), "resumed"
    same = ("accuracy", "cross_entropy", "petaflop", "fingerprint")
    assert {k: row[k] for k in same} == {k: whole[k] for k in same} and row["resumed"] != whole["resumed"]


def test_a_sweep_that_was_killed_while_its_folder_was_made_begins_it_anew(swept, monkeypatch):
    from cifar_fastai.runs import run_folder
    with pytest.raises(Killed), pytest.MonkeyPatch.context() as m:
        def killed(path, *_):
            if path.name == "begun.json": raise Killed
            return write_json(path, *_)
        write_json = run_folder.write_json
        m.setattr(run_folder, "write_json", killed)
        swept([0])
    assert (next(swept.work.iterdir()) / "recipe.json").exists()
    assert len(swept([0])) == 2


def test_an_ablation_tells_of_the_holdout(swept):
    row, = swept([0], [("as it is", TINY.but(valid="holdout"))], judge="holdout")
    assert row["judged_on"] == "holdout" and row["pictures"] == 32 and row["training_pictures"] == 128


def test_the_table_has_mean_sd_and_the_difference_of_the_same_seeds():
    def row(change, seed, accuracy, **more):
        return {"recipe": "r", "change": change, "seed": seed, "accuracy": accuracy, "judged_on": "test",
                "fingerprint": change, "data_fingerprint": "d", "epochs": 2, "training_pictures": 9,
                "petaflop": .5, "seconds": 10 + seed, **more}
    rows = [row("as it is", 0, .90), row("as it is", 1, .92), row("b", 0, .91, accuracy_tta=.95),
            row("b", 1, .94)]
    lines = table(rows).splitlines()[2:]
    assert lines[0] == "| `r` | as it is | 2 | 91.00 ± 1.41 |  |  | 2 | 0.5 | 10 |"
    assert lines[1] == "| `r` | b | 2 | 92.50 ± 2.12 | 95.00 | 1.50 ± 0.71 | 2 | 0.5 | 10 |"
    edited = table([*rows, row("b of before", 0, .5, base="an earlier r")]).splitlines()[-1]
    assert edited.split(" | ")[5] == "-40.00", "rows of before do not say which recipe was changed"
    known = [r | {"base": "r"} for r in rows] + [row("b of before", 0, .5, base="an earlier r")]
    assert table(known).splitlines()[2:4] == lines, "no pair with an earlier recipe"
    assert table(known).splitlines()[-1] == "| `r` | b of before | 1 | 50.00 |  |  | 2 | 0.5 | 10 |"
    other = table([*rows, row("b of other runs", 0, .5, given={"bs": 64})]).splitlines()[-1]
    assert other == "| `r` | b of other runs | 1 | 50.00 |  |  | 2 | 0.5 | 10 |"


def test_machines_stand_above_a_table_of_one_and_in_each_line_of_a_table_of_several():
    def row(recipe, device):
        return {"recipe": recipe, "change": "as it is", "judged_on": "test", "data": "jpeg", "epochs": 2,
                "fingerprint": recipe, "data_fingerprint": "d", "training_pictures": 9, "pictures": 3,
                "seed": 0, "accuracy": .9, "petaflop": .5, "seconds": 10, "settings": {"size": 32},
                "device": device, "versions": {"torch": "2.15.0"}}
    one = accuracy.page([row("a", "one"), row("b", "one")])
    assert one.splitlines()[0].endswith("(mean ± sd over n seeds). one, torch 2.15.0.")
    assert one.count("torch") == 1 and "machine" not in one
    two = accuracy.page([row("a", "one"), row("b", "another")])
    assert two.splitlines()[0].endswith("(mean ± sd over n seeds).")
    assert two.splitlines()[2].endswith("| seconds | machine |")
    assert [line.split(" | ")[-1] for line in two.splitlines()[4:]] == [
        "one, torch 2.15.0 |", "another, torch 2.15.0 |"]


def test_pages_keep_their_tables_where_the_results_are_not_there(tmp_path, capsys):
    page = Path(__file__).parents[1] / "README.md"
    (copy := tmp_path / "page.md").write_text(page.read_text())
    for flag in ("--page", "--picture"):
        argv = [flag, str(copy), "--json", str(tmp_path / "typo.jsonl")]
        with pytest.raises(SystemExit): accuracy.main(argv)
        assert "no results at" in capsys.readouterr().err and copy.read_text() == page.read_text()


def test_rates_refuses_what_it_tries_itself(tmp_path, capsys):
    with pytest.raises(SystemExit): accuracy.main(["digits", "--plan", "rates", "--bs", "64"])
    assert "--bs and --lr have no meaning for rates" in capsys.readouterr().err


def test_every_label_of_the_picture_stands_inside_its_axes_and_no_tick_on_another():
    names = "jpeg", "cifar10"
    rows = [{"recipe": "a_recipe_with_a_long_name", "change": "as it is", "judged_on": "test", "data": name,
             "fingerprint": "f", "data_fingerprint": name, "petaflop": work, "accuracy": .9,
             "accuracy_tta": .91} for name in names for work in (.35, 3.3)]
    fig = accuracy.drawn(rows, json.loads(accuracy.ANCHORS.read_text()))
    fig.draw_without_rendering()
    assert len(fig.axes) == len(names)
    for ax in fig.axes:
        box = ax.get_window_extent()
        for text in ax.texts:
            place = text.get_window_extent()
            assert box.x0 <= place.x0 and place.x1 <= box.x1, text.get_text()
        ticks = [t.get_window_extent() for t in ax.get_xticklabels() if t.get_text()]
        assert all(a.x1 < b.x0 for a, b in zip(ticks, ticks[1:])) and len(ax.texts) > 4


def test_work_is_counted_from_multiplications_and_additions_forward_and_back():
    "A 1×1 convolution: 2·C·O·H·W forward, as much for the weights, none for pictures without gradient"
    class Learn: model = nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.AdaptiveAvgPool2d(1))
    one = petaflop(Learn, {8: 1}) * 1e15
    assert one == 2 * 2 * 3 * 5 * 64 and petaflop(Learn, {8: 7, 16: 2}) * 1e15 == pytest.approx(one * (7 + 8))
    Learn.model = resnet18()
    assert petaflop(Learn, {32: 50_000 * 20}) == pytest.approx(3.33, rel=.02)


def test_the_found_rate_is_compared_with_a_grid_around_it(swept, learnable, monkeypatch):
    monkeypatch.setattr(accuracy, "RATES", TINY.but(valid="holdout", tta="none"))
    monkeypatch.setattr(accuracy, "product", lambda *_: [("tiny", 32)])
    rows = list(accuracy.rates(learnable, [0], swept.file, swept.work, epochs=1))
    found = rows[0]["lr"]
    assert all(r["given"] == {"epochs": 1} and r["base"] == rows[0]["fingerprint"] for r in rows)
    assert [r["lr"] for r in rows] == pytest.approx([found, found / 4, found / 2, 2 * found, 4 * found])
    best = max(r["accuracy"] for r in rows)
    points = f"{100 * (best - rows[0]['accuracy']):.2f}"
    first, last = accuracy.lost(rows).splitlines()
    assert first.endswith(f"lost {points}") and last == f"lost in the mean, n=1: {points} points"
    assert all(r["judged_on"] == "holdout" for r in rows)


def test_what_is_lost_is_lost_within_a_seed():
    "The found rate is the best in both seeds, though one seed's best is above the other's"
    rows = [{"recipe": "r", "seed": seed, "change": change, "lr": lr, "accuracy": value}
            for seed, best in ((0, .80), (1, .83)) for change, lr, value in
            (("as it is", .1, best), ("2 × the rate", .2, best - .01))]
    assert accuracy.lost(rows).splitlines()[-1] == "lost in the mean, n=2: 0.00 ± 0.00 points"
    rows[3]["accuracy"] = .85
    assert accuracy.lost(rows).splitlines()[-1] == "lost in the mean, n=2: 1.00 ± 1.41 points"


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(InputError, match="line 2: no JSON"): read_rows(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("name", ["docs/accuracy.md", "README.md"])
def test_the_tables_of_a_page_are_those_of_the_results_and_ablations_stay_out_of_the_readme(name, tmp_path):
    page = Path(__file__).parents[1] / name
    (copy := tmp_path / "page.md").write_text(page.read_text().replace(" | ", " | 1"))
    accuracy.main(["--page", str(copy)])
    blocks = [re.findall(rf"(?s)<!-- {block} -->.*?<!-- /{block} -->", page.read_text())
              for block in ("accuracy", "ablations")]
    assert [len(found) for found in blocks] == [1, name.startswith("docs")]
    assert all(block in copy.read_text() for found in blocks for block in found)
