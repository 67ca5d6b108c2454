"""Figures out of arrays and names: grids of pictures and charts. matplotlib only.

In: pictures, numbers, names. Out: matplotlib figures; `save_figure` writes one so that no reader sees a part.

Read figures first (grids, texts, saving), then charts (curves, matrices, bars) and fonts (class names in any
script).
"""
from .charts import plot_bins, plot_curves, plot_lr_find, plot_lr_schedule, plot_matrix, plot_scores
from .figures import (
    BAD,
    GOOD,
    Tile,
    add_caption,
    add_colorbar,
    as_picture,
    fit_text,
    new_figure,
    offscreen,
    overlay,
    percent,
    save_figure,
    short,
    show_grid,
    show_message,
    show_tiles,
    text,
)

__all__ = ["BAD", "GOOD", "Tile", "add_caption", "add_colorbar", "as_picture", "fit_text", "new_figure",
           "offscreen", "overlay", "percent", "plot_bins", "plot_curves", "plot_lr_find", "plot_lr_schedule",
           "plot_matrix", "plot_scores", "save_figure", "short", "show_grid", "show_message", "show_tiles",
           "text"]
