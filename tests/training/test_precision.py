"""Mixed precision runs where it is asked to, and is chosen by the processor's instructions."""

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.learner import Learner
from stock import stock_dls
from tiny import tiny_net

from cifar_fastai.errors import InputError
from cifar_fastai.machine import machine_name
from cifar_fastai.training.precision import Precision, choose_precision

CPU = torch.device("cpu")


class Witness(Callback):
    "What the convolutions compute in, and what loss, gradients and weights are kept in"
    order = 60
    def before_fit(self):
        self.inside, self.outside = set(), set()
        self.hook = self.model.layer1[0].register_forward_hook(lambda m, i, o: self.inside.add(o.dtype))
    def after_loss(self): self.outside |= {self.pred.dtype, self.learn.loss.dtype}
    def before_step(self): self.outside |= {p.grad.dtype for p in self.model.parameters()}
    def after_fit(self):
        self.outside |= {p.dtype for p in self.model.parameters()}
        self.hook.remove()


@pytest.mark.parametrize("name, dtype", [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_convolutions_run_in_the_precision_and_everything_kept_is_float32(learner, name, dtype):
    learn, seen = learner(precision=name), Witness()
    learn.fit(1, cbs=seen)
    assert seen.inside == {dtype} and seen.outside == {torch.float32} and learn.precision_name == name
    assert learn.get_preds()[0].dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_bf16_works_on_a_stock_learner_where_fastais_to_bf16_does_nothing():
    def inside(prepare, cbs):
        learn = Learner(stock_dls(), tiny_net(4), cbs=cbs)
        learn.remove_cb(learn.progress)
        seen = Witness()
        with learn.no_logging(): prepare(learn).fit(1, cbs=seen)
        return seen.inside
    assert inside(lambda learn: learn, Precision("bf16")) == {torch.bfloat16}
    with pytest.warns(UserWarning): assert inside(lambda learn: learn.to_bf16(), None) == {torch.float32}


def test_bf16_loses_little(learner):
    plain, mixed = (learner(precision=p) for p in ("fp32", "bf16"))
    for learn in (plain, mixed): learn.fit(2, .05)
    a, b = (torch.stack(learn.recorder.losses) for learn in (plain, mixed))
    assert 0 < (a - b).abs().max() < .02


class Scaler:
    "A gradient scaler that finds an overflow in the first two steps"
    def __init__(self, *args, **kwargs): self.steps, self.updates = 0, 0
    def is_enabled(self): return True
    def scale(self, loss): return loss * 8
    def step(self, opt):
        self.steps += 1
        for group in opt.param_groups:
            for p in group["params"]: p.grad /= 8
        if self.steps > 2: opt.step()
    def update(self): self.updates += 1


def test_a_step_whose_gradient_overflowed_is_skipped(learner, monkeypatch):
    monkeypatch.setattr(torch.amp, "GradScaler", Scaler)
    learn, moved = learner(precision="bf16", lr=.1), []
    class Moves(Callback):
        order = 90
        def before_batch(self): self.was = self.model.fc.weight.clone()
        def after_batch(self):
            if self.training: moved.append(not torch.equal(self.was, self.model.fc.weight))
    learn.fit(1, cbs=Moves())
    assert moved == [False, False, True, True, True] and learn.precision.scaler.updates == 5


def test_pictures_without_labels_are_predicted_as_those_with(learner):
    learn = learner(precision="bf16")
    pictures = list(learn.dls.data.x_test[:5])
    probs, labels = learn.get_preds(dl=learn.dls.test_dl(pictures))
    assert labels is None and not torch.is_autocast_enabled("cpu")
    assert torch.allclose(probs, learn.get_preds()[0][:5], atol=1e-2)
    name, number, probs_of_one = learn.predict(pictures[3])
    assert torch.allclose(probs_of_one, probs[3], atol=1e-2) and int(number) == probs[3].argmax()
    assert name == learn.dls.vocab[number]


def test_fp16_on_a_cpu_is_refused_to_train_and_predicts_without_autocast(learner):
    with pytest.raises(InputError, match="precision fp16 needs a GPU"): learner(precision="fp16")
    learn, plain = learner(cbs=Precision("fp16")), learner()      # as one that was exported on a GPU
    with pytest.raises(InputError, match="precision fp16 needs a GPU"): learn.fit(1)
    with pytest.raises(InputError, match="precision fp16 needs a GPU"): learn.lr_find(show_plot=False)
    assert torch.equal(learn.get_preds()[0], plain.get_preds()[0])


def test_to_bf16_of_a_learner_that_has_it_leaves_it_as_it_is(learner):
    learn, seen = learner(precision="bf16"), Witness()
    learn.to_bf16().fit(1, cbs=seen)
    assert seen.inside == {torch.bfloat16}


@pytest.mark.parametrize("change, kept", [("to_fp32", []), ("to_fp16", [MixedPrecision]),
                                          ("to_bf16", [MixedPrecision])])
def test_fastais_own_precision_takes_the_place_of_ours(learner, change, kept):
    learn = learner(cbs=Precision("fp16")) if change == "to_bf16" else learner(precision="bf16")
    assert getattr(learn, change)() is learn
    assert [type(cb) for cb in learn.cbs if isinstance(cb, (Precision, MixedPrecision))] == kept
    assert learn.to_fp32() is learn and not [cb for cb in learn.cbs if isinstance(cb, MixedPrecision)]
    seen = Witness()
    learn.fit(1, cbs=seen)
    assert seen.inside == {torch.float32}


def test_an_unknown_precision_is_answered_with_the_nearest():
    for make in (Precision, lambda name: choose_precision(name, CPU)):
        with pytest.raises(InputError, match="Did you mean bf16"): make("bf-16")


# chosen by the processor

@pytest.mark.parametrize("line, best, says", [
    ("flags\t\t: fpu avx512f avx512_bf16 amx_bf16", "bf16", "bf16: this CPU has amx_bf16"),
    ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512_bf16", "bf16", "bf16: this CPU has avx512_bf16"),
    ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx512_bf16", "fp32", "that make bf16 faster"),
    ("flags\t\t: fpu avx2 avx512f", "fp32", "fp32: this CPU lists no instructions"),
    ("Features\t: fp asimd bf16 i8mm", "bf16", "bf16: this CPU has bf16"),
    ("Features\t: fp asimd", "fp32", "that make bf16 faster"),
    ("", "fp32", "that make bf16 faster")])
def test_the_instructions_that_the_processor_lists_decide(
        line, best, says, tmp_path, monkeypatch, caplog):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: Some CPU\n{line}\n")
    monkeypatch.setattr("cifar_fastai.machine.CPU_INFO", tmp_path / "cpuinfo")
    with caplog.at_level("INFO", "cifar_fastai"): assert choose_precision("auto", CPU) == best
    assert says in caplog.text
    assert machine_name() == "Some CPU" + (" (bf16 instructions)" if best == "bf16" else "")
