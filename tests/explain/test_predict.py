import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.block import DataBlock, MultiCategoryBlock
from fastai.losses import CrossEntropyLossFlat, LabelSmoothingCrossEntropy
from fastai.vision.data import ImageBlock
from stock import BlackOut, Net, count_calls, first, items, smooth, stock_dls, stock_learner
from torch import nn
from torch.nn import functional as F

from cifar_fastai.errors import InputError
from cifar_fastai.explain.predict import clean_dl, decode_pictures, inputs_of, predict_once, tta_probs
from cifar_fastai.training.precision import Precision


def predicted(learn, **kwargs): return predict_once(learn, clean_dl(learn), **kwargs)


@pytest.mark.parametrize("loss", [CrossEntropyLossFlat(), CrossEntropyLossFlat(label_smoothing=.1),
                                  LabelSmoothingCrossEntropy(), smooth()])
def test_predictions_and_losses_are_fastais(loss):
    learn = stock_learner(loss_func=loss)
    ours = predicted(learn)
    probs, targs, losses = learn.get_preds(with_loss=True, act=lambda x: x.softmax(-1))
    torch.testing.assert_close(ours.probs, probs)
    torch.testing.assert_close(ours.losses, losses.as_subclass(torch.Tensor))
    assert ours.targs.tolist() == targs.tolist() and ours.tta is None
    assert [type(o) for o in ours[:3]] == [torch.Tensor] * 3 and ours.probs.dtype == torch.float32


def test_probabilities_are_right_with_torchs_loss_where_fastai_gives_logits():
    learn = stock_learner(loss_func=nn.CrossEntropyLoss())
    probs, theirs = predicted(learn).probs, learn.get_preds()[0]
    torch.testing.assert_close(probs, theirs.softmax(-1))
    assert not torch.allclose(theirs.sum(1), torch.ones(len(theirs)))     # what would have been shown


def test_probabilities_are_right_for_a_net_that_ends_in_log_softmax():
    plain = predicted(stock_learner(loss_func=CrossEntropyLossFlat()))
    logs = predicted(stock_learner(model=nn.Sequential(Net(), nn.LogSoftmax(-1)), loss_func=F.nll_loss))
    torch.testing.assert_close(logs.probs, plain.probs)
    torch.testing.assert_close(logs.losses, plain.losses)


def test_losses_are_the_learners_own_not_bare_cross_entropy():
    p = predicted(stock_learner(loss_func=smooth()))
    bare = -p.probs[range(len(p.targs)), p.targs].log()
    torch.testing.assert_close(p.losses, .8 * bare - .2 * p.probs.log().mean(1))
    assert not torch.allclose(p.losses, bare)


def test_given_activation_is_used():
    assert (predicted(stock_learner(), act=torch.zeros_like).probs == 0).all()


@pytest.mark.parametrize("views, passes", [(None, 1), ("mirror", 2), ("mirror+shift", 6)])
def test_one_pass_runs_each_picture_once_a_view(views, passes):
    learn = stock_learner()
    calls = count_calls(learn.model)
    predicted(learn, views=views)
    assert calls == [n for n in (8, 8, 7) for _ in range(passes)]


def test_mirror_is_the_mean_of_both_probabilities():
    learn = stock_learner()
    probs, targs = tta_probs(learn)
    x = learn.dls.valid.one_batch()[0].as_subclass(torch.Tensor)
    with torch.no_grad(): both = [learn.model(o).softmax(1) for o in (x, x.flip(3))]
    torch.testing.assert_close(probs[:8], (both[0] + both[1]) / 2)
    assert not torch.allclose(probs[:8], both[0], atol=1e-3)
    assert targs.tolist() == predicted(learn).targs.tolist()


def test_shifted_views_move_by_one_pixel_and_weigh_as_in_airbench():
    learn = stock_learner()
    x = learn.dls.valid.one_batch()[0].as_subclass(torch.Tensor)
    rows = torch.tensor([[1, *range(15)], [*range(1, 16), 14]])      # reflect: the edge's neighbour comes in
    moved = [x[:, :, r][:, :, :, r] for r in rows]
    f = lambda o: (learn.model(o).softmax(1) + learn.model(o.flip(3)).softmax(1)) / 2
    probs = tta_probs(learn, views="mirror+shift")[0]
    with torch.no_grad(): want = .5 * f(x) + .25 * f(moved[0]) + .25 * f(moved[1])
    torch.testing.assert_close(probs[:8], want)


def test_a_net_that_a_mirror_does_not_change_gains_nothing():
    class Mean(Net):
        def forward(self, x): return self.fc(F.pad(x.mean((2, 3)), (0, 9)))
    p = predicted(stock_learner(model=Mean()), views="mirror")
    torch.testing.assert_close(p.tta, p.probs)


