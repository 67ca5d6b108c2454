"What must not break it, the part about epochs: F3, F14, F16, F18–F21, F24, F26, F29"
import errno
import os
import signal
import time

import albumentations as A
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fits import SignalAt
from made import picture_folder
from process import at, hashes, recipe, run, send, whole

from cifar_fastai import GradCAM, GradCAMCallback
from cifar_fastai.checkpoints.checkpoint import Checkpoint
from cifar_fastai.checkpoints.stop_on_signal import StopOnSignal, Stopped
from cifar_fastai.errors import InputError
from cifar_fastai.explain.predict import predict_once
from cifar_fastai.loaders import batch_dl as batch_loader, workers
from cifar_fastai.loaders.augment import build_augmentation, draw_from
from cifar_fastai.loaders.block import cifar_dataloaders
from cifar_fastai.training.learner import ImageLearner

kill = send(signal.SIGKILL)


# ---------------------------------------------------------------- F3: signals, and what they leave in a model

class Signals(torch.nn.Module):
    "Sends SIGTERM when it is run the n-th time"
    def __init__(self, n): super().__init__(); self.n = n
    def forward(self, x):
        self.n -= 1
        if not self.n: os.kill(os.getpid(), signal.SIGTERM)
        return x


def with_signal(learn, n):
    learn.model.layer4 = Signals(n)
    return {k: v.clone() for k, v in learn.model.state_dict().items()}


def test_F3_a_signal_in_a_grad_cam_pass_leaves_no_hook_and_no_gradient(learner):
    learn = learner()
    with_signal(learn, 1)
    with pytest.raises(Stopped, match="SIGTERM"), StopOnSignal():
        GradCAM(learn.model, "layer3")(torch.zeros(2, 3, 16, 16))
        pytest.fail("the pass went on")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in learn.model.modules())
    assert all(p.grad is None for p in learn.model.parameters())


@pytest.mark.parametrize("predict", [lambda learn: learn.get_preds(), lambda learn: learn.validate(),
                                     lambda learn: predict_once(learn, learn.dls.valid)])
def test_F3_a_signal_in_a_pass_after_a_fit_adds_no_epoch_and_says_where_it_came(learner, predict):
    learn, lines = learner(), []
    learn.logger, learn.epoch_table.write = print, lines.append
    learn.fit(1)
    told, values = list(lines), list(learn.recorder.values)
    with pytest.raises(Stopped, match="^stopped by SIGTERM outside a fit[.]$"), StopOnSignal() as stop:
        learn.add_cbs([stop, SignalAt("after_pred", 0, signal.SIGTERM)])
        predict(learn)
    assert lines == told and len(told) == 2 and learn.recorder.values in (values, [])


def test_F3_a_signal_in_a_range_test_leaves_the_weights_as_they_were(learner):
    learn = learner()
    before = with_signal(learn, 9)
    with pytest.raises(Stopped, match="SIGTERM"), StopOnSignal() as stop:
        learn.add_cb(stop)
        learn.lr_find(num_it=40, show_plot=False)
    assert all(v.equal(before[k]) for k, v in learn.model.state_dict().items())
    assert learn.model.layer4.n == 0, "at the edge of the batch in which it came"
    learn.fit(1, 1.)
    assert not all(v.equal(before[k]) for k, v in learn.model.state_dict().items()), "the control"


def test_F16_a_head_of_another_width_than_the_classes_is_refused(learner):
    with pytest.raises(InputError, match="head has 3 outputs but the data has 4 classes"): learner(n_out=3)


# ---------------------------------------------------------------- F14: workers

def in_a_worker(act, pids):
    "Let each worker write down its number, and do `act` at its third batch"
    def prepare():
        batches, begin = [3], workers._begin
        def noted(n):
            with open(pids, "a") as file: file.write(f"{os.getpid()}\n")
            begin(n)
        make = batch_loader.BatchDL.make_batch
        def made(self, key):
            batches[0] -= 1
            if not batches[0]: act()
            return make(self, key)
        workers._begin, batch_loader.BatchDL.make_batch = noted, made
    return prepare


def hang(): time.sleep(1000)
def shared_memory_is_full(): raise OSError(errno.ENOSPC, "No space left on device: '/torch_shm'")
def bus_error(): os.kill(os.getpid(), signal.SIGBUS)


