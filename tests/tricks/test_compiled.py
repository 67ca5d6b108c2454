"""The steps of a fit are compiled; what looks at the net between them sees the plain one."""
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fits import resumed_alike
from stock import stock_learner
from torch._dynamo.testing import CompileCounter

from cifar_fastai.explain import GradCAMCallback
from cifar_fastai.tricks import Compiled


@pytest.fixture(autouse=True)
def afresh(): torch._dynamo.reset()


def test_steps_go_through_the_compiler_and_give_the_losses_of_the_plain_net(learner):
    counter, plain, compiled = CompileCounter(), learner(), learner()
    plain.fit(2, .05)
    compiled.fit(2, .05, cbs=Compiled(backend=counter))
    assert counter.frame_count >= 1 and counter.op_count > 5
    losses, own = (torch.stack(learn.recorder.losses) for learn in (compiled, plain))
    torch.testing.assert_close(losses, own, atol=1e-5, rtol=0)
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())


def test_maps_are_those_of_the_plain_net_and_a_range_test_compiles_nothing(learner):
    counter, seen = CompileCounter(), []
    class Outside(Callback):
        def before_validate(self): seen.append(self.model._compiled_call_impl)
    plain, compiled = learner(), learner()
    compiled.add_cb(Compiled(backend=counter))
    compiled.lr_find(num_it=20, show_plot=False)
    assert counter.frame_count == 0
    maps = [GradCAMCallback("layer3", every=1, measure=False) for _ in range(2)]
    plain.fit(1, .05, cbs=maps[0])
    compiled.fit(1, .05, cbs=[maps[1], Outside()])
    assert seen == [None] and compiled.model._compiled_call_impl is None and counter.frame_count >= 1
    for epoch, found in maps[0].maps.items():
        torch.testing.assert_close(maps[1].maps[epoch], found, atol=1e-4, rtol=0)
        assert found.std() > 0


def test_a_fit_that_is_cancelled_within_an_epoch_leaves_the_plain_net(learner):
    class Enough(Callback):
        def after_batch(self):
            if self.training and self.iter == 2: raise CancelFitException
    for learn in (learner(), stock_learner()):
        learn.fit(1, .05, cbs=[Compiled(backend=(counter := CompileCounter())), Enough()])
        assert learn.model._compiled_call_impl is None and counter.frame_count >= 1


def test_a_fit_that_fails_leaves_the_plain_net(learner):
    class Fails(Callback):
        def after_step(self): raise RuntimeError("now")
    learn = learner()
    with pytest.raises(RuntimeError, match="now"):
        learn.fit(1, .05, cbs=[Compiled(backend=CompileCounter()), Fails()])
    assert learn.model._compiled_call_impl is None


def test_a_compiled_fit_is_resumed_to_the_same_bytes(learner, tmp_path):
    def end(checkpoint, cbs):
        learn = learner()
        learn.fit(3, .05, cbs=[Compiled(backend=CompileCounter()), checkpoint, *cbs])
        return learn.model.state_dict()
    assert resumed_alike(end, tmp_path)
