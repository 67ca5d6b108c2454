"""A recipe is checked when it is made, and known by its numbers."""
import copy
import json
import pickle
from dataclasses import FrozenInstanceError, fields

import albumentations as A
import pytest

from cifar_fastai import Recipe, policy
from cifar_fastai.errors import InputError
from cifar_fastai.parts import (
    SCHEDULES,
    Explain,
    Loss,
    LRFind,
    OneCycle,
    Optimizer,
    Part,
    Plateau,
    Regularise,
    Step,
)

NAN, INF = float("nan"), float("inf")
PARTS = (Optimizer, Loss, LRFind, *SCHEDULES.values(), Regularise, Explain)
FIELDS = [(kind, f.name) for kind in PARTS for f in fields(kind)]
TOP = [f.name for f in fields(Recipe)]


def make(**kwargs): return Recipe(**{"name": "mine", **kwargs})


def flip(p=.3): return A.HorizontalFlip(p=p)


def named(case) -> str: return f"{case[0].__name__}.{case[1]}"


# values of the wrong kind

@pytest.mark.parametrize("field", [f for f in TOP if f != "aug"])
def test_a_value_of_another_type_is_refused_by_the_name_of_its_field(field):
    with pytest.raises(InputError, match=f"recipe .*{field}=b'' is a bytes. Give ") as error:
        make(**{field: b""})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", FIELDS, ids=named)
def test_so_is_one_in_a_part(case):
    kind, field = case
    says = f"{kind.__name__}: {field}={{}} is a dict. Give "
    with pytest.raises(InputError, match=says): kind(**{field: {}})


@pytest.mark.parametrize("field", [f.name for f in fields(Recipe) if f.type is int])
def test_a_number_below_its_range_is_refused_and_a_truth_value_too(field):
    for wrong in (-1, True):
        with pytest.raises(InputError, match=f"{field}="): make(**{field: wrong})


@pytest.mark.parametrize("case", [c for c in FIELDS if isinstance(getattr(c[0], c[1]), (int, float))
                                  and not isinstance(getattr(c[0], c[1]), bool)], ids=named)
def test_so_is_one_in_a_part_and_what_is_no_number(case):
    kind, field = case
    for wrong in (-1, *((NAN, INF) if isinstance(getattr(kind, field), float) else (True,))):
        with pytest.raises(InputError, match=f"{field}="): kind(**{field: wrong})


@pytest.mark.parametrize("make_it, says", [
    (lambda: make(lr=0), "lr=0. Give a rate above 0, or LRFind"),
    (lambda: make(lr="fnd"), "lr='fnd' is a str"),
    (lambda: make(lr=NAN), "lr=nan"), (lambda: make(lr=1e4), "lr=10000"),
    (lambda: make(limit=1), "limit=1. Give 2 or more"),
    (lambda: make(build={"norm": "bnx"}), "unknown norm of Build"),
    (lambda: make(keep="bst"), "Did you mean best"), (lambda: make(valid="tset"), "Did you mean test"),
    (lambda: make(tta="miror"), "Did you mean mirror"), (lambda: make(precision="fp31"), "Did you mean fp"),
    (lambda: make(name="a/b"), "name='a/b'. Give letters"), (lambda: make(name=""), "name=''"),
    (lambda: make(name=".."), "name='..'"), (lambda: make(aug="pad_crp"), "Did you mean pad_crop"),
    (lambda: make(aug=7), "aug=7. Give a policy such as"), (lambda: make(aug=[flip, 3]), "aug="),
    (lambda: make(aug={"padd": 4}), "unknown policy field 'padd'. Did you mean pad"),
    (lambda: make(aug={"transform": 1}), "only its own module can make. Run that module"),
    (lambda: make(opt="sgdd", schedule="stp"), "unknown schedule of recipe mine: 'stp'. Did you mean step"),
    (lambda: make(aug=policy.pad_crop), "aug=<function pad_crop .* Give a policy"),
    (lambda: Optimizer(mom=1), "mom=1. Give a number from 0 to below 1"),
    (lambda: Loss(smoothing=-.1), "smoothing"), (lambda: Loss("mse"), "unknown name of Loss"),
    (lambda: Loss("nll"), "smoothing=0.1. Give 0: loss nll has none"),
    (lambda: LRFind(rule="peek"), "Did you mean peak"), (lambda: LRFind(mode="lin"), "Did you mean linear"),
    (lambda: LRFind(on="test"), "unknown on of LRFind"),
    (lambda: LRFind(start_lr=1., end_lr=.1), "end_lr=0.1. Give the last rate, above start_lr"),
    (lambda: OneCycle(anneal="cosine"), "Did you mean cos"),
    (lambda: OneCycle(pct_start=1.), "pct_start=1.0. Give a share between 0 and 1"),
    (lambda: OneCycle(moms=("a",) * 3), "moms="), (lambda: OneCycle(moms=(.9,)), "moms=.* Give the momentum"),
    (lambda: make(schedule=OneCycle(peak_epoch=20)), "Give a peak within the 20 epochs"),
    (lambda: make(schedule=Plateau()), 'Give valid="holdout" .* the test set must not choose'),
    (lambda: make(keep="best"), 'Give valid="holdout" with it'),
    (lambda: make(lr=LRFind(on="holdout")), 'Give valid="holdout"'),
    (lambda: Step(drop=1.), "drop=1.0"), (lambda: Regularise(clip_value=0.), "clip_value=0.0. Give a number"),
    (lambda: Regularise(clip_norm=NAN), "clip_norm=nan"),
    (lambda: Regularise(l1_rule="some"), "Did you mean sum"),
    (lambda: Regularise(mixup=.4, cutmix=1.), "mixup or cutmix, not both")])
