"""What only a GPU can show: `pytest -m gpu` the day one is there."""
import json
import os
import subprocess
import sys

import pytest
import torch
from fastai.callback.core import Callback
from fastcore.basics import noop
from fits import resumed_alike
from tiny import learnable, tiny_net

from cifar_fastai import StopOnNonFinite, cifar_dataloaders, cifar_learner
from cifar_fastai.checkpoints.stop_on_nonfinite import NonFiniteLoss
from cifar_fastai.explain import GradCAMCallback
from cifar_fastai.tricks import Compiled

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


@pytest.fixture
def deterministic():
    "torch's deterministic algorithms, without which byte-equal resume is not promised on CUDA"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def make(workers=0, device="cuda", **kwargs):
    dls = cifar_dataloaders(learnable(), 32, "pad_crop_flip", num_workers=workers, device=device)
    learn = cifar_learner(dls, tiny_net, **{"precision": "fp32", "smoothing": 0.0} | kwargs)
    learn.logger = noop
    return learn


def weights(learn) -> dict: return {k: v.cpu().clone() for k, v in learn.model.state_dict().items()}


class Spoil(Callback):
    "A picture of NaN in the n-th batch"
    run_valid = False
    def __init__(self, n): self.n, self.before = n, None
    def before_batch(self):
        if self.learn.train_iter == self.n:
            self.before = weights(self.learn)
            self.learn.xb = (torch.full_like(self.xb[0], float("nan")),)


def test_a_loss_that_is_no_number_is_read_a_batch_later_and_the_step_taken_back():
    learn, spoil = make(), Spoil(3)
    with pytest.raises(NonFiniteLoss, match="epoch 0, batch 3"), learn.no_bar():
        learn.fit(1, .05, cbs=[StopOnNonFinite(), spoil])
    for name, value in weights(learn).items(): assert torch.equal(value, spoil.before[name]), name


def test_the_recorder_keeps_losses_on_the_device_and_fetches_them_once_an_epoch():
    learn, places = make(), []
    class Where(Callback):
        order = 90
        def after_batch(self):
            if self.training: places.append(self.recorder.losses[-1].device.type)
    with learn.no_bar(): learn.fit(1, .05, cbs=Where())
    assert set(places) == {"cuda"} and {v.device.type for v in learn.recorder.losses} == {"cpu"}
    own = make(device="cpu")
    with own.no_bar(): own.fit(1, .05)
    torch.testing.assert_close(torch.stack(learn.recorder.losses), torch.stack(own.recorder.losses),
                               atol=1e-3, rtol=0)


def test_pinned_workers_give_the_pictures_of_the_main_process():
    with_workers, alone = make(workers=2).dls, make().dls
    for dls in (with_workers, alone): dls.train.set_epoch(1)
    for (x, y), (u, v) in zip(with_workers.train, alone.train, strict=True):
        assert x.device.type == "cuda" and torch.equal(x, u) and torch.equal(y, v)
    with_workers.train.close()


def test_a_killed_fit_is_resumed_to_the_same_bytes(deterministic, tmp_path):
    def end(checkpoint, cbs):
        learn = make()
        with learn.no_bar(): learn.fit_one_cycle(3, .1, cbs=[checkpoint, *cbs])
        return weights(learn)
    assert resumed_alike(end, tmp_path)


def test_compiled_steps_leave_maps_and_weights_as_the_plain_net_has_them():
    found = []
    for cbs in ([], [Compiled()]):
        learn, maps = make(), GradCAMCallback("layer3", every=1, measure=False)
        with learn.no_bar(): learn.fit(1, .05, cbs=[maps, *cbs])
        found.append((maps.maps[1], weights(learn)))
    (maps, own), (others, compiled) = found
    torch.testing.assert_close(others, maps, atol=1e-2, rtol=0)
    for name, value in compiled.items(): torch.testing.assert_close(value, own[name], atol=1e-3, rtol=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_as_one_process(tmp_path):
    script, results = f"{__file__.rsplit('/', 1)[0]}/helpers/together.py", []
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for k, launch in enumerate(([], start)):
        subprocess.run([sys.executable, *launch, script, str(tmp_path / f"{k}.json"), "fitted", "predicted"],
                       check=True, env=os.environ | {"TOGETHER_ON": "cuda"})
        results.append(json.loads((tmp_path / f"{k}.json").read_text()))
    one, two = results
    assert two["fitted"]["losses"] == pytest.approx(one["fitted"]["losses"], abs=1e-4)
    assert two["predicted"]["targs"] == one["predicted"]["targs"]
