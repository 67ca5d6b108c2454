"""`GradCAMCallback`: Grad-CAM maps of the same pictures every so many epochs of a fit.

    learn.fit_one_cycle(20, 0.1, cbs=GradCAMCallback("layer3", every=5))              # any Learner
    cb.maps[20]; cb.strip()               # (n,H,W) in 0…1 after epoch 20; the figure, a row for each set
"""
import warnings
from collections.abc import Sequence

import numpy as np
from fastai.callback.core import Callback
from fastai.learner import Recorder, SkipToEpoch
from fastai.torch_core import get_model, rank_distrib
from fastcore.imports import IN_NOTEBOOK
from matplotlib.figure import Figure
from torch import Tensor

from ..errors import InputError, UnknownName
from ..gradcam import METHODS, GradCAM, NotFinite, default_layer, heatmap
from ..plots import BAD, GOOD, new_figure, offscreen, overlay, save_figure, short, show_message, text
from ..training import fitting, inside_fit
from .any_picture import choose, class_names, target_of

__all__ = ["GradCAMCallback"]


class GradCAMCallback(Callback):
    """Maps of the same pictures before a fit, every so many epochs and at its end, each set from one forward
    pass of these pictures; no other picture is looked at. They are taken in the model's own dtype, whatever
    precision it trains in. Nothing of this stays in the model, whatever ends the fit, and the weights are
    those of a fit without it. A notebook shows `strip()` at the end; it also goes to `path` and TensorBoard.
    Raises: `InputError` before training, for layers, items, methods and targets that will not do"""
    order, remove_on_fetch, trained = Recorder.order + 2, True, False

    def __init__(
        self,
        layer=None,                # name, regular expression, module, or a list; None: `default_layer`
        every: int = 1,            # epochs from one set of maps to the next
        n: int = 8,                # pictures of the validation set, by turns of each class
        items=None,                # or these: positions in it, paths, arrays … (`explain.any_picture.choose`)
        method: str = "gradcam",   # one of `gradcam.METHODS`
        target=None,               # None: the predicted class; "true"; a class or its name
        path=None,                 # a PNG that is written anew with each set
    ):
        for name, value in (("every", every), ("n", n)):
            if value < 1: raise InputError(f"GradCAMCallback: {name}={value}. Give 1 or more.")
        if method not in METHODS: raise UnknownName("method", method, METHODS)
        self.layer, self.every, self.n, self.items = layer, every, n, items
        self.method, self.target, self.path, self.cam, self.inputs = method, target, path, None, None
        self.raw, self.predicted, self.size = {}, {}, (0, 0)

    @property
    def maps(self) -> dict:
        "After epoch → (n,H,W) in 0…1, or such a dict by layer where there are several"
        sets = {e: {k: heatmap(r, self.size) for k, r in raw.items()} for e, raw in self.raw.items()}
        return {e: m if len(m) > 1 else next(iter(m.values())) for e, m in sets.items()}

    def before_fit(self):
        self.run = not inside_fit(self.learn)
        if not self.run: return
        self.cleanup()
        if not fitting(self.learn) or rank_distrib(): return
        model, self.names = get_model(self.model), class_names(self.dls)
        layer = default_layer(model) if self.layer is None else self.layer
        self.cam, self.wanted = GradCAM(model, layer), target_of(self.target, self.names)
        items = self.items
        if items is None: items = _of_each(self.dls.valid.dataset, self.n, len(self.names))
        self.inputs, self.ys, self.pictures = choose(self.learn, items)
        self.size, self.raw, self.predicted = tuple(self.inputs.shape[-2:]), {}, {}
        skipped = [cb._skip_to for cb in self.learn.cbs if isinstance(cb, SkipToEpoch)]
        self._take(max(skipped, default=0))        # a layer without a map is refused here

    def before_epoch(self): self.trained = False
    def before_train(self): self.trained = True        # not in the epochs that `start_epoch` skips

    def after_epoch(self):
        epoch = self.epoch + 1
        if self.cam is None or not self.trained or epoch % self.every and epoch < self.n_epoch: return
        if not self._take(epoch): return
        if self.path is not None: self.save(self.path)
        self._to_tensorboard(epoch)

    def _take(self, epoch: int) -> bool:
        try: out = self.cam(self.inputs, self.wanted, y=self.ys, method=self.method)
        except NotFinite as e:      # the fit has its own guards
            warnings.warn(f"no Grad-CAM at epoch {epoch}: {e}", stacklevel=2)
            return False
        raw = out.raw if isinstance(out.raw, dict) else {next(iter(self.cam.layers)): out.raw}
        self.raw[epoch], self.predicted[epoch] = {k: v.cpu() for k, v in raw.items()}, out.target.cpu()
        return True

    def _to_tensorboard(self, epoch: int):
        for writer in [vars(cb).get("writer") for cb in self.learn.cbs]:
            if not hasattr(writer, "add_image"): continue
            for name, raw in self.raw[epoch].items():
                row = np.concatenate(self._overlays(raw), axis=1)
                writer.add_image(f"gradcam/{name}", row, self.learn.train_iter, dataformats="HWC")

    def _overlays(self, raw: Tensor) -> list[np.ndarray]:
        return [overlay(p, m) for p, m in zip(self.pictures, heatmap(raw, self.size))]

    def strip(self, rows: int = 12, size: float = .9) -> Figure:
        "The pictures, then a row of maps for each set (of many: `rows` of them) with the class each is for"
        if not self.raw: return show_message("No Grad-CAM maps: no epoch was trained to its end.")
        epochs = list(self.raw)
        if len(epochs) > rows:
            epochs = [epochs[i] for i in np.linspace(0, len(epochs) - 1, rows).round().astype(int)]
        sets = [(e, name, raw) for e in epochs for name, raw in self.raw[e].items()]
        high = 1 + len(sets)
        fig, axs = new_figure(high, 1, (size * len(self.pictures) + .8, (size + .22) * high))
        fig.get_layout_engine().set(w_pad=.02, h_pad=.02, hspace=0)
        known = [] if self.ys is None else self.ys.tolist()
        _row(axs[0, 0], self.pictures, [self.names[y] for y in known], "picture")
        for ax, (e, name, raw) in zip(axs[1:, 0], sets):
            said = self.predicted[e].tolist()
            right = [c == y for c, y in zip(said, known)] if self.wanted in (None, "pred") else []
            label = f"epoch {e}" + (f"\n{short(name, 12)}" if len(self.raw[e]) > 1 else "")
            _row(ax, self._overlays(raw), [self.names[c] for c in said], label, right)
        return fig

    def save(self, path):
        "Write `strip` to `path`"
        with offscreen(): save_figure(self.strip(), path)

    def after_fit(self):
        if self.cam is not None and IN_NOTEBOOK and self.raw: _display(self.strip())
        self.cleanup()

    def cleanup(self): self.cam = self.inputs = None        # model and device memory

    def state_dict(self): return {"raw": self.raw, "predicted": self.predicted}
    def load_state_dict(self, state): self.raw, self.predicted = dict(state["raw"]), dict(state["predicted"])


def _display(fig: Figure):
    from IPython.display import display
    display(fig)


def _row(ax, pictures: Sequence[np.ndarray], names: Sequence[str], label: str, right: Sequence[bool] = ()):
    "Pictures side by side on one pair of axes (a pair for each takes minutes), each under its name"
    h, w = pictures[0].shape[:2]
    kind = "bicubic" if max(h, w) <= 128 else "antialiased"
    for i, p in enumerate(pictures): ax.imshow(p, extent=(i, i + .95, 0, .95 * h / w), interpolation=kind)
    ax.set(xlim=(0, len(pictures) - .05), ylim=(0, .95 * h / w), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    text(ax.set_ylabel, label, fontsize=8, rotation=0, ha="right", va="center")
    colors = [GOOD if r else BAD for r in right] or [None] * len(names)
    for i, (name, color) in enumerate(zip(names, colors)):
        text(ax.text, i + .475, .97 * h / w, short(name, 12), color=color, fontsize=7, ha="center",
             va="bottom")


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
