"""What README and docs/train.md show in Python and JSON runs as it stands there, and comes to something."""
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import tiny
import torch

from cifar_fastai import Recipe, policy, train
from cifar_fastai.runs.run_folder import load_recipe

README = (Path(__file__).parent.parent / "README.md").read_text()
TRAIN = (Path(__file__).parent.parent / "docs" / "train.md").read_text()
LINES, AMENDED = (re.findall(r"```python\n(.*?)```", text, re.S)[0] for text in (README, TRAIN))


def _shorter(text: str, *changes: tuple[str, str]) -> str:
    "The lines with smaller pictures or nets and fewer epochs; each change must have something to change"
    for a, b in changes:
        assert a in text
        text = text.replace(a, b)
    return text


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("all_cores")
def test_the_notebook_cell_trains_a_net_that_knows_digits():
    names = {}
    exec(_shorter(LINES, ("n_epoch=20", "n_epoch=4"), ("cycle(20", "cycle(4")), names)
    learn, interp, out = (names[k] for k in ("learn", "interp", "out"))
    assert interp.accuracy > .85 and learn.validate()[1] == pytest.approx(interp.accuracy, abs=.01)
    assert out.maps.shape[-2:] == (32, 32) and len(out.maps) == 64 == len(out.logits)
    assert (out.logits.argmax(1) == out.target).all(), "it explains the class said"
    assert len(plt.get_fignums()) == 3, "range test, mistakes, Grad-CAM"
    plt.close("all")


def test_the_notebook_lines_end_in_the_weights_of_the_recipe(tmp_path, undrawn):
    from recipes.resnet18_20ep import recipe
    lines = LINES.split("\n\n")[:2]
    lines[1] = _shorter(lines[1], ('"digits", bs=64', "data, bs=8"), ("resnet18", "tiny_net"), ("20", "4"))
    names = {"data": tiny.learnable(), "tiny_net": tiny.tiny_net}
    exec("\n".join(lines), names)
    learn, small = names["learn"], recipe.but(model="tiny", epochs=4)
    runs = [train(small.but(seed=k), names["data"], tmp_path / str(k), quiet=True) for k in (0, 1)]
    weights = [run.learn.model.state_dict() for run in runs]
    assert [_same(learn.model.state_dict(), w) for w in weights] == [True, False]
    plt.close("all")


def _same(a, b): return all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("all_cores")
def test_the_amended_recipe_leaves_a_whole_run(tmp_path, monkeypatch):
    from cifar_fastai.runs.verify import verify_run
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(_shorter(AMENDED, ("epochs=5", "epochs=1, size=16")), names)
    folder = names["run"].folder
    assert verify_run(folder)[0] == [] and folder.resolve().parent == tmp_path / "runs" / "mine"


def test_commands_are_described_in_the_same_words_in_the_readme_and_in_help():
    from recipes.__main__ import COMMANDS, __doc__ as text
    row = r"^ *python -m recipes(?: (\w+))?(?: .*?)?(?:  +# |  +)(\S.*)$"
    ours, said = (dict(re.findall(row, t, re.M)) for t in (text, README))
    assert ours == {k: said[k] for k in ours} and {*ours} == {"", *COMMANDS}


def test_single_parts_work_on_stock_fastai_as_the_page_shows_them(tmp_path, monkeypatch):
    "With fewer epochs and a small net, on pictures in folders"
    tiny.write_folder(tiny.learnable(), tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    block = next(b for b in re.findall(r"```python\n(.*?)```", TRAIN, re.S) if "DataBlock" in b)
    names = {}
    exec("from tiny import tiny_net\n" + _shorter(
        block, ("resnet18(n_out=dls.c)", "tiny_net(dls.c), cbs=None"), ("cycle(5", "cycle(1")), names)
    assert isinstance(names["learn"], names["Learner"]) and list(Path("checkpoints").glob("*.pt"))
    plt.close("all")


def test_the_file_for_pictures_that_must_not_be_mirrored_is_one(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "your-own-pictures.md").read_text()
    (tmp_path / "mine.json").write_text(re.findall(r"```json\n(.*?)```", page, re.S)[0])
    found = load_recipe(tmp_path / "mine.json", name="mine")
    assert (found.size, found.aug, found.opt.name) == (64, policy.pad_crop(), "muon")


def test_the_file_is_the_recipe_that_it_looks_like(tmp_path):
    (tmp_path / "mine.json").write_text(re.findall(r"```json\n(.*?)```", TRAIN, re.S)[0])
    aug = policy.from_dict({"pad": 4, "flip": .5})
    found = load_recipe(tmp_path / "mine.json", name="mine")
    assert found == Recipe(name="mine", model="resnet18", epochs=5, schedule="flat_cos",
                           regularise={"mixup": .4}, aug=aug)