@pytest.mark.parametrize("act, says", [(kill, "exited unexpectedly"), (hang, "no batch within 2 seconds"),
                                       (bus_error, "insufficient shared memory"),
                                       (shared_memory_is_full, "No space left on device: '/torch_shm'")],
                         ids=["killed", "hanging", "bus error", "no shared memory"])
def test_F14_a_lost_worker_ends_the_run_in_one_line_and_leaves_no_process(tmp_path, act, says):
    def prepare():
        in_a_worker(act, tmp_path / "pids")()
        real = workers.Workers.__init__
        if act is hang: workers.Workers.__init__ = lambda self, *args: real(self, *args[:3], 2.)
    status, text = run("--out", tmp_path / "run", "--workers", 2, prepare=prepare)
    assert status == 1 and says in text and "Traceback" not in text, text
    assert "a worker process failed at batch" in text.splitlines()[-1] and "training picture" in text
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    until = time.monotonic() + 15
    while any(map(alive, pids)) and time.monotonic() < until: time.sleep(0.1)
    assert len(pids) >= 2 and not any(map(alive, pids))


def alive(pid) -> bool:
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    return True


class Fails(A.ImageOnlyTransform):
    "Augmentation that cannot do with dark pictures"
    def apply(self, img, **params):
        if img.mean() < 5: raise RuntimeError("too dark")
        return img


@pytest.mark.parametrize("n", [0, 2])
def test_F14_a_picture_that_cannot_be_augmented_is_named(tmp_path, n):
    from PIL import Image
    picture_folder(tmp_path / "d", n=40)
    Image.new("RGB", (32, 32)).save(tmp_path / "d/train/dog/7.png")
    status, text = run("--out", tmp_path / "run", "--workers", n, data=str(tmp_path / "d"),
                       recipe=recipe.but(aug=[Fails(p=1)], limit=None))
    assert status == 1 and "dog/7.png" in text.splitlines()[-1] and "too dark" in text, text


# ---------------------------------------------------------------- F18 to F21: the same, and not the same

@pytest.mark.parametrize("n", [0, 2])
def test_F18_the_same_seed_gives_the_same_weights_history_and_maps(tmp_path, n):
    status, text = run("--out", tmp_path / "run", "--workers", n)
    assert status == 0 and hashes(tmp_path / "run") == hashes(whole()), text


def test_F19_four_workers_give_what_none_give(tmp_path):
    status, text = run("--out", tmp_path / "run", "--workers", 4)
    assert status == 0 and hashes(tmp_path / "run") == hashes(whole()) and "4 loader workers" in text, text


@pytest.mark.parametrize("epoch", range(recipe.epochs))
def test_F20_interrupted_at_any_epoch_a_run_ends_like_an_undisturbed_one(tmp_path, epoch):
    folder = tmp_path / "run"
    assert run("--out", folder, prepare=lambda: at(Checkpoint, "after_epoch", kill, epoch))[0] == -9
    assert run("--resume", folder, "--workers", 2 * (epoch == 1))[0] == 0
    assert hashes(folder) == hashes(whole())


class Stop(Callback):
    "As SIGKILL after the second epoch: no callback hears of it"
    order = Checkpoint.order + 1
    def after_epoch(self):
        if self.epoch == 1: raise KeyboardInterrupt


def test_F20_in_a_notebook_a_fit_goes_on_where_it_was_interrupted(learner, tmp_path):
    undisturbed, interrupted, resumed = learner(), learner(), learner()
    undisturbed.fit_one_cycle(4, 0.1)
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit_one_cycle(4, 0.1, cbs=[Checkpoint(tmp_path), Stop()])
    resumed.fit_one_cycle(4, 0.1, cbs=Checkpoint(tmp_path, resume=True))
    weights = undisturbed.model.state_dict()
    assert all(v.equal(weights[k]) for k, v in resumed.model.state_dict().items())
    assert not all(v.equal(weights[k]) for k, v in interrupted.model.state_dict().items()), "the control"
    rows = [[list(row) for row in learn.recorder.values] for learn in (resumed, undisturbed)]
    assert rows[0] == rows[1] and len(rows[0]) == 4


