"""What the fields of a recipe become: the callbacks of its range test and of its fit.

    learn.fit(recipe.epochs, rate, cbs=callbacks_of(recipe, rate))
"""
from fastai.callback.core import Callback

from .holdout import KeepBest
from .recipe import Recipe
from .regularisers import ClipGradients, L1Loss, mixing
from .schedules import create_schedule

__all__ = ["callbacks_of", "regularisers_of"]


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
