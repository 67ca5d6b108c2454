"""Train a recipe: from `Recipe` and data to a run folder; then compare and verify such folders.

In: a `Recipe` and a source of data. Out: a `Run` and its folder: results.json, weights, predictions, figures.

Read one_run first, top to bottom: it is what the project does. Then from_recipe (what the values of a recipe
become), run_writer (what stands around a run), run_folder (its folder), report (what is drawn),
console and logs (lines, curves), and seeds, compare and verify (several runs, or an old one).
"""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={   # `compare_runs` needs no fastai
    "run_writer": ["Run"], "compare": ["compare_runs"], "console": ["show_log"],
    "one_run": ["find_lr", "fit", "learner_of", "load_run", "report_again", "train"],
    "run_folder": ["begun", "load_recipe", "newest_run", "saved_recipe"], "seeds": ["train_seeds"],
    "verify": ["verify_run"]})
