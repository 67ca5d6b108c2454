from collections import OrderedDict

import numpy as np
import pytest
import torch
from stock import Net, count_calls, items, stock_dls, stock_learner
from torch import nn

from cifar_fastai.errors import InputError
from cifar_fastai.explain.gallery import listed
from cifar_fastai.explain.interpretation import ImageInterpretation
from cifar_fastai.gradcam.cam import GradCAM, cam_of, default_layer, stages_of
from cifar_fastai.gradcam.methods import heatmaps
from cifar_fastai.models import custom_resnet, resnet18
from cifar_fastai.plots.figures import offscreen, overlay, percent


@pytest.fixture(scope="module")
def learn(): return stock_learner()


@pytest.fixture(scope="module")
def interp(learn): return ImageInterpretation.from_learner(learn)


@pytest.fixture(autouse=True)
def without_windows():
    with offscreen(): yield


def texts(fig): return [(ax.get_title(), ax.get_xlabel()) for ax in fig.axes if ax.images]
def shown(fig): return [np.asarray(ax.images[0].get_array()) for ax in fig.axes if ax.images]
def picture(i): return items(35)[12 + i][0] / 255


def test_pictures_are_those_of_the_items(interp):
    np.testing.assert_allclose(interp.pictures([4, 0, 4]), [picture(4), picture(0), picture(4)], atol=1e-6)
    np.testing.assert_allclose(interp.picture(9), picture(9), atol=1e-6)


def test_each_mistake_is_shown_with_both_classes_and_their_own_probabilities(interp):
    fig, idx = interp.plot_misclassified(6), interp.misclassified(6).tolist()
    assert len(texts(fig)) == 6
    for i, x, (above, below) in zip(idx, shown(fig), texts(fig)):
        said, true = interp.decoded[i], interp.targs[i]
        assert said != true and interp.preds[i, said] > interp.preds[i, true]
        assert above.startswith(f"pred {interp.names[said][:8]}")
        assert below.startswith(f"true {interp.names[true][:8]}")
        assert above.endswith(f" ({percent(interp.preds[i, said].item())})")
        assert below.endswith(f" ({percent(interp.preds[i, true].item())})")
        np.testing.assert_allclose(x, picture(i), atol=1e-6)


def test_fewer_mistakes_than_asked_for_are_all_of_them(interp):
    n = len(interp.misclassified())
    assert 0 < n < 23 and len(texts(interp.plot_misclassified(1000))) == n


def test_top_losses_show_the_loss_and_right_ones_in_another_colour(interp):
    worst, best = interp.plot_top_losses(4), interp.plot_top_losses(4, largest=False)
    losses, idx = interp.top_losses(4)
    assert [below.split("\n")[1] for _, below in texts(worst)] == [f"loss {o:.2f}" for o in losses]
    np.testing.assert_allclose(shown(worst), [picture(i) for i in idx.tolist()], atol=1e-6)
    assert interp.correct[interp.top_losses(4, largest=False)[1]].all()
    assert worst.axes[0].title.get_color() != best.axes[0].title.get_color()


@pytest.mark.parametrize("k", [[2, 0], np.array([2, 0]), range(2, -1, -2), torch.tensor([2, 0]), [2, 0, 99]])
def test_places_in_the_ranking_can_be_chosen_as_in_fastai(interp, k):
    idx, found = interp.top_losses()[1].tolist(), shown(interp.plot_top_losses(k))
    np.testing.assert_allclose(found, [picture(idx[2]), picture(idx[0])], atol=1e-6)


def test_heatmaps_of_top_losses_show_evidence_for_what_was_said(learn, interp):
    fig, idx = interp.plot_top_losses(3, heatmap=True, layer="layer2", alpha=.4), interp.top_losses(3)[1]
    xb = learn.dls.valid.new(bs=23).one_batch()[0][idx]
    maps = interp.gradcam(idx.tolist(), "layer2")["layer2"]
    np.testing.assert_allclose(maps, GradCAM(learn.model, "layer2")(xb, interp.decoded[idx]).maps, atol=1e-4)
    want = [overlay(picture(i), m, alpha=.4) for i, m in zip(idx.tolist(), maps)]
    np.testing.assert_allclose(shown(fig), want, atol=1e-4)


