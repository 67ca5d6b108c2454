"""Turn the values of a recipe into fastai's terms: data, rate, callbacks.

    pictures = load_pictures(recipe, "digits")
    adapted_to(recipe, pictures).bs                 # 64: batches of 512 would leave two steps an epoch
"""
import logging
from math import log2
from pathlib import Path

from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation

from .. import training
from ..data import ImageData, load_data
from ..errors import InputError, UnknownName
from ..explain import VIEWS
from ..loaders import build_augmentation, subsets
from ..models import MODELS
from ..parts import LRFind
from ..processes import world
from ..recipe import Recipe, counted
from ..tricks import AverageWeights, ClipGradients, L1Loss, mixing

__all__ = ["adapted_to", "check_names", "choose_rate", "decisions", "extras_of", "load_pictures",
           "lr_factor", "regularisers_of", "schedule_of", "shared_out", "suggestions_of", "work_of"]

log = logging.getLogger("cifar_fastai")


def check_names(recipe: Recipe) -> None:
    "What a recipe cannot know when it is made. Raises: InputError with the nearest names"
    if recipe.model not in MODELS: raise UnknownName("model", recipe.model, MODELS)
    training.optimizer(recipe.opt.name, recipe.opt.mom)
    build_augmentation(recipe.aug, recipe.size)


def load_pictures(
    recipe: Recipe,
    data: ImageData | str | Path,  # pictures, or a source for `load_data`
    unverified: bool = False,
    split: float | None = None,
) -> ImageData:
    "The pictures, no more of them than the recipe's limit. Raises: InputError"
    if not isinstance(data, ImageData):
        data = load_data(data, size=recipe.size, unverified=unverified, split=split)
    elif split is not None: raise InputError("split= is for a path: this data is split. Leave it out.")
    return data if recipe.limit is None else data.limit(recipe.limit, recipe.seed)


def adapted_to(recipe: Recipe, data: ImageData) -> Recipe:
    "The recipe with the batch size and the side of the pictures that it trains with: what recipe.json holds"
    n = len(subsets(data, recipe.valid, recipe.seed)[0]) // world()
    return recipe.but(bs=_batch_size(recipe, n), min_steps=recipe.min_steps, size=data.size)


def lr_factor(recipe: Recipe, rule: str | None) -> float:
    """How many times as high a given rate is where a step has the pictures of several batches: as many times
    as there are batches ("linear", Goyal et al. 2017), or the root of it ("sqrt"). Raises: InputError"""
    if rule is None: return 1.0
    if rule not in ("linear", "sqrt"): raise UnknownName("rule for the rate", rule, ["linear", "sqrt"])
    if isinstance(recipe.lr, LRFind):
        raise InputError("scale_lr is for a rate that is given: the range test finds its rate with the "
                         "batches of all processes. Leave it out, or give a rate.")
    batches = world() * recipe.opt.accumulate
    return float(batches) if rule == "linear" else batches ** .5


