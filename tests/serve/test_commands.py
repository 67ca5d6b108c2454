"""predict, explain and export: what they print, draw and write, and what they refuse."""
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CLASSES, learnable as make, tiny_net

from cifar_fastai.data import read_picture
from cifar_fastai.gradcam import GradCAM, heatmaps
from cifar_fastai.plots import overlay
from cifar_fastai.serve import Classifier, export_onnx, export_torch
from cifar_fastai.weights import About, save_weights
from recipes.__main__ import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_registered):
    "A net that has learnt the four colours"
    data = make()
    torch.manual_seed(0)
    net, path = tiny_net(4), tmp_path_factory.mktemp("run") / "weights.safetensors"
    about = About("tiny", "bn", CLASSES, 16, tuple(data.mean), tuple(data.std))
    known = Classifier(net, about)
    x, y = known.inputs(list(data.x_train)), torch.tensor(data.y_train).long()
    opt = torch.optim.Adam(net.parameters(), .02)
    net.train()
    for _ in range(60):
        opt.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        opt.step()
    save_weights(path, net, about)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    "A folder of ten test pictures, of several sizes and modes; their classes"
    data, folder, classes = make(), tmp_path_factory.mktemp("pictures"), {}
    for k in range(10):
        image = Image.fromarray(data.x_test[k]).resize((16 + 9 * k, 16 + 5 * k), Image.Resampling.NEAREST)
        if k == 3: image = image.convert("RGBA")
        path = folder / ("inside" if k > 7 else ".") / f"{k}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
        classes[str(path)] = data.classes[data.y_test[k]]
    return folder, classes


def ran(capsys, *argv) -> str:
    main([str(a) for a in argv])
    return capsys.readouterr().out


def test_a_folder_is_predicted_and_the_net_is_right(weights, pictures, capsys):
    rows = json.loads(ran(capsys, "predict", weights, pictures[0], "--json"))
    assert [r["picture"] for r in rows] == sorted(pictures[1])
    assert np.mean([r["class"] == pictures[1][r["picture"]] for r in rows]) >= .9
    probs = Classifier.load(weights).probabilities([read_picture(r["picture"], 16) for r in rows])
    assert [r["probability"] for r in rows] == pytest.approx(probs.amax(1).tolist(), abs=1e-6)


def test_json_csv_and_text_say_the_same(weights, pictures, capsys):
    rows = json.loads(ran(capsys, "predict", weights, pictures[0], "--json", "--top", 3))
    text = ran(capsys, "predict", weights, pictures[0], "--csv", "--top", 3)
    table = list(csv.DictReader(io.StringIO(text)))
    lines = ran(capsys, "predict", weights, pictures[0], "--top", 3).splitlines()
    for r, t, line in zip(rows, table, lines, strict=True):
        assert len(r["top"]) == 3 and r["class"] == r["top"][0]["class"] == t["class"]
        assert t["class_3"] == r["top"][2]["class"]
        assert float(t["probability_2"]) == r["top"][1]["probability"]
        said = line.split()
        assert said[0] == r["picture"] and said[1::3] == [f["class"] for f in r["top"]]
        assert float(said[2]) == pytest.approx(100 * r["probability"], abs=.051)


