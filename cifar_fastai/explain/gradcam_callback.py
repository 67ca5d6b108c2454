"""`GradCAMCallback`: Grad-CAM maps of the same pictures every so many epochs of a fit.

    learn.fit_one_cycle(20, 0.1, cbs=GradCAMCallback("layer4", every=5))              # any Learner
    cb.maps[20]; cb.strip()               # (n,H,W) in 0…1 after epoch 20; the figure, a row for each set
    cb.evidence                           # insertion and deletion of such maps of this net, beside noise
"""
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.learner import Recorder, SkipToEpoch
from fastai.torch_core import get_model, rank_distrib
from fastcore.imports import IN_NOTEBOOK
from matplotlib.figure import Figure
from torch import Tensor

from ..errors import InputError, UnknownName
from ..gradcam import METHODS, NotFinite, affordable, cam_of, heatmaps, measure_maps, usual_pairs, warnings_of
from ..plots import add_caption, draw_row, new_figure, offscreen, overlay, save_figure, short, show_message
from ..training import fitting, inside_fit, precision_of
from .any_picture import MOST, choose, class_names, target_of

__all__ = ["GradCAMCallback"]

WATCHED = 4         # pictures watched for each one shown: among 32 a net of 90 % has about three mistakes
KEPT = ("raw", "beside", "targets", "predicted")      # in a checkpoint