def test_a_value_that_makes_no_sense_is_refused(make_it, says):
    with pytest.raises(InputError, match=says): make_it()


def test_control_all_defaults_and_whole_numbers_for_floats_are_taken():
    r = make(lr=1, opt=Optimizer(wd=0, mom=0), schedule=OneCycle(div=10))
    assert r.lr == 1 and make().aug == policy.pad_crop_flip_cutout()
    watching = make(schedule=Plateau(), keep="best", lr=LRFind(on="holdout"), valid="holdout")
    assert watching.schedule.patience == 3


def test_at_most_twenty_fields_stand_at_the_top(): assert len(TOP) <= 20


# variants

def test_a_variant_changes_what_it_names_and_is_checked():
    base = make()
    assert base.but(epochs=3, lr=.1).epochs == 3 and base.epochs == 20 and base.but() == base
    with pytest.raises(InputError, match="epochs=0"): base.but(epochs=0)
    with pytest.raises(InputError, match="unknown recipe field 'epoch'. Did you mean epochs"):
        base.but(epoch=3)
    with pytest.raises(FrozenInstanceError): base.epochs = 3


def test_a_variant_reaches_inside_a_part():
    base = make(opt=Optimizer("adamw", mom=.8))
    for changes in ({"opt.wd": 1e-2}, {"opt": {"wd": 1e-2}}, {"opt": Optimizer("adamw", .8, 1e-2)}):
        assert base.but(**changes).opt == Optimizer("adamw", .8, 1e-2)
    two = base.but(**{"opt.wd": 1e-2, "opt.mom": .7, "aug.cutout": 16, "schedule.div": 10.0})
    assert (two.opt, two.aug.cutout, two.schedule.div) == (Optimizer("adamw", .7, 1e-2), 16, 10)
    assert two.but(opt=base.opt, aug=base.aug, schedule=base.schedule) == base
    assert base.but(aug={"cutout": 16}) == base.but(**{"aug.cutout": 16}) and base.aug.pad
    assert base.but(aug={"name": "pad_crop", "pad": 2}).aug == policy.pad_crop(2), "replaced as a whole"
    with pytest.raises(InputError, match="unknown policy field 'cutuot'"): base.but(aug={"cutuot": 16})


def test_another_schedule_begins_with_its_own_defaults_and_the_same_one_keeps_what_it_has():
    base = make(schedule=OneCycle(div=10.0))
    assert base.but(schedule={"name": "step", "drop": .5}).schedule == Step(drop=.5)
    same = base.but(schedule={"name": "one_cycle", "div_final": 10.0})
    assert same.schedule == OneCycle(div=10.0, div_final=10.0)
    with pytest.raises(InputError, match="unknown schedule of recipe mine: 'stp'. Did you mean step"):
        base.but(schedule={"name": "stp"})


def test_the_options_of_the_range_test_can_be_given_where_a_rate_stood():
    assert make(lr=.1).but(lr={"rule": "steep"}).lr == LRFind("steep") and make().but(lr=.1).lr == .1
    with pytest.raises(InputError, match="lr=0.1 is given, so lr.num_it has no meaning. Leave it out"):
        make(lr=.1).but(**{"lr.num_it": 50})


@pytest.mark.parametrize("wrong, says", [
    ({"opt.wdd": 1}, "unknown field of Optimizer 'wdd'. Did you mean wd"),
    ({"wd": 1e-3}, 'it is opt.wd. In Python give opt={"wd": …}, in JSON "opt": {"wd": …}'),
    ({"cam": "layer2"}, "it is explain.layer. In Python"), ({"lr_its": 50}, "it is lr.num_it"),
    ({"patience": 3}, "it is schedule.patience"), ({"seed.x": 1}, "seed={'x': 1} is a dict. Give int")])
def test_a_field_that_is_not_there_is_answered_with_where_it_is(wrong, says):
    with pytest.raises(InputError, match=says): make().but(**wrong)


def test_the_constructor_says_so_too():
    with pytest.raises(InputError, match="unknown recipe field 'epoch'. Did you mean epochs"): make(epoch=3)
    with pytest.raises(InputError, match="it is opt.wd. In Python give"): make(wd=1e-3)
    with pytest.raises(TypeError, match="name"): Recipe(epochs=3)