def shared_out(
    recipe: Recipe,     # of a run that is resumed
    before: int,        # processes that it had
) -> Recipe:
    "The recipe for the processes that there are now, whose batches together are as large. Raises: InputError"
    total = recipe.bs * before
    if total % world():
        raise InputError(f"the run had batches of {total} in all, which {world()} processes cannot share. "
                         "Start a number of processes that divides it.")
    return recipe if world() == before else recipe.but(bs=total // world(), min_steps=recipe.min_steps)


def decisions(recipe: Recipe, before: dict, given: dict) -> dict:
    "What decides a run beside its recipe: what is `given`, else what the run that is resumed began with"
    how = {k: before.get(k, v) if v is None or v is False else v for k, v in given.items()}
    return how | {"lr_factor": before.get("lr_factor") or lr_factor(recipe, how["scale_lr"])}


def _batch_size(recipe: Recipe, n: int) -> int:
    """The recipe's, or the largest power of two that leaves `min_steps` steps an epoch. `n`: the pictures of
    each process. Raises: InputError where the recipe's must hold and there are fewer pictures"""
    if not recipe.min_steps and recipe.bs > n:
        raise InputError(f"batches of {recipe.bs}, but only {counted(n, 'training picture')}. "
                         f"Give a batch size (--bs) of {n} or less.")
    if not recipe.min_steps: return recipe.bs
    most = max(2, n // recipe.min_steps)
    return recipe.bs if recipe.bs <= most else 2 ** int(log2(most))


def suggestions_of(recipe: Recipe) -> list:
    "What the range test suggests: fastai's four and `peak`; no slide where too few rates are tried for it"
    its = recipe.lr.num_it
    long = its - its // 10 - 5 >= training.SLIDE_NEEDS or recipe.lr.rule == "slide"
    return [f for f in training.SUGGESTIONS if long or f is not training.slide]


def choose_rate(recipe: Recipe, learn: training.ImageLearner, rates) -> float:
    """The rate to train with, of those that `learn.lr_find` has just suggested: by the recipe's rule, or a
    careful one where the loss did not fall. Says so in the log"""
    test, did_fall = recipe.lr, learn.recorder.loss_fell
    taken = training.fallback_rate(recipe.opt.name)
    if did_fall: taken = training.plausible_rate(rates, test.rule, test.start_lr)
    whose = {"train": "training", "holdout": "holdout"}[test.on]
    said = training.explain_rate(rates, test.rule, taken, did_fall)
    log.info("rate        %s, from the %s loss alone", said, whose)
    if taken == rates.peak:
        log.info("            the peak is %.2g × where it is lowest", learn.recorder.peak_factor)
    if not did_fall or test.divide == 1: return taken
    log.info("            divided by %g: %.3g", test.divide, taken / test.divide)
    return taken / test.divide


def regularisers_of(recipe: Recipe) -> list[Callback]:
    """L1, gradient clipping, mixing, accumulated gradients. The range test runs with them: they change the
    rate that it finds"""
    r, cbs = recipe.regularise, []
    if recipe.opt.accumulate > 1: cbs.append(GradientAccumulation(recipe.opt.accumulate * recipe.bs))
    if r.l1: cbs.append(L1Loss(r.l1, r.l1_rule))
    if r.clip_value or r.clip_norm: cbs.append(ClipGradients(r.clip_value, r.clip_norm))
    if r.mixup or r.cutmix: cbs.append(mixing(r.mixup, r.cutmix))
    return cbs


def extras_of(recipe: Recipe) -> list[Callback]:
    "What the fit has beside its schedule: the regularisers, and what keeps other weights than the last"
    k, cbs = recipe.keep, regularisers_of(recipe)
    if k.name == "best": cbs.append(training.KeepBest())
    if k.name in ("ema", "lookahead"): cbs.append(AverageWeights(k.decay, k.every, k.name == "lookahead"))
    return cbs


def schedule_of(recipe: Recipe, lr: float) -> Callback:
    "The callback of a schedule that is not the one-cycle"
    return training.create_schedule(recipe.schedule.name, lr, recipe.epochs, **recipe.schedule.options())


def work_of(recipe: Recipe, dls, known_rate: bool) -> dict[str, float]:
    """What each stage of a run costs, in forward passes of a picture, for the time that is left. Maps and
    page keep to their shares of the training"""
    trained = recipe.epochs * training.BACKWARD * len(dls.train.dataset)
    tests = isinstance(recipe.lr, LRFind) and not known_rate
    return {"range test": recipe.lr.num_it * training.BACKWARD * dls.train.bs if tests else 0.0,
            "training": trained + recipe.epochs * len(dls.valid.dataset),
            "test set": len(dls.loaders[-1].dataset) * VIEWS.get(recipe.tta, 1),
            "maps": .05 * trained, "page": .05 * trained}
