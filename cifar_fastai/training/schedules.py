"""Learning-rate schedules as callbacks, for any fastai Learner; exact after a resume.

    learn.fit(24, cbs=schedules.one_cycle(0.4, 24, peak_epoch=5, anneal="linear"))
    learn.fit(50, cbs=schedules.plateau(0.02, 50, patience=3))

Names are fastai's. Its `div_final` divides the *peak*: last rate = lr / div_final. torch's `OneCycleLR`
divides the *first* rate by `final_div_factor`: its (div_factor=10, final_div_factor=1), which ends where it
began ("no annihilation"), is (div=10, div_final=10) here.
"""
from fastai.callback.schedule import ParamScheduler, SchedCos, SchedLin, combine_scheds

from .. import parts
from ..errors import InputError, UnknownName
from .callbacks import fitting
from .optimizers import batches_a_step
from .records import refuse_test_set, validated

__all__ = ["ANNEALS", "SCHEDULES", "PlateauSchedule", "RecordedSchedule", "constant", "create_schedule",
           "flat_cos", "one_cycle", "plateau", "step"]

ANNEALS = {"cos": SchedCos, "linear": SchedLin}


class RecordedSchedule(ParamScheduler):
    """fastai's `ParamScheduler`, which records rate and momentum of every batch, where there is a momentum.
    They change from step to step: batches whose gradients are accumulated share one"""

    def before_fit(self):
        self.run = fitting(self.learn)
        if not self.run: return
        self.share = batches_a_step(self.learn)
        hypers = self.opt.hypers[-1]
        self.scheds = {k: f for k, f in self.scheds.items() if k in hypers}
        self.hps = {k: [] for k in ("lr", "mom") if k in hypers}

    def before_batch(self):
        batches = self.n_epoch * len(self.dls.train)
        step = round(self.pct_train * batches) // self.share * self.share
        self._update_val(self.pct_train if self.share == 1 else step / batches)

    def after_batch(self):
        for k, values in self.hps.items(): values.append(self.opt.hypers[-1][k])


def one_cycle(
    lr,                        # peak rate; an array has one for each group of parameters
    epochs: int,
    pct_start: float = parts.OneCycle.pct_start,   # where the peak stands, as a share of the fit
    peak_epoch: float | None = None,               # the same in epochs, instead
    div: float = parts.OneCycle.div,               # first rate = lr / div
    div_final: float = parts.OneCycle.div_final,   # last rate = lr / div_final; as `div`: where it began
    anneal: str = parts.OneCycle.anneal,           # "linear", or "cos" as in fastai
    moms: tuple | None = None,  # momentum at start, peak and end; None: as the optimiser has it
) -> RecordedSchedule:
    "Up to the peak and down again (Smith 2018). Raises: InputError for a peak outside of the fit"
    if anneal not in ANNEALS: raise UnknownName("annealing", anneal, ANNEALS)
    if peak_epoch is not None:
        if not 0 < peak_epoch < epochs:
            raise InputError(f"peak_epoch={peak_epoch} is not within {epochs} epochs. "
                             "Give an epoch inside, or a share by pct_start.")
        pct_start = peak_epoch / epochs
    scheds = {"lr": _two(pct_start, lr / div, lr, lr / div_final, ANNEALS[anneal])}
    if moms is not None: scheds["mom"] = _two(pct_start, *map(float, moms), ANNEALS[anneal])
    return RecordedSchedule(scheds)


def _two(pct, start, middle, end, sched):
    if not 0 < pct < 1: raise InputError(f"pct_start={pct}. Give a share of the run between 0 and 1.")
    return combine_scheds([pct, 1 - pct], [sched(start, middle), sched(middle, end)])


def flat_cos(
    lr,                        # rate of the flat part
    epochs: int,
    pct_start: float = parts.FlatCos.pct_start,    # share of the fit after which the rate falls
    div_final: float = parts.FlatCos.div_final,    # last rate = lr / div_final
) -> RecordedSchedule:
    "Constant, then down by a half cosine"
    return RecordedSchedule({"lr": _two(pct_start, lr, lr, lr / div_final, SchedCos)})


def step(
    lr,                        # first rate
    epochs: int,
    step_every: int = parts.Step.step_every,       # epochs from one drop to the next
    drop: float = parts.Step.drop,                 # the rate is multiplied by it
) -> RecordedSchedule:
    "lr · drop^⌊epoch / step_every⌋, as torch's `StepLR` once an epoch"
    def at(pct): return lr * drop ** int(pct * epochs / step_every + 1e-6)     # pct is a sum of floats
    return RecordedSchedule({"lr": at})


def constant(lr, epochs: int) -> RecordedSchedule:
    "The same rate throughout"
    return RecordedSchedule({"lr": lambda pct: lr})


class PlateauSchedule(RecordedSchedule):
    """Lower the rate when the holdout loss has stopped falling, by the rules of torch's `ReduceLROnPlateau`
    (mode "min", relative threshold). Raises: InputError where the validation set is the test set."""

    def __init__(
        self,
        lr,                        # first rate
        patience: int = parts.Plateau.patience,    # epochs without a better loss that are waited for
        drop: float = parts.Plateau.drop,          # the rate is multiplied by it
        cooldown: int = parts.Plateau.cooldown,    # epochs after a drop that do not count
        min_lr: float = parts.Plateau.min_lr,      # the rate stays at or above it
        threshold: float = 1e-4,   # a loss is better where it is lower by this share
    ):
        super().__init__({})
        self.lr, self.patience, self.drop, self.cooldown = lr, patience, drop, cooldown
        self.min_lr, self.threshold = min_lr, threshold

    def fit_rule(self) -> dict:
        "What a resumed fit must share beside its first rate: a schedule that goes by losses is not sampled"
        names = "patience", "drop", "cooldown", "min_lr", "threshold"
        return {f"the plateau's {k}": getattr(self, k) for k in names}

    def before_fit(self):
        super().before_fit()
        if not self.run: return
        refuse_test_set(self.learn, "the plateau schedule")
        self.opt.set_hyper("lr", self.lr)
        self.best, self.bad, self.cooling = float("inf"), 0, 0

    def after_epoch(self):
        loss = validated(self.learn, "valid_loss")
        if loss is None: return
        better = loss < self.best * (1 - self.threshold)
        self.best, self.bad = (loss, 0) if better else (self.best, self.bad + 1)
        if self.cooling: self.cooling, self.bad = self.cooling - 1, 0
        if self.bad <= self.patience: return
        self.opt.set_hyper("lr", [max(h["lr"] * self.drop, self.min_lr) for h in self.opt.hypers])
        self.bad, self.cooling = 0, self.cooldown

    def state_dict(self):      # empty before the first fit
        return {k: v for k, v in vars(self).items() if k in ("hps", "best", "bad", "cooling")}

    def load_state_dict(self, state): vars(self).update(state)


def plateau(lr, epochs: int, **options) -> PlateauSchedule:
    "`PlateauSchedule`, called like the others"
    return PlateauSchedule(lr, **options)


SCHEDULES = {f.__name__: f for f in (one_cycle, flat_cos, step, plateau, constant)}


def create_schedule(
    name: str,             # of `SCHEDULES`
    lr: float,
    epochs: int,
    **options,
) -> RecordedSchedule:
    "A schedule by name. Raises: InputError for an unknown name or a value out of range"
    if name not in SCHEDULES: raise UnknownName("schedule", name, SCHEDULES)
    return SCHEDULES[name](lr, epochs, **options)