def test_a_recipe_can_be_copied_and_pickled():
    base = make(opt=Optimizer("adamw"), schedule=Step(drop=.5))
    assert pickle.loads(pickle.dumps(base)) == copy.deepcopy(base) == base


# JSON and fingerprint

AUGS = [None, "pad_crop", policy.pad_crop(), flip(), [flip()], A.Compose([flip()]),
        [A.OneOf([flip(), flip(.2)])]]


@pytest.mark.parametrize("aug", AUGS, ids=str)
def test_any_augmentation_is_written_down_as_plain_values(aug):
    r = make(aug=aug, schedule=OneCycle(moms=(.9, .8, .9)))
    assert json.loads(json.dumps(r.as_dict()))["schedule"]["moms"] == [.9, .8, .9]
    assert r.fingerprint() == r.but().fingerprint() != r.but(seed=1).fingerprint()


@pytest.mark.parametrize("r", [
    make(), make(lr=.1, schedule=Step(drop=.2)), make(schedule=OneCycle(moms=(.9, .8, .9))),
    make(aug="pad_crop"), make(aug=policy.pad_crop(pad=2), opt=Optimizer("adamw")),
    make(regularise=Regularise(l1=1e-4)),
    make(schedule=Plateau(), keep="best", valid="holdout")], ids=lambda r: r.schedule.name)
def test_what_json_holds_makes_the_same_recipe(r):
    again = Recipe.from_dict(json.loads(json.dumps(r.as_dict())))
    assert again == r and again.fingerprint() == r.fingerprint()


def others(part: Part) -> list[Part]:
    "The part with each of its fields changed in turn"
    other = {"name": {"sgd": "adam", "ce": "nll", "last": "best"}, "norm": {"bn": "gn"},
             "rule": {"peak": "steep"}, "mode": {"exp": "linear"},
             "on": {"train": "holdout"}, "anneal": {"linear": "cos"}, "l1_rule": {"sum": "scaled"},
             "layer": {None: "layer4"}, "moms": {None: (.9, .8, .9)}}
    def changed(name):
        value = getattr(part, name)
        if name in other: return other[name][value]
        if isinstance(value, bool): return not value
        if value is None: return 1.0
        if isinstance(value, int): return value + 1
        if value >= 1: return value + 1
        return .5 if value < .5 else value / 2
    return [part.but(**{f.name: changed(f.name)}) for f in fields(part)]


def test_every_number_counts_for_the_fingerprint():
    base = make(loss=Loss(smoothing=0.0), valid="holdout", limit=None)
    top = {"name": "other", "model": "tiny", "aug": "pad_crop", "lr": .1,
           "tta": "none", "valid": "test", "limit": 50, "precision": "fp32"}
    top |= {f: getattr(base, f) + 1 for f in ("epochs", "bs", "min_steps", "size", "seed")}
    variants = [base.but(**{k: v}) for k, v in top.items()]
    parts = ("build", "loss", "opt", "lr", "schedule", "regularise", "keep", "explain")
    for part in parts:
        variants += [base.but(**{part: p}) for p in others(getattr(base, part))]
    variants += [base.but(schedule=s()) for s in SCHEDULES.values() if s is not OneCycle]
    assert top.keys() | set(parts) == set(TOP)
    found = [r.fingerprint() for r in variants]
    assert len(set(found)) == len(found) and base.fingerprint() not in found
    assert make(aug=[flip(.3)]).fingerprint() != make(aug=[flip(.4)]).fingerprint()


# words

def test_it_describes_itself():
    assert make(lr=.1).describe() == "resnet18, 20 epochs, one_cycle with lr=0.1, batches of 512"


def test_settings_print_every_field_of_every_part_and_the_policys_own():
    said = make().settings().replace("\n", " ")
    assert "aug=pad_crop_flip_cutout(pad=4, flip=0.5, cutout=8)" in said
    assert all(f"{k}=" in said for k in TOP) and max(map(len, make().settings().splitlines())) <= 106
    for part in ("build", "loss", "opt", "lr", "schedule", "regularise", "keep", "explain"):
        for f in fields(getattr(make(), part)): assert f"{f.name}=" in said


def test_a_policy_by_name_is_the_policy():
    by_name, by_value = make(aug="pad_crop_flip"), make(aug=policy.pad_crop_flip())
    assert by_name == by_value and by_name.fingerprint() == by_value.fingerprint()
    assert make().but(aug="none").aug == policy.none() and by_name.but(**{"aug.pad": 2}).aug.pad == 2


@pytest.mark.parametrize("values", [{"model": "resnet18"}, {"name": "a", "aug": {"name": ["a"]}},
                                    {"name": "a", "schedule": {"name": {}}}], ids=str)
def test_what_is_no_recipe_is_refused_in_a_line(values):
    with pytest.raises(InputError, match="no recipe: .* Give fields of a recipe") as error:
        Recipe.from_dict(values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rate", [LRFind("peak", divide=8.), LRFind("minimum")])
def test_find_keeps_the_recipes_own_range_test(rate):
    assert make(lr=rate).but(lr="find").lr == rate and make(lr=.1).but(lr="find").lr == LRFind()