def test_the_recorder_keeps_the_history_that_get_preds_empties():
    learn = stock_learner()
    with learn.no_logging(): learn.fit(1, 1e-3)
    losses = list(learn.recorder.losses)
    predicted(learn, views="mirror")
    assert len(losses) > 0 and learn.recorder.losses == losses and len(learn.recorder.values) == 1
    learn.get_preds()
    assert learn.recorder.losses == []


def test_callbacks_take_the_pass_for_get_preds_and_nothing_stays_behind():
    class Logger(Callback):
        def before_fit(self): seen.append(hasattr(self, "gather_preds"))
    seen, learn = [], stock_learner(cbs=Logger())
    predicted(learn)
    before = list(learn.cbs)
    assert seen == [True] and not hasattr(learn, "gather_preds") and learn.recorder.run
    learn.model.fc.weight.data.fill_(torch.nan)
    with pytest.raises(InputError): predicted(learn)
    assert list(learn.cbs) == before and learn.recorder.run and learn.loss_func.reduction == "mean"


def test_precision_of_the_learner_is_kept_for_all_views():
    learn, seen = stock_learner(cbs=Precision("bf16")), set()
    learn.model.fc.register_forward_hook(lambda m, i, o: seen.add(o.dtype))
    p = predicted(learn, views="mirror")
    assert seen == {torch.bfloat16} and p.probs.dtype == p.tta.dtype == p.losses.dtype == torch.float32


def test_training_pictures_are_predicted_without_augmentation():
    learn = stock_learner(stock_dls(item_tfms=BlackOut))
    learn.dls.train.bs = 5
    p = predict_once(learn, clean_dl(learn, 0))
    dl = learn.dls.test_dl(items(35)[:12], with_labels=True)
    torch.testing.assert_close(p.losses, learn.get_preds(dl=dl, with_loss=True)[2].as_subclass(torch.Tensor))
    augmented = learn.get_preds(dl=learn.dls.train.new(shuffle=False, drop_last=False))[0]
    assert len(p.probs) == 12 and torch.allclose(augmented, augmented[:1])          # all of them black
    assert learn.dls.train.dataset.split_idx == 0                                # training goes on as before


def test_order_is_that_of_the_items_even_if_the_loader_shuffles_and_drops():
    learn = stock_learner()
    dl = learn.dls.valid.new(shuffle=True, drop_last=True)
    torch.testing.assert_close(predict_once(learn, clean_dl(learn, dl=dl)).probs, predicted(learn).probs)


def test_a_single_picture_is_a_set():
    learn = stock_learner()
    dl = learn.dls.test_dl(items(35)[14:15], with_labels=True)
    p = predict_once(learn, clean_dl(learn, dl=dl), views="mirror")
    torch.testing.assert_close(p.probs[0], predicted(learn).probs[2])
    assert p.tta.shape == (1, 4) and p.targs.tolist() == [2]


def test_pictures_come_back_as_they_were_read():
    learn = stock_learner()
    x = decode_pictures(learn.dls.valid, inputs_of(clean_dl(learn), [3, 0]))
    np.testing.assert_allclose(x, np.stack([items(35)[i][0] for i in (15, 12)]) / 255, atol=1e-6)


def test_wrong_sets_and_nets_are_refused_in_one_line():
    learn = stock_learner()
    empty = learn.dls.valid.new(learn.dls.valid_ds.new_empty())
    with pytest.raises(InputError, match="no pictures"): predict_once(learn, clean_dl(learn, dl=empty))
    with pytest.raises(InputError, match="no labels"):
        predict_once(learn, clean_dl(learn, dl=learn.dls.test_dl(items(3))))
    with pytest.raises(InputError, match="Did you mean mirror"): predicted(learn, views="miror")
    learn.model.fc.bias.data[1] = torch.inf
    with pytest.raises(InputError, match="not finite for 23 of 23"): predicted(learn)


def test_several_labels_a_picture_are_refused():
    block = DataBlock((ImageBlock, MultiCategoryBlock), get_x=first, get_y=lambda o: [o[1]])
    learn = stock_learner(block.dataloaders(items(20), bs=4, num_workers=0, device="cpu"))
    with pytest.raises(InputError, match="not one label a picture"): predicted(learn)


def test_what_fastais_distributed_loader_wraps_is_read_in_its_own_order():
    from fastai.distributed import DistributedDL
    learn = stock_learner()
    wrapped = DistributedDL(learn.dls.valid, rank=0, world_size=2)
    torch.testing.assert_close(predict_once(learn, clean_dl(learn, dl=wrapped)).probs, predicted(learn).probs)
