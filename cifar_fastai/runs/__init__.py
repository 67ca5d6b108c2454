"""A recipe and data become a run: a trained net, explained, in a folder that says how it came about.

In: a `Recipe` and a source of data. Out: a `Run` and its folder: results.json, weights, predictions, figures.

Read one_run first, top to bottom: it is what the project does. Then from_recipe (what the values of a recipe
become), bookkeeping (what stands around a run), run_folder (its folder), report (what is drawn),
console and logs (lines, curves), and seeds, compare and verify (several runs, or an old one).
"""
from .bookkeeping import Run
from .console import lines_to
from .one_run import find_lr, fit, learner_of, train
from .run_folder import begun, newest_run, saved_recipe
from .seeds import train_seeds

__all__ = ["Run", "begun", "find_lr", "fit", "learner_of", "lines_to", "newest_run", "saved_recipe", "train",
           "train_seeds"]
