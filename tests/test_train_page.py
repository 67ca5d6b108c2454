"""What docs/train.md shows in Python and JSON runs as it stands there, and comes to something."""
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import tiny
from shown import blocks, shorter

from cifar_fastai import Recipe, policy
from cifar_fastai.runs.run_folder import load_recipe
from cifar_fastai.runs.verify import verify_run

PAGE = (Path(__file__).parent.parent / "docs" / "train.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("all_cores")
def test_the_amended_recipe_leaves_a_whole_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(shorter(blocks(PAGE, "python")[0], ("epochs=5", "epochs=1, size=16")), names)
    folder = names["run"].folder
    assert verify_run(folder)[0] == [] and folder.resolve().parent == tmp_path / "runs" / "mine"


def test_single_parts_work_on_stock_fastai_as_the_page_shows_them(tmp_path, monkeypatch):
    "With fewer epochs and a small net, on pictures in folders"
    tiny.write_folder(tiny.learnable(), tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    block = next(b for b in blocks(PAGE, "python") if "DataBlock" in b)
    names = {}
    exec("from tiny import tiny_net\n" + shorter(
        block, ("resnet18(n_out=dls.c)", "tiny_net(dls.c), cbs=None"), ("cycle(5", "cycle(1")), names)
    assert isinstance(names["learn"], names["Learner"]) and list(Path("checkpoints").glob("*.pt"))
    plt.close("all")


def test_the_file_is_the_recipe_that_it_looks_like(tmp_path):
    (tmp_path / "mine.json").write_text(blocks(PAGE, "json")[0])
    aug = policy.from_dict({"pad": 4, "flip": .5})
    found = load_recipe(tmp_path / "mine.json", name="mine")
    assert found == Recipe(name="mine", model="resnet18", epochs=5, schedule="flat_cos",
                           regularise={"mixup": .4}, aug=aug)