def test_gradcam_explains_what_was_said_what_is_true_and_any_class(learn, interp):
    idx, cam = interp.misclassified(5), GradCAM(learn.model, ["layer2", "layer3"])
    xb = learn.dls.valid.new(bs=23).one_batch()[0][idx]
    known = {"pred": interp.decoded[idx], "true": interp.targs[idx], 2: torch.full((5,), 2)}
    predicted = cam(xb, method="hirescam").raw
    for target, classes in known.items():
        got = interp.gradcam(idx, ["layer2", "layer3"], target, "hirescam")
        raw = cam(xb, classes, method="hirescam").raw
        assert list(got) == ["layer2", "layer3"]
        for name in raw:
            want = heatmaps([raw[name], predicted[name]], (16, 16))[0]
            np.testing.assert_allclose(got[name], want, atol=1e-5)
    assert not np.allclose(interp.gradcam(idx, "layer3")["layer3"],
                           interp.gradcam(idx, "layer3", target="true")["layer3"])
    with pytest.raises(InputError, match="Did you mean true"): interp.gradcam(idx, target="tru")


def test_many_maps_are_made_in_pieces(interp):
    calls = count_calls(interp.learn.model)
    maps = interp.gradcam([3] * 100, "layer3")["layer3"]
    assert max(calls) <= 64 and sum(calls) >= 100
    assert maps.shape == (100, 16, 16) and np.allclose(maps[0], maps[-1], atol=1e-5) and maps.max() > .9


def test_sheet_puts_each_mistake_beside_its_evidence(interp):
    fig, idx = interp.plot_gradcam(3, layer=["layer2", "layer3"]), interp.misclassified(3).tolist()
    found, pictures = texts(fig), shown(fig)[:15]
    maps = interp.gradcam(idx, ["layer2", "layer3"], "true")["layer3"]
    for n, i in enumerate(idx):
        (above, _), *rest = found[5 * n:5 * n + 5]
        said, true = (interp.names[c[i]][:8] for c in (interp.decoded, interp.targs))
        assert above.startswith(f"pred {said}") and [t for _, t in rest] == ["layer2", "layer3"] * 2
        words = [f"why {said}"] * 2 + [f"where {true}"] * 2
        assert all(title.startswith(w) for (title, _), w in zip(rest, words))
        np.testing.assert_allclose(pictures[5 * n], picture(i), atol=1e-6)
        np.testing.assert_allclose(pictures[5 * n + 4], overlay(picture(i), maps[n]), atol=1e-4)


def test_sheet_takes_indices_one_target_and_a_colour_bar_or_none(interp):
    with_bar = interp.plot_gradcam([5, 6], target="pred", cmap="turbo")
    without = interp.plot_gradcam([5, 6], target=1, colorbar=False)
    assert len(with_bar.axes) == len(without.axes) + 1
    assert with_bar.axes[-1].get_xlabel() == "evidence for the class"
    assert [a for a, _ in texts(without)][1::2] == ["where dog"] * 2
    assert [t.get_text() for t in with_bar.axes[-1].get_xticklabels()] == ["none", "most"]


def test_a_class_can_be_asked_for_by_its_name_and_an_unknown_picture_not_at_all(interp):
    idx = interp.misclassified(2)
    dog, one, cat = (interp.gradcam(idx, "layer3", target=t)["layer3"] for t in ("dog", 1, "cat"))
    assert np.array_equal(dog, one) and not np.array_equal(dog, cat)
    for bad in (23, -1):
        with pytest.raises(InputError, match=f"no picture {bad}. Choose 0 to 22"):
            interp.plot_gradcam([0, bad])


