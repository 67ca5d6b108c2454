"""What the fields of a recipe become: the callbacks of its fit and of its range test, and what that suggests.

    learn.fit(recipe.epochs, rate, cbs=callbacks_of(recipe, rate))
"""
from collections.abc import Callable
from functools import partial

from fastai.callback.core import Callback

from ..recipe import Recipe
from ..training import (
    SLIDE_NEEDS,
    SUGGESTIONS,
    ClipGradients,
    KeepBest,
    L1Loss,
    create_schedule,
    mixing,
    peak,
    slide,
)

__all__ = ["callbacks_of", "peak_factor", "regularisers_of", "suggestions_of"]


def callbacks_of(
    recipe: Recipe,
    rate: float,        # the recipe's, or the one that was found
) -> list[Callback]:
    "The schedule, the regularisers, and the keeper of the best weights if the recipe asks for one"
    options = {k: v for k, v in vars(recipe).items() if k not in ("name", "lr", "epochs")}
    cbs = [create_schedule(recipe.schedule, rate, recipe.epochs, **options), *regularisers_of(recipe)]
    return [*cbs, KeepBest()] if recipe.keep == "best" else cbs


def regularisers_of(recipe: Recipe) -> list[Callback]:
    "Whatever of L1, clipping and mixing the recipe asks for: a rate that was found without is another one"
    cbs = []
    if recipe.l1: cbs.append(L1Loss(recipe.l1, recipe.l1_rule))
    if recipe.clip_value or recipe.clip_norm: cbs.append(ClipGradients(recipe.clip_value, recipe.clip_norm))
    if recipe.mixup or recipe.cutmix: cbs.append(mixing(recipe.mixup, recipe.cutmix))
    return cbs


def peak_factor(
    recipe: Recipe,
    steps: int,      # an epoch
) -> float:
    """How many times the rate with the lowest loss the training bears as its peak: once for every 40 steps of
    warm-up, but from a half to four times. Chosen on a holdout: docs/predecessors.md has the measurements"""
    return max(0.5, min(4.0, recipe.warm_up * steps / 40))


def suggestions_of(recipe: Recipe, steps: int) -> list[Callable]:
    """What the recipe's range test suggests: `training.lr_finder.SUGGESTIONS`, with the `peak` of this
    training; no slide where too few rates are tried for it"""
    funcs = [partial(peak, factor=peak_factor(recipe, steps)) if f is peak else f for f in SUGGESTIONS]
    long = recipe.lr_its - recipe.lr_its // 10 - 5 >= SLIDE_NEEDS or recipe.lr_rule == "slide"
    return funcs if long else [f for f in funcs if f is not slide]