def test_F21_another_seed_gives_other_bytes_in_every_file(tmp_path):
    assert run("--out", tmp_path / "run", "--seed", 1)[0] == 0
    found, same = hashes(tmp_path / "run"), hashes(whole())
    assert found.keys() == same.keys() and all(found[n] != same[n] for n in same)


def test_F21_another_epoch_is_another_order_and_other_pictures(digits):
    dl = cifar_dataloaders(digits, 64, seed=0, num_workers=0, device="cpu").train
    shown = []
    for epoch in (0, 1, 0):
        dl.set_epoch(epoch)
        shown.append([b[0].numpy().tobytes() for b in dl])
    assert shown[0] == shown[2] and not set(shown[0]) & set(shown[1])


# ---------------------------------------------------------------- F24: what is drawn

def test_F24_no_draw_repeats_across_workers_and_epochs_and_the_test_set_has_none(digits):
    from dataclasses import replace
    one = replace(digits, x_train=np.repeat(digits.x_train[:1], 256, 0), y_train=digits.y_train[:256])
    dls = cifar_dataloaders(one, 16, "pad_crop_flip_cutout", num_workers=2, device="cpu")
    try:
        batches = [b[0].numpy().tobytes() for _ in range(3) for b in dls.train]
        tests = [torch.cat([b[0] for b in dls.valid]).numpy() for _ in range(2)]
    finally: dls.train.close(), dls.valid.close()
    assert len(batches) == 48 == len(set(batches))
    plain = (one.x_test / 255 - one.mean) / one.std
    assert np.array_equal(tests[0], tests[1])
    np.testing.assert_allclose(tests[0].transpose(0, 2, 3, 1), plain, atol=1e-5)


def test_F24_two_flips_at_one_half_are_independent():
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    def joint(aug, key=lambda k: None):
        seen = []
        for k in range(400):
            key(k)
            out = aug(image=picture)["image"]
            seen.append((out[0, 0] // 3).max())           # which corner came to the upper left
        return np.bincount(seen, minlength=4) / 400
    flips = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]
    ours = build_augmentation(flips, size=2, mean=(0, 0, 0))
    assert abs(joint(ours, lambda k: draw_from(ours, 0, 0, k)) - 0.25).max() < 0.08
    stock = joint(A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)], seed=0))
    assert stock[1] == stock[2] == 0, "the control: by Albumentations' own seed both flip or none"


def test_F3_a_signal_leaves_no_worker(tmp_path):
    def prepare():
        in_a_worker(lambda: None, tmp_path / "pids")()
        at(ImageLearner, "one_batch", send(signal.SIGTERM), 46)       # in the second epoch
    assert run("--out", tmp_path / "run", "--workers", 2, prepare=prepare)[0] == 143
    pids, until = [int(pid) for pid in (tmp_path / "pids").read_text().split()], time.monotonic() + 15
    while any(map(alive, pids)) and time.monotonic() < until: time.sleep(0.1)
    assert len(pids) >= 2 and not any(map(alive, pids))


# ---------------------------------------------------------------- F26: paths and processes

def test_F26_paths_with_spaces_and_other_letters(tmp_path):
    data, out = tmp_path / "meine Bilder ü 猫", tmp_path / "läufe #1 %s {x}"
    picture_folder(data, classes=("<script>x<", "größe 猫"), n=40)
    status, text = run("--out", out, data=str(data))
    assert status == 0 and "größe 猫" in (out / "predictions.csv").read_text(), text
    pages = list(out.rglob("*.html"))
    assert pages and not any("<script>x<" in p.read_text(encoding="utf-8") for p in pages)
    from cifar_fastai.runs.verify import verify_run
    assert verify_run(out) == ([], [])


# ---------------------------------------------------------------- F29: the range test

def test_F29_a_range_test_changes_no_loss_of_the_fit_after_it(learner):
    losses = []
    for before in (True, False):
        learn = learner()
        if before: learn.lr_find(num_it=40, show_plot=False)
        learn.fit_one_cycle(2, 0.1, cbs=GradCAMCallback("layer3"))
        losses.append([float(v) for v in learn.recorder.losses])
    assert losses[0] == losses[1] and len(losses[0]) == 10
    other = learner(seed=1)
    other.fit_one_cycle(2, 0.1)
    assert losses[0] != [float(v) for v in other.recorder.losses], "the control"


