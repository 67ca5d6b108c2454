"""What the README shows in Python and JSON runs as it stands there, and comes to something."""
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import tiny
import torch
from shown import blocks, shorter

from cifar_fastai import policy, train
from cifar_fastai.runs.run_folder import load_recipe

README = (Path(__file__).parent.parent / "README.md").read_text()
LINES = blocks(README, "python")[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("all_cores")
def test_the_notebook_cell_trains_a_net_that_knows_digits():
    names = {}
    exec(shorter(LINES, ("n_epoch=20", "n_epoch=4"), ("cycle(20", "cycle(4")), names)
    learn, interp, out = (names[k] for k in ("learn", "interp", "out"))
    assert interp.accuracy > .85 and learn.validate()[1] == pytest.approx(interp.accuracy, abs=.01)
    assert out.maps.shape[-2:] == (32, 32) and len(out.maps) == 64 == len(out.logits)
    assert (out.logits.argmax(1) == out.target).all(), "it explains the class said"
    assert len(plt.get_fignums()) == 3, "range test, mistakes, Grad-CAM"
    plt.close("all")


def test_the_notebook_lines_end_in_the_weights_of_the_recipe(tmp_path, undrawn):
    from recipes.resnet18_20ep import recipe
    lines = LINES.split("\n\n")[:2]
    lines[1] = shorter(lines[1], ('"digits", bs=64', "data, bs=8"), ("resnet18", "tiny_net"), ("20", "4"))
    names = {"data": tiny.learnable(), "tiny_net": tiny.tiny_net}
    exec("\n".join(lines), names)
    learn, small = names["learn"], recipe.but(model="tiny", epochs=4)
    runs = [train(small.but(seed=k), names["data"], tmp_path / str(k), quiet=True) for k in (0, 1)]
    weights = [run.learn.model.state_dict() for run in runs]
    assert [_same(learn.model.state_dict(), w) for w in weights] == [True, False]
    plt.close("all")


def _same(a, b): return all(torch.equal(v, b[k]) for k, v in a.items())


def test_commands_are_described_in_the_same_words_in_the_readme_and_in_help():
    from recipes.__main__ import COMMANDS, __doc__ as text
    row = r"^ *python -m recipes(?: (\w+))?(?: .*?)?(?:  +# |  +)(\S.*)$"
    ours, said = (dict(re.findall(row, t, re.M)) for t in (text, README))
    assert ours == {k: said[k] for k in ours} and {*ours} == {"", *COMMANDS}


def test_the_file_for_pictures_that_must_not_be_mirrored_is_one(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "your-own-pictures.md").read_text()
    (tmp_path / "mine.json").write_text(blocks(page, "json")[0])
    found = load_recipe(tmp_path / "mine.json", name="mine")
    assert (found.size, found.aug, found.opt.name) == (64, policy.pad_crop(), "muon")
