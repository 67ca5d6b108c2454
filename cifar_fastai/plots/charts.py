"""Charts: training curves, range test, schedule, confusion matrix, per-class bars, calibration.

    plot_curves(pd.read_csv("history.csv"))
    plot_lr_find(lrs, losses, {"valley": .02, "steep": .1}, chosen=.02)

They take arrays and tables, never a Learner."""
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .figures import BAD, new_figure, short, text

__all__ = ["plot_bins", "plot_curves", "plot_lr_find", "plot_lr_schedule", "plot_matrix", "plot_scores"]

TRAIN, VALID, GREY = "#1f5fa8", "#c06a10", "#888888"     # told apart by the colour-blind too
MARKS = (("C0", "o"), ("C2", "s"), ("C4", "D"), ("C9", "^"), ("C5", "v"), ("C6", "P"))


def _axes(ax, **kwargs):
    ax.set(**kwargs)
    ax.grid(color="#888888", alpha=.15)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_curves(
    history,     # a table or rows of epoch, train_loss, valid_loss, accuracy (0…1); other columns are ignored
    **kwargs,    # for the figure: figsize, dpi
) -> Figure:
    "Loss and accuracy over the epochs. A validation loss far above all others is cut, with a note"
    h = pd.DataFrame(history)
    panels = 1 + ("accuracy" in h)
    fig, axs = new_figure(1, panels, **{"figsize": (4.4 * panels, 3.2)} | kwargs)
    mark = "o" if len(h) < 3 else None                   # a line through one point cannot be seen
    ax = _axes(axs[0, 0], xlabel="epoch", ylabel="loss", title="Loss")
    lines = ("train_loss", TRAIN, "training, augmented"), ("valid_loss", VALID, "validation")
    for column, color, label in lines:
        if column in h: ax.plot(h["epoch"], h[column], color=color, label=label, marker=mark)
    if {"train_loss", "valid_loss"} <= set(h): _cut_spikes(ax, h["train_loss"], h["valid_loss"])
    if panels == 2:
        right = _axes(axs[0, 1], xlabel="epoch", ylabel="accuracy, %", title="Accuracy")
        label = f"validation, at the end {100 * h['accuracy'].iloc[-1]:.2f} %"
        right.plot(h["epoch"], 100 * h["accuracy"], color=VALID, label=label, marker=mark)
    for ax in axs.flat:
        ax.legend(fontsize=8, frameon=False)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return fig


def _cut_spikes(ax, train: pd.Series, valid: pd.Series):
    "While the rate is high batch norm's averages lag: a first validation loss of 30 would flatten the rest"
    top = 1.2 * max(train.max(), valid.median())
    if not valid.max() > 2 * top: return
    ax.set_ylim(0, top)
    ax.lines[-1].set_label(f"validation (highest {valid.max():.3g})")


