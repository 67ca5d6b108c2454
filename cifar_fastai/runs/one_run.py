"""One run: DataBlock → Learner → lr_find → fit_one_cycle → interpretation → Grad-CAM → a folder.
What `python -m recipes.<name>` calls.

    run = train(recipe, data="digits", out="runs/demo")
    run.accuracy, run.folder, run.interp.plot_gradcam(9)

    learn = learner_of(recipe, "digits")          # the Learner that `train` trains, to go on with by hand
    fit(learn.recipe, learn, find_lr(learn.recipe, learn).chosen)
"""
import logging
from pathlib import Path

from fastcore.basics import listify

from ..data import ImageData
from ..errors import InputError
from ..explain import GradCAMCallback, ImageInterpretation
from ..files import read_json
from ..loaders import cifar_dataloaders
from ..parts import LRFind, OneCycle
from ..processes import differs, join, rank, world
from ..recipe import Recipe
from ..training import ImageLearner, cifar_learner
from ..tricks import Compiled, whiten_stem
from ..weights import read_tensors
from . import from_recipe
from .report import FoundRate, numbers, write_data, write_interpretation, write_training
from .run_folder import begun, locked, recipe_of, seal_again
from .run_writer import Run, RunWriter, found_rate, open_run, read_history, write_page

__all__ = ["find_lr", "fit", "learner_of", "load_run", "report_again", "train"]

log = logging.getLogger("cifar_fastai")


def train(
    recipe: Recipe,
    data: ImageData | str | Path = "cifar10",  # pictures, or a source for `load_data`
    out: str | Path | None = None,    # run folder; None: runs/<recipe>/<time>-seed<k>
    *,
    cbs=None,                         # callbacks of yours that the fit has beside the recipe's
    unverified: bool = False,         # read archives whose MD5 is not the official one
    split: float | None = None,       # share of a folder without a test set that tests; None: 0.2
    workers: int | None = None,       # processes that augment; None: chosen by device and cores
    device: str | None = None,        # "cpu", "cuda" …; None: the best there is
    compiled: bool = False,           # steps by `torch.compile`
    scale_lr: str | None = None,      # "linear" or "sqrt": see `runs.from_recipe.lr_factor`
    resume: bool = False,             # go on from the newest checkpoint in `out` that verifies
    checkpoint_minutes: float | None = None,  # also save within an epoch, every so many minutes
    quiet: bool = False,              # print warnings only
) -> Run:
    """Train `recipe` on `data`, explain the result on the test set and leave it all in a folder.
    Raises: InputError for a wrong input, before training starts; Stopped after a signal."""
    from_recipe.check_names(recipe)
    device = join(device)                # of this process, where several train together
    with open_run(recipe, out, resume, checkpoint_minutes, quiet) as writer:
        recipe = from_recipe.shared_out(recipe, writer.before.get("processes", world()))
        given = {"data_split": split, "scale_lr": scale_lr, "compiled": compiled, "unverified": unverified}
        decided = from_recipe.decisions(recipe, writer.before, given)
        learn = learner_of(recipe, data, unverified=decided["unverified"], split=decided["data_split"],
                           workers=workers, device=device, precision=writer.before.get("precision"))
        for kind, own in (("pictures", learn.dls.data.fingerprint), ("recipes", learn.recipe.fingerprint())):
            if differs(own): raise InputError(f"the hosts have different {kind}. Give all of them the same.")
        writer.begin(learn, data, decided)
        maps = GradCAMCallback(recipe.explain.layer, every=recipe.explain.every, measure=False,
                               path=writer.folder / "figures" / "gradcam_epochs.png")
        compiler = [Compiled()] if decided["compiled"] else []
        with learn.distrib_ctx():                 # as many processes as were started together
            found = writer.rate_found() or find_lr(learn.recipe, learn, decided["lr_factor"])
            writer.keep_rate(found)
            if not rank(): write_data(writer.folder, learn.dls)
            fit(learn.recipe, learn, found.chosen, cbs=[*writer.callbacks(), maps, *compiler, *listify(cbs)])
            interp = ImageInterpretation.from_learner(learn, ds_idx=-1, tta=recipe.tta)   # of the test set
        if rank(): return Run(writer.folder, numbers(interp), learn, interp)     # the first process writes
        return _explained(writer, interp, found, maps)


def _explained(writer: RunWriter, interp: ImageInterpretation, found: FoundRate, maps) -> Run:
    "Top losses, Grad-CAM, curves … and the end of the run's folder"
    explain = writer.learn.recipe.explain
    write_training(writer.folder, **writer.recorded(), found=found if found.lrs else None)
    evidence = writer.measure_maps(interp)           # can the maps be believed?
    maps.caption(evidence.get("gradcam", []))
    write_interpretation(writer.folder, interp, layer=explain.layer, n=explain.gallery, evidence=evidence)
    return writer.finish(interp, found)


