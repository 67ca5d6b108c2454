"""A recipe and data become a run: a trained net, explained, in a folder that says how it came about.

In: a `Recipe` and a source of data. Out: a `Run` and its folder: results.json, weights, predictions, figures.

Read one_run first, top to bottom: it is what the project does. Then from_recipe (what the fields of a recipe
become), run_folder and lock (the folder), report (what is drawn in it), console and logs (what is told
meanwhile), and seeds, compare and verify (what is done with several runs, or with an old one).
"""
from .console import lines_to
from .one_run import Run, train
from .run_folder import begun, newest_run, saved_recipe
from .seeds import train_seeds

__all__ = ["Run", "begun", "lines_to", "newest_run", "saved_recipe", "train", "train_seeds"]