class GradCAMCallback(Callback):
    """Maps of the same pictures before a fit, every so many epochs and at its end, taken in the model's own
    dtype, whatever precision it trains in. At the end maps of some validation pictures are measured against
    noise; one line warns where they are no better. Nothing of this stays in the model, whatever ends the fit,
    and the weights are those of a fit without it. A notebook shows `strip()` at the end; it also goes to
    `path` and TensorBoard.
    Raises: `InputError` before training, for layers, items, methods and targets that will not do"""
    order, remove_on_fetch, trained = Recorder.order + 2, True, False

    def __init__(
        self,
        layer=None,                # name, regular expression, module, or a list; None: `default_layer`
        every: int = 1,            # epochs from one set of maps to the next
        n: int = 8,                # pictures in `strip`, of `WATCHED` × n of the validation set: see `shown`
        items=None,                # or these: positions in it, paths, arrays … (`explain.any_picture.choose`)
        method: str = "gradcam",   # one of `gradcam.METHODS`
        target=None,               # None: the predicted class; "true"; a class or its name
        path=None,                 # a PNG that is written anew with each set
        measure: bool = True,      # fill `evidence` at the end, in at most a twentieth of the fit's time;
                                   # others too where these maps are no better than noise
    ):
        for name, value in (("every", every), ("n", n)):
            if value < 1: raise InputError(f"GradCAMCallback: {name}={value}. Give 1 or more.")
        if method not in METHODS: raise UnknownName("method", method, METHODS)
        self.layer, self.every, self.n, self.items = layer, every, n, items
        self.method, self.target, self.path, self.cam, self.inputs = method, target, path, None, None
        self.measure = measure
        self._empty()

    def _empty(self):
        "Before a fit: after epoch → raw maps, and the class each is for and the predicted one"
        self.raw, self.beside, self.targets, self.predicted = {}, {}, {}, {}
        self.evidence, self.whole = [], 0         # `whole`: the epoch that is over, 0 within one

    @property
    def maps(self) -> dict:
        "After epoch → (n,H,W) in 0…1 of all pictures watched; a dict by layer where there are several"
        sets = {e: {k: self._map(e, k) for k in raw} for e, raw in self.raw.items()}
        return {e: m if len(m) > 1 else next(iter(m.values())) for e, m in sets.items()}

    def _map(self, epoch: int, layer: str) -> Tensor:
        "On one scale with that of the predicted class"
        raws = [sets[epoch][layer] for sets in (self.raw, self.beside) if epoch in sets]
        return heatmaps(raws, self.pictures.shape[1:3])[0]

    def shown(self) -> list[int]:
        """Which of the pictures watched are in `strip`: those it learned in their order, then a quarter that
        it never learned (or else forgot); more of one fate where there are too few of the other"""
        n = self.n if self.items is None else len(self.pictures)
        looks = [self.predicted[e] == self.ys.cpu() for e in self.predicted if e and self.ys is not None]
        if self.items is not None or not looks: return list(range(len(self.pictures)))[:n]
        times, last = torch.stack(looks).sum(0).tolist(), looks[-1].tolist()
        learned = [i for i, right in enumerate(last) if right]
        wrong = sorted((i for i, right in enumerate(last) if not right), key=lambda i: times[i])
        some = sorted(wrong[:max(n // 4, n - len(learned))])
        return learned[:n - len(some)] + some

    def before_fit(self):
        self.run = not inside_fit(self.learn)
        if not self.run: return
        self.cleanup()
        if not fitting(self.learn) or rank_distrib(): return
        model, self.names = get_model(self.model), class_names(self.dls)
        self.cam, self.wanted = cam_of(model, self.layer), target_of(self.target, self.names)
        items = self.items
        watched = max(self.n, min(MOST, WATCHED * self.n))
        if items is None: items = _of_each(self.dls.valid.dataset, watched, len(self.names))
        self.inputs, self.ys, self.pictures = choose(self.learn, items)
        self._empty()
        skipped = [cb._skip_to for cb in self.learn.cbs if isinstance(cb, SkipToEpoch)]
        self._take(max(skipped, default=0))        # a layer without a map is refused here

    def before_epoch(self): self.trained, self.whole = False, 0
    def before_train(self): self.trained = True        # not in the epochs that `start_epoch` skips

    def after_epoch(self):
        epoch = self.epoch + 1
        self.whole = epoch if self.trained else 0
        if self.cam is None or not self.trained or epoch % self.every and epoch < self.n_epoch: return
        self._look(epoch, last=epoch == self.n_epoch)

    def after_cancel_fit(self):
        "Where others stop a fit when an epoch is over, that is its end; a signal or a NaN is none"
        stopped = getattr(self.learn, "ending", None) is not None
        over = 0 < self.whole < self.n_epoch and not stopped
        if self.cam is not None and over: self._look(self.whole, last=True)

    def _look(self, epoch: int, last: bool):
        if epoch not in self.raw and not self._take(epoch): return
        if self.measure and last: self._measure()
        if self.path is not None: self.save(self.path)
        self._to_tensorboard(epoch)

    def _take(self, epoch: int) -> bool:
        take = lambda target: self.cam(self.inputs, target, y=self.ys, method=self.method)
        try: outs = [take(self.wanted), *([] if self.wanted in (None, "pred") else [take(None)])]
        except NotFinite as e:      # the fit has its own guards
            warnings.warn(f"no Grad-CAM at epoch {epoch}: {e}", stacklevel=2)
            return False
        for sets, out in zip((self.raw, self.beside), outs):
            sets[epoch] = {k: v.cpu() for k, v in out.raw_by_layer.items()}
        self.targets[epoch], self.predicted[epoch] = outs[0].target.cpu(), outs[-1].target.cpu()
        return True

    def _measure(self):
        "Fill `evidence`; where the maps are no better than noise, look for some that are and say so"
        model, dataset = get_model(self.model), self.dls.valid.dataset
        shown = len(self.cam.names)
        n = affordable(self.n_epoch * len(self.dls.train.dataset), len(dataset), shown)
        if not n: return
        xb = choose(self.learn, np.random.default_rng(0).permutation(len(dataset))[:n].tolist()).xb
        measured = lambda pairs: measure_maps(model, xb, None, pairs, autocast=True)
        with precision_of(self.learn):
            self.evidence = measured([(self.cam.names, self.method)])
            if not all(e.better for e in self.evidence): self.evidence += measured(usual_pairs(model))
        for line in warnings_of(self.evidence[:shown], self.evidence[shown:]):
            warnings.warn(f"Grad-CAM: {line}", stacklevel=2)

    def _to_tensorboard(self, epoch: int):
        for writer in [vars(cb).get("writer") for cb in self.learn.cbs]:
            if not hasattr(writer, "add_image"): continue
            for name in self.raw[epoch]:
                chosen = range(min(self.n, len(self.pictures)))
                row = np.concatenate(self._overlays(epoch, name, chosen), axis=1)
                writer.add_image(f"gradcam/{name}", row, self.learn.train_iter, dataformats="HWC")

    def _overlays(self, epoch: int, layer: str, chosen: Sequence[int]) -> list[np.ndarray]:
        maps = self._map(epoch, layer)
        return [overlay(self.pictures[i], maps[i]) for i in chosen]

    def strip(self, rows: int = 12, size: float = .9) -> Figure:
        "Pictures of both fates, and a row of maps for each set (of many: `rows`) with the class each is for"
        if not self.raw: return show_message("No Grad-CAM maps: no epoch was trained to its end.")
        epochs = list(self.raw)
        if len(epochs) > rows:
            epochs = [epochs[i] for i in np.linspace(0, len(epochs) - 1, rows).round().astype(int)]
        sets, shown = [(e, name) for e in epochs for name in self.raw[e]], self.shown()
        high = 1 + len(sets)
        fig, axs = new_figure(high, 1, (size * len(shown) + .8, (size + .22) * high))
        fig.get_layout_engine().set(w_pad=.02, h_pad=.02, hspace=0)
        known = [] if self.ys is None else self.ys[shown].tolist()
        names = [self.names[y] for y in known]
        draw_row(axs[0, 0], [self.pictures[i] for i in shown], names, "picture", size)
        for ax, (e, name) in zip(axs[1:, 0], sets):
            asked = self.targets[e][shown].tolist()
            right = [c == y for c, y in zip(asked, known)] if self.wanted in (None, "pred") else []
            label = f"epoch {e}" + (f"\n{short(name, 12)}" if len(self.raw[e]) > 1 else "")
            draw_row(ax, self._overlays(e, name, shown), [self.names[c] for c in asked], label, size, right)
        add_caption(fig, "\n".join(e.caption for e in self.evidence[:len(self.raw[epochs[-1]])]))
        return fig

    def caption(self, evidence: list):
        "Take what was measured elsewhere of such maps, and write it below the strip at `path`"
        self.evidence = evidence
        if self.trained and self.path is not None: self.save(self.path)

    def save(self, path):
        "Write `strip` to `path`"
        with offscreen(): save_figure(self.strip(), path)

    def after_fit(self):
        if self.cam is not None and IN_NOTEBOOK and self.raw: _display(self.strip())
        self.cleanup()

    def cleanup(self): self.cam = self.inputs = None        # model and device memory

    def state_dict(self): return {name: getattr(self, name) for name in KEPT}
    def load_state_dict(self, state):
        for name in KEPT: setattr(self, name, dict(state[name]))


def _display(fig: Figure):
    from IPython.display import display
    display(fig)


def _label(dataset, i: int) -> int | None:
    "The class of item `i`, if it has one; its picture is not opened"
    try: return int(dataset.tls[-1][i])
    except (AttributeError, TypeError, ValueError, RuntimeError): return None


def _of_each(dataset, n: int, classes: int) -> list[int]:
    "Positions of `n` items, a class each by turns: those met first in an order that is always the same"
    met, size = {}, len(dataset)
    for i in np.random.default_rng(0).permutation(size)[:100 * n].tolist():
        met.setdefault(_label(dataset, i), []).append(i)
        enough = [k for k in met.values() if len(k) >= -(-n // classes)]
        if len(enough) >= min(n, classes): break
    turns = sorted((t, str(c), i) for c, of_c in met.items() for t, i in enumerate(of_c))
    return [i for _, _, i in turns[:n]]
