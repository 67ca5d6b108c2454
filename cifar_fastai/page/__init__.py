"""The pages of runs: one with numbers, curves and an explorer of mistakes, and one that compares runs.

In: an `ImageInterpretation`, what is in results.json and history.csv. Out: report.html and comparison.html,
which open from disk and ask for nothing from a network.

Read report_page first (what stands on the page, in its order), then content (numbers and tables), svg
(charts), sprites (pictures and maps as images inside the page), neighbours (the training pictures nearest to
a mistake), compare_page (of several runs) and render; templates/ has the HTML, its style and its script.
"""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={   # comparing needs no fastai
    "compare_page": ["disagreements", "write_comparison"], "neighbours": ["FeatureRecorder"],
    "report_page": ["write_report"]})
