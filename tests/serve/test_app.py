"""The app: its function by hand, and its page in Chromium."""
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CLASSES, learnable as make, tiny_net

from cifar_fastai.data import read_picture
from cifar_fastai.errors import InputError
from cifar_fastai.serve import Classifier, build_app
from cifar_fastai.serve.app import PREDICTED, explain_one, mistakes_of
from cifar_fastai.weights import About


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    data = make()
    return Classifier(tiny_net(4).eval(), About("tiny", "bn", CLASSES, 16, tuple(data.mean), tuple(data.std)))


def picture(k=0, side=(40, 24)): return np.asarray(Image.fromarray(make().x_test[k]).resize(side))


def test_probabilities_are_the_nets_and_the_map_has_the_pictures_size(net):
    probs, over = explain_one(net, picture(), "layer3", "gradcam", PREDICTED, .5)
    want = net.probabilities([read_picture(picture(), 16)])[0].tolist()
    assert list(probs) == list(CLASSES) and list(probs.values()) == pytest.approx(want, abs=1e-5)
    assert over.shape == (24, 40, 3) and over.dtype == np.uint8
    assert np.array_equal(explain_one(net, picture(), "layer3", "gradcam", PREDICTED, 0.)[1], picture())


def test_a_target_changes_the_map_and_a_wrong_one_is_refused(net):
    maps = [explain_one(net, picture(), "layer3", "layercam", c, 1.)[1] for c in ("cat", "dog")]
    assert not np.array_equal(*maps)
    with pytest.raises(InputError, match="Did you mean dog"):
        explain_one(net, picture(), "layer3", "gradcam", "dgo", 1.)


def test_a_run_shows_its_mistakes_and_one_without_its_pictures_none(tmp_path, tiny_registered):
    from tiny import recipe, write_folder

    from cifar_fastai.runs import train
    data = write_folder(make(), tmp_path / "pictures")
    run = train(recipe.but(epochs=1, lr=.005), data, tmp_path / "run", quiet=True, device="cpu")
    found, worst = mistakes_of(run.folder), run.interp.misclassified(60).tolist()
    assert len(found) == len(worst) > 3
    assert np.array_equal(found[0][0], run.learn.dls.data.x_test[worst[0]])
    names = run.interp.names
    assert found[0][1] == f"{names[run.interp.decoded[worst[0]]]} (true {names[run.interp.targs[worst[0]]]})"
    shutil.rmtree(data)
    assert mistakes_of(run.folder) == []


def test_a_port_that_is_taken_is_one_line(net, monkeypatch, capsys):
    from recipes.__main__ import main
    class Taken:
        def launch(self, **_): raise OSError("Cannot find empty port in range: 80-80")
    monkeypatch.setattr("cifar_fastai.serve.Classifier.load", lambda *_: net)
    monkeypatch.setattr("cifar_fastai.serve.build_app", lambda *_: Taken())
    monkeypatch.setattr("cifar_fastai.serve.mistakes_of", lambda _: [])
    with pytest.raises(SystemExit) as end: main(["app", "a run", "--port", "80"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and "cannot listen: Cannot find empty port" in error


def test_a_picture_that_is_given_is_predicted_and_explained(net, tmp_path, browser):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install -e '.[app]'")
    Image.fromarray(picture(1)).save(tmp_path / "p.png")
    best = CLASSES[int(net.probabilities([read_picture(tmp_path / "p.png", 16)])[0].argmax())]
    app = build_app(net, [(picture(2), "cat (true dog)")])
    app.launch(quiet=True, prevent_thread_lock=True, server_name="127.0.0.1")
    try:
        page = browser.new_page()
        page.goto(app.local_url)
        page.locator("input[type=file]").first.set_input_files(str(tmp_path / "p.png"))
        page.locator("[data-testid=label-output-value]").wait_for(timeout=60_000)
        assert page.locator("[data-testid=label-output-value]").inner_text().strip() == best
        page.get_by_role("tab", name="Mistakes").click()
        assert page.get_by_text("cat (true dog)").first.is_visible()
        page.close()
    finally: app.close()
