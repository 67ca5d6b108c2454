"""What the README shows in Python and JSON runs as it stands there, and comes to something."""
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from cifar_fastai import Recipe, policy
from cifar_fastai.runs.run_folder import load_recipe

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("all_cores")
def test_the_notebook_cell_trains_a_net_that_knows_digits():
    names = {}
    exec(BLOCKS[0], names)
    learn, interp, out = (names[k] for k in ("learn", "interp", "out"))
    assert interp.accuracy > .85 and learn.validate()[1] == pytest.approx(interp.accuracy, abs=.01)
    assert out.maps.shape[-2:] == (32, 32) and len(out.maps) == 64 == len(out.logits)
    assert (out.logits.argmax(1) == out.target).all(), "it explains the class said"
    assert len(plt.get_fignums()) == 3, "range test, mistakes, Grad-CAM"
    plt.close("all")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("all_cores")
def test_the_amended_recipe_leaves_a_whole_run(tmp_path, monkeypatch):
    from cifar_fastai.runs.verify import check
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(BLOCKS[1].replace("epochs=5", "epochs=1"), names)
    folder = names["run"].folder
    assert check(folder)[0] == [] and folder.resolve().parent == tmp_path / "runs" / "mine"


def test_the_file_is_the_recipe_that_it_looks_like(tmp_path):
    (tmp_path / "mine.json").write_text(re.findall(r"```json\n(.*?)```", README, re.S)[0])
    aug = policy.from_dict({"pad": 4, "flip": .5})
    found = load_recipe(tmp_path / "mine.json", name="mine")
    assert found == Recipe(name="mine", model="resnet18", epochs=5, schedule="flat_cos", mixup=.4, aug=aug)