def learner_of(
    recipe: Recipe,
    data: ImageData | str | Path = "cifar10",   # pictures, or a source for `load_data`
    *,
    unverified: bool = False,
    split: float | None = None,
    workers: int | None = None,
    device: str | None = None,
    precision: str | None = None,               # None: the recipe's
) -> ImageLearner:
    """The Learner that `train` trains, ready for `lr_find` and a fit; `learn.recipe` has the batch size and
    the picture size that the data allows. Raises: InputError"""
    from_recipe.check_names(recipe)
    data = from_recipe.load_pictures(recipe, data, unverified, split)
    recipe = from_recipe.adapted_to(recipe, data)
    # a DataBlock with an Albumentations item transform (`cifar_block`) makes these
    dls = cifar_dataloaders(data, recipe.bs, recipe.aug, recipe.valid, recipe.seed, workers, device=device)
    build, opt, loss = recipe.build, recipe.opt, recipe.loss
    learn = cifar_learner(dls, recipe.model, norm=build.norm, zero_residual=build.zero_residual,
                          opt=opt.name, mom=opt.mom, wd=opt.wd, wd_norm_bias=opt.wd_norm_bias,
                          bias_lr=opt.bias_lr, head_lr=opt.head_lr, loss_func=loss.name,
                          smoothing=loss.smoothing, precision=precision or recipe.precision, seed=recipe.seed)
    if build.whiten: whiten_stem(learn, build.whiten)
    learn.recipe = recipe
    return learn


def load_run(
    folder: str | Path,                 # of a run that has ended, on this machine or another
    data: ImageData | str | Path | None = None,   # None: where the run had it from
    *,
    device: str | None = None,
    workers: int | None = None,
) -> Run:
    """A run from its folder: its Learner with the trained weights, its results, and `interp`, predicted anew
    when it is first asked for. Reads safetensors and JSON alone: nothing in the folder is executed.
    Raises: InputError for a folder that holds no whole run, or other data than the run had"""
    folder = Path(folder)
    recipe, before = recipe_of(folder), begun(folder)
    precision = "auto" if before.get("precision") == "fp16" else before.get("precision")     # a GPU's alone
    results = read_json(folder / "results.json")
    source = data if data is not None else before.get("data") or results["data"]
    learn = learner_of(recipe, source, unverified=before.get("unverified", False), device=device,
                       split=before.get("data_split"), workers=workers, precision=precision)
    if (has := learn.dls.data.fingerprint) != results["data_fingerprint"]:
        raise InputError(f"{learn.dls.data.source} holds other pictures than the run in {folder} had "
                         f"({has[:8]}, not {results['data_fingerprint'][:8]}). Give its data.")
    learn.model.load_state_dict(read_tensors(folder / "weights.safetensors")[0])
    return Run(folder, results, learn)


def report_again(folder: str | Path, **kwargs) -> Path:
    "Write the page of a run that has ended anew; further arguments: `load_run`. Raises: InputError"
    folder, run = Path(folder), load_run(folder, **kwargs)
    with locked(folder):
        page = write_page(run, read_history(folder), found_rate(folder))
        seal_again(folder, page)
    return page


def find_lr(
    recipe: Recipe,
    learn: ImageLearner,
    factor: float = 1.0,      # times a rate that is given
) -> FoundRate:
    "The recipe's rate: the one that is given, or the one that the range test finds on the training loss"
    test = recipe.lr
    if not isinstance(test, LRFind):
        log.info("rate        %g (given%s)", test * factor, f", {test:g} × {factor:g}" if factor != 1 else "")
        return FoundRate([], [], {}, test * factor)
    with learn.added_cbs(from_recipe.regularisers_of(recipe)):
        rates = learn.lr_find(test.start_lr, test.end_lr, test.num_it, n_epoch=recipe.epochs,
                              warm_up=recipe.warm_up, mode=test.mode, on=test.on, show_plot=False,
                              suggest_funcs=from_recipe.suggestions_of(recipe))
    return FoundRate(learn.recorder.lrs, [float(v) for v in learn.recorder.losses], rates._asdict(),
                     from_recipe.choose_rate(recipe, learn, rates), test.mode, test.on)


def fit(
    recipe: Recipe,
    learn: ImageLearner,
    lr: float,       # the peak rate
    cbs=None,        # further callbacks
) -> None:
    "Fit as the recipe says: by `fit_one_cycle`, or by `fit` with the callback of another schedule"
    s, cbs = recipe.schedule, [*listify(cbs), *from_recipe.extras_of(recipe)]
    if isinstance(s, OneCycle):
        learn.fit_one_cycle(recipe.epochs, lr, div=s.div, div_final=s.div_final, anneal=s.anneal, moms=s.moms,
                            pct_start=recipe.warm_up / recipe.epochs, cbs=cbs)
    else: learn.fit(recipe.epochs, lr, cbs=[from_recipe.schedule_of(recipe, lr), *cbs])
