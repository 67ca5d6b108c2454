"The pointing game on real CIFAR-10 pictures and a net of 20 epochs: is the heat where the object was pasted?"
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.maps import canvases, in_quarter, normalised
from cifar_fastai import load_data, load_weights
from cifar_fastai.gradcam.cam import GradCAM, default_layer, stages_of
from cifar_fastai.gradcam.methods import METHODS, SIGNED, upsample

DATA = Path(__file__).parents[3] / "shared/data"
WEIGHTS = DATA / "resnet18_20ep-jpeg-seed0.fp16.safetensors"
PICTURES = DATA / "cifar-10-python-first1000.tar.xz"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (WEIGHTS.exists() and PICTURES.exists()),
                                                   reason="needs real CIFAR-10 pictures and a net's weights")]


@pytest.fixture(scope="module")
def pasted():
    "A net; 40 canvases of 64×64, each with a picture in one quarter of the texture of another class"
    (model, about), data = load_weights(WEIGHTS), load_data(PICTURES, unverified=True)
    made, classes, quarters = canvases(data.x_test, np.asarray(data.y_test), 40)
    return model.float(), normalised(made, about), torch.from_numpy(classes), torch.from_numpy(quarters)


@pytest.fixture(scope="module", params=list(METHODS))
def found(pasted, request):
    "By layer: how often the hottest place lies in the right quarter, and the share of the heat there"
    model, xb, classes, quarters = pasted
    cam, found = GradCAM(model, [*stages_of(model), default_layer(model)]), {}
    for name, raw in cam(xb, classes, method=request.param, bs=20).raw.items():
        found[name] = in_quarter(upsample(raw, (64, 64)), quarters)
    return request.param, found


def test_the_default_and_the_last_stage_find_the_pasted_picture_and_earlier_ones_do_not(found):
    method, found = found
    least = .6 if method in SIGNED else .33
    for name in ("layer4", "layer4+layer2"): assert found[name][0] > .85 and found[name][1] > least
    hits = {name: hit for name, (hit, _) in found.items()}
    assert hits["layer1"] < .45 and max(hits[f"layer{k}"] for k in (1, 2, 3)) < hits["layer4+layer2"]