def process(*argv, given=b"", after=""):
    "The command in a process of its own, where the tiny net is known"
    code = "from tiny import register; register(); from recipes.__main__ import main; import sys; "
    command = [sys.executable, "-c", code + "main(sys.argv[1:])" + after, *map(str, argv)]
    return subprocess.run(command, input=given, capture_output=True, cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": "tests/helpers:."})


def test_standard_input_is_a_picture_and_a_damaged_one_costs_only_itself(weights, pictures, tmp_path):
    good, bad = sorted(pictures[1])[0], tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    done = process("predict", weights, "-", bad, good, "--json", given=Path(good).read_bytes())
    rows = json.loads(done.stdout)
    assert done.returncode == 1 and [r["picture"] for r in rows] == ["standard input", good]
    assert rows[0]["probability"] == rows[1]["probability"] and done.stderr.count(b"\n") == 1
    assert f"cannot read {bad}" in done.stderr.decode()


def test_one_map_is_drawn_at_the_pictures_own_size(weights, pictures, tmp_path, capsys):
    path, out, net = str(pictures[0] / "5.png"), tmp_path / "heat.png", Classifier.load(weights)
    least = int(net.probabilities([read_picture(path, 16)])[0].argmin())
    said = ran(capsys, "explain", weights, path, "--layer", "layer3", "--method", "layercam", "--target",
               CLASSES[least], "--out", out)
    drawn, whole = np.asarray(Image.open(out)), read_picture(path, None)
    assert drawn.shape == whole.shape == (41, 61, 3) and str(out) in said
    cam, xb = GradCAM(net.net, "layer3"), net.inputs([read_picture(path, 16)])
    raws = [cam(xb, target, method="layercam").raw for target in (least, None)]
    want = 255 * overlay(whole, heatmaps(raws, (41, 61))[0][0].numpy())
    assert np.abs(drawn - want).max() <= 1 and np.abs(drawn - whole.astype(float)).max() > 20
    alone = 255 * overlay(whole, heatmaps(raws[:1], (41, 61))[0][0].numpy())
    assert np.abs(drawn - alone).max() > 5, "of an unlikely class: faint beside the predicted one's"


def test_a_runs_folder_stands_for_its_weights(weights, pictures, capsys):
    said = [ran(capsys, "predict", run, pictures[0], "--json") for run in (weights, weights.parent)]
    assert said[0] == said[1] and len(json.loads(said[0])) == 10


def test_a_name_that_is_no_utf8_is_shown_by_its_bytes(weights, pictures, tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(path, "wb") as f: f.write(Path(sorted(pictures[1])[0]).read_bytes())
    for flags in ((), ("--json",), ("--csv",)):
        done = process("predict", weights, os.fsdecode(path), *flags)
        assert done.returncode == 0 and b"caf\\udce9.png" in done.stdout, done.stderr


def test_several_pictures_and_layers_are_a_grid(weights, pictures, tmp_path, capsys):
    out = tmp_path / "grid.png"
    shown = sorted(pictures[1])[:3]
    said = ran(capsys, "explain", weights, *shown, "--layer", "layer1", "layer3", "--out", out)
    with Image.open(out) as image: assert image.width > 400 and image.height > 400
    assert len(said.splitlines()) == 4


@pytest.mark.parametrize("argv, says", [
    (["predict", "W", "nowhere.png"], "nowhere.png is not there"),
    (["predict", "W", "EMPTY"], "holds no pictures"),
    (["predict", "nowhere", "P"], "no weights at nowhere"), (["predict", "EMPTY", "P"], "holds no weights"),
    (["predict", "W", "P", "--top", "0"], "--top 0"), (["predict", "W", "P", "--tpo", "1"], "unrecognized"),
    (["explain", "W", "P", "--out", "x.jpg"], "name a .png"), (["explain", "W", "P"], "--out"),
    (["explain", "W", "P", "--out", "x.png", "--target", "dgo"], "Did you mean dog"),
    (["explain", "W", "P", "--out", "x.png", "--layer", "layr3"], "Did you mean layer"),
    (["explain", "W", "P", "--out", "x.png", "--method", "gradcan"], "Did you mean gradcam"),
    (["explain", "W", "P", "--out", "x.png", "--alpha", "2"], "from 0 to 1"),
    (["predict", "W", "P", "--device", "cdua"], "device 'cdua' cannot be used here"),
    (["export", "W"], "no file to export"), (["export", "W", "--onnx", "EMPTY"], "empty is a folder")])
def test_a_wrong_input_is_one_line(weights, pictures, tmp_path, monkeypatch, capsys, argv, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    known = {"W": weights, "P": sorted(pictures[1])[0], "EMPTY": tmp_path / "empty"}
    with pytest.raises(SystemExit) as end: main([str(known.get(a, a)) for a in argv])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and says in error
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("normalise", [True, False])
def test_an_exported_net_gives_the_logits_of_torch(weights, pictures, tmp_path, normalise):
    pytest.importorskip("onnx"), pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    net = Classifier.load(weights, "cpu")
    assert export_onnx(net, tmp_path / "net.onnx", normalise) < 1e-4
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"))
    shown = [read_picture(p, 16) for p in sorted(pictures[1])]
    x = net.inputs(shown) if not normalise else torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2) / 255
    logits = session.run(None, {"pictures": x.float().contiguous().numpy()})[0]
    assert torch.allclose(torch.from_numpy(logits).softmax(1), net.probabilities(shown), atol=1e-4)


@pytest.mark.parametrize("normalise", [True, False])
def test_exporting_leaves_the_net_where_and_what_it_was(weights, tmp_path, normalise):
    net = Classifier.load(weights, "cpu")
    net.net.bfloat16()
    export_torch(net, tmp_path / "net.pt2", normalise)
    assert {p.dtype for p in net.net.parameters()} == {torch.bfloat16}


def test_torch_export_is_read_back(weights, pictures, tmp_path, capsys):
    said = ran(capsys, "export", weights, "--pt2", tmp_path / "net.pt2")
    module, net = torch.export.load(str(tmp_path / "net.pt2")).module(), Classifier.load(weights, "cpu")
    shown = [read_picture(p, 16) for p in sorted(pictures[1])[:5]]
    x = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).float() / 255
    assert torch.allclose(module(x).softmax(1), net.probabilities(shown), atol=1e-5) and "within" in said


def test_predicting_imports_no_fastai(weights, pictures):
    done = process("predict", weights, sorted(pictures[1])[0], after="; print({'fastai'} & {*sys.modules})")
    assert done.stdout.endswith(b"set()\n"), done.stderr
