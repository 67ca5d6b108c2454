"""Figures out of arrays and names: grids of pictures and charts. matplotlib only.

In: pictures, numbers, names. Out: matplotlib figures; `save_figure` writes one so that no reader sees a part.

Read figures first (grids, texts, saving), then charts (curves, matrices, bars) and fonts (class names in any
script, letters that fit).
"""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "charts": ["plot_bins", "plot_curves", "plot_lr_find", "plot_lr_schedule", "plot_matrix", "plot_scores"],
    "figures": ["BAD", "GOOD", "Tile", "add_caption", "add_colorbar", "as_picture", "draw_row", "new_figure",
    "offscreen", "overlay", "percent", "save_figure", "short", "show_grid", "show_message", "show_tiles",
    "text"], "fonts": ["fit_text"]})