def test_texts_and_colour_bars_can_be_left_out_or_asked_for(interp):
    sheet, bare = interp.plot_gradcam(2), interp.plot_gradcam(2, text=False, colorbar=False)
    assert texts(bare) == [("", "")] * 6 and all(above for above, _ in texts(sheet))
    np.testing.assert_array_equal(shown(bare), shown(sheet))
    hot, plain = (interp.plot_top_losses(2, heatmap=h, colorbar=True) for h in (True, False))
    assert hot.axes[-1].get_xlabel() == "evidence for the class" and len(plain.axes) == len(hot.axes) - 1
    assert texts(interp.plot_top_losses(2, text=False)) == [("", "")] * 2


def test_explaining_leaves_the_learner_as_it_was(learn, interp):
    learn.model.train()
    calls = count_calls(learn.model)
    interp.plot_gradcam(2)
    assert calls == [2, 2] and learn.model.training and not learn.model.layer3._forward_hooks
    assert all(p.grad is None and p.requires_grad for p in learn.model.parameters())


def test_one_picture_is_shown_with_what_was_said(interp):
    (above, below), = texts(interp.show_at(3))
    assert above == f"pred {interp.predicted_label(3)}"
    assert below == f"true {interp.true_label(3)}\nloss {interp.losses[3]:.2f}"


def test_a_layer_is_chosen_for_the_nets_that_people_have():
    assert default_layer(resnet18()) == "layer4+layer2" and default_layer(Net()) == "layer3"
    assert default_layer(custom_resnet()) == "layer3+layer1" and stages_of(nn.Conv2d(3, 4, 3)) == []
    assert default_layer(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Flatten())) == "0"
    assert default_layer(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten())) == "1"
    with pytest.raises(InputError, match="no convolution"): default_layer(nn.Linear(2, 2))


def test_the_default_layer_is_one_of_the_net_behind_what_prepares_pictures_or_ends_logits():
    assert default_layer(nn.Sequential(nn.BatchNorm2d(3), resnet18())) == "1.layer4+1.layer2"
    assert default_layer(nn.Sequential(resnet18(), nn.LogSoftmax(1))) == "0.layer4+0.layer2"
    named = OrderedDict(normalize=nn.BatchNorm2d(3), net=torch.compile(resnet18()))
    assert default_layer(nn.Sequential(named)) == "net._orig_mod.layer4+net._orig_mod.layer2"
    assert cam_of(nn.Sequential(named)).layers.keys() == {f"net._orig_mod.layer{k}" for k in (2, 4)}
    compiled = torch.compile(resnet18())
    assert cam_of(compiled).names == ("layer4+layer2",) and stages_of(compiled)[0] == "layer1"


def test_a_target_may_be_a_number_of_any_kind_and_none_is_the_predicted_class(interp):
    idx = [5, 6]
    for kind, same in ((None, "pred"), (np.int64(1), 1), (torch.tensor(1), 1)):
        ours, want = (interp.plot_gradcam(idx, layer="layer3", target=t) for t in (kind, same))
        assert texts(ours) == texts(want)
        assert all(np.array_equal(a, b) for a, b in zip(shown(ours), shown(want), strict=True))
    with pytest.raises(InputError, match="no pictures were given"): interp.gradcam([])


def test_one_index_or_many_of_any_type_are_a_list():
    assert listed(3) == listed(torch.tensor(3)) == listed(np.int64(3)) == [3]
    assert listed(range(2)) == listed(torch.tensor([0, 1])) == listed((0, np.int64(1))) == [0, 1]


def test_names_that_look_like_tex_are_shown_as_they_are(tmp_path):
    interp = ImageInterpretation.from_learner(stock_learner(stock_dls(classes=(r"$\frac{", "a_b", "$x$"))))
    assert any("$" in above for above, _ in texts(interp.plot_top_losses(6)))
    for fig in (interp.plot_top_losses(6), interp.plot_confusion_matrix(), interp.plot_per_class()):
        fig.savefig(tmp_path / "a.png")