def plot_lr_schedule(
    lrs: Sequence[float],                    # one a step
    moms: Sequence[float] | None = None,     # one a step
    steps_per_epoch: int | None = None,      # counts the axis in epochs
    **kwargs,
) -> Figure:
    "Learning rate and momentum over the steps; a rate that falls in stairs is drawn by its powers of ten"
    rows = [("learning rate", lrs, TRAIN), *([("momentum", moms, VALID)] if moms is not None else [])]
    fig, axs = new_figure(len(rows), 1, sharex=True, **{"figsize": (6, 1.2 + 1.5 * len(rows))} | kwargs)
    for ax, (label, values, color) in zip(axs.flat, rows):
        ax.plot(np.arange(len(values)) / (steps_per_epoch or 1), values, color=color)
        _axes(ax, ylabel=label)
    if min(lrs) > 0 and 2 < len(set(lrs)) <= len(lrs) / 10: axs[0, 0].set_yscale("log")
    axs[0, 0].set_title(_course(lrs, steps_per_epoch), fontsize=10)
    axs[-1, 0].set_xlabel("epoch" if steps_per_epoch else "step")
    axs[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return fig


def _course(lrs: Sequence[float], steps_per_epoch: int | None) -> str:
    "How the rate went, in words"
    peak = int(np.argmax(lrs))
    if min(lrs) == max(lrs): return f"{lrs[0]:.3g} throughout"
    if peak == 0: return f"From {lrs[0]:.3g} down to {lrs[-1]:.3g}"
    at = f"epoch {peak / steps_per_epoch:.1f}" if steps_per_epoch else f"step {peak}"
    return f"From {lrs[0]:.3g} to {lrs[peak]:.3g} at {at}, then to {lrs[-1]:.3g}"


def plot_lr_find(
    lrs: Sequence[float],
    losses: Sequence[float],                          # smoothed training loss at each rate
    suggestions: Mapping[str, float] | None = None,   # method → rate
    chosen: float | None = None,                      # the rate that was trained with
    mode: str = "exp",                                # how the rate rose: "exp" or "linear"
    on: str = "train",                                # whose loss: "train" or "holdout"
    **kwargs,
) -> Figure:
    "Loss over a rising learning rate, with each method's suggestion and the rate that was chosen"
    lrs, losses = np.asarray(lrs, float), np.asarray(losses, float)
    good = np.isfinite(losses) & (lrs > 0)
    lrs, losses = lrs[good], losses[good]
    fig, [[ax]] = new_figure(**{"figsize": (6.4, 3.8)} | kwargs)
    whose = {"train": "training", "holdout": "holdout"}[on]
    _axes(ax, xscale="linear" if mode == "linear" else "log", xlabel="learning rate",
          ylabel=f"{whose} loss, smoothed", title="Learning-rate finder")
    ax.plot(lrs, losses, color="#444444")
    low, start = losses.min(initial=np.inf), losses[:max(1, len(losses) // 10)].mean() if len(losses) else 0
    top = start + .35 * (start - low) + 1e-3          # where it diverges the curve is cut
    for (name, lr), (color, mark) in zip((suggestions or {}).items(), MARKS):
        loss = min(top, np.interp(np.log(lr), np.log(lrs), losses))
        ax.plot(lr, loss, mark, color=color, ms=8, label=f"{name}  {lr:.3g}", clip_on=False)
    if chosen: ax.axvline(chosen, color=BAD, lw=1.5, ls="--", label=f"chosen  {chosen:.3g}")
    if len(losses): ax.set_ylim(low - .08 * (start - low) - 1e-3, top)
    if suggestions or chosen: ax.legend(fontsize=8, frameon=False, loc="lower left")
    return fig


def plot_matrix(
    shares: np.ndarray,                  # (C,C): share of true row predicted as column
    names: Sequence[str],
    texts: np.ndarray | None = None,     # (C,C): what to write into the cells
    title: str = "",
    cmap: str = "Blues",
    **kwargs,
) -> Figure:
    "A confusion matrix whose colours grow with the root of the share, so that rare mistakes show"
    n, size = len(names), 9 if len(names) <= 30 else max(3, min(7, 560 / len(names)))
    fig, [[ax]] = new_figure(**{"figsize": (min(16, 2 + .46 * n),) * 2} | kwargs)
    ax.imshow(shares, cmap=cmap, norm=PowerNorm(.5, 0, 1), interpolation="nearest")
    text(ax.set_xticks, range(n), [short(o, 24) for o in names], rotation=90, fontsize=size)
    text(ax.set_yticks, range(n), [short(o, 24) for o in names], fontsize=size)
    ax.set(xlabel="Predicted", ylabel="Actual")
    if title: text(ax.set_title, title)
    for i, j in np.ndindex(shares.shape) if texts is not None else ():
        color = "white" if shares[i, j] > .3 else "black" if shares[i, j] > 0 else "#bbbbbb"
        ax.text(j, i, texts[i, j], ha="center", va="center", color=color, fontsize=size)
    return fig


def plot_scores(
    table: pd.DataFrame,   # class, n, accuracy, precision
    mean: float,           # accuracy over all pictures, 0…1
    **kwargs,
) -> Figure:
    "Accuracy and precision of each class as two dots on a line"
    y, acc, prec = (np.arange(len(table)), *100 * table[["accuracy", "precision"]].to_numpy().T)
    fig, [[ax]] = new_figure(**{"figsize": (6.4, min(30, 1.3 + .28 * len(y)))} | kwargs)
    ax.hlines(y, np.fmin(acc, prec), np.fmax(acc, prec), color="#bbbbbb", lw=2, zorder=1)
    hollow = {"mfc": "white", "mec": VALID, "mew": 1.6, "ms": 6}
    ax.plot(acc, y, "o", color=TRAIN, ms=7, label="accuracy: share of the class that was found")
    ax.plot(prec, y, "o", **hollow, label="precision: share of its calls that is right")
    ax.axvline(100 * mean, color=GREY, ls=":", zorder=0, label=f"all pictures: {100 * mean:.2f} % accuracy")
    names = [f"{short(c, 24)}  {'–' if np.isnan(a) else f'{a:.1f}'}" for c, a in zip(table["class"], acc)]
    text(ax.set_yticks, y, names, fontsize=9 if len(y) <= 30 else 6)
    low = max(0, np.nanmin([*acc, *prec, 100 * mean]) - 2)
    _axes(ax, ylim=(len(y) - .5, -.5), xlim=(low, 101), xlabel="per cent")
    ax.set_xticks([t for t in ax.get_xticks() if low <= t <= 100])   # a dot at 100 has room, 101 no meaning
    ax.grid(False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.tick_params(left=False)
    fig.legend(loc="outside upper left", fontsize=8, frameon=False)
    return fig


def plot_bins(
    ece: float,            # expected calibration error, 0…1
    bins: pd.DataFrame,    # low, high, n, confidence, accuracy
    **kwargs,
) -> Figure:
    "A reliability diagram above the number of pictures in each bin"
    shape = {"figsize": (4.8, 5.2), "height_ratios": [3, 1]}
    fig, [[top], [bottom]] = new_figure(2, 1, sharex=True, **shape | kwargs)
    full = bins[bins["n"] > 0]
    top.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":", label="right as often as it is sure")
    conf, acc = full["confidence"], full["accuracy"]
    top.vlines(conf, conf, acc, color=BAD, alpha=.5, lw=2, label="the gap")
    top.plot(conf, acc, color=TRAIN, lw=1, alpha=.5)
    area = 8 + 60 * full["n"] / full["n"].max()
    top.scatter(conf, acc, area, color=TRAIN, label="the model: the larger, the more pictures")
    _axes(top, ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.04))
    top.set_title(f"Expected calibration error {100 * ece:.1f} %", fontsize=10)
    top.legend(fontsize=8, frameon=False)
    width = bins["high"] - bins["low"]
    bottom.bar(bins["low"], bins["n"], width, align="edge", color="#9db8d6", edgecolor="white")
    _axes(bottom, xlabel="confidence", ylabel="pictures")
    return fig
