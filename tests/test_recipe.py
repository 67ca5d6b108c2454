"""A recipe is checked when it is made, and known by its numbers."""
import json
from dataclasses import FrozenInstanceError, fields

import albumentations as A
import pytest

from cifar_fastai import policy
from cifar_fastai.errors import InputError
from cifar_fastai.recipe import AT_LEAST_0, AT_LEAST_1, CHOICES, Recipe

NAN, INF = float("nan"), float("inf")


def make(**kwargs): return Recipe(**{"name": "mine", **kwargs})


def flip(p=.3): return A.HorizontalFlip(p=p)


@pytest.mark.parametrize("field", [f.name for f in fields(Recipe) if f.name != "aug"])
def test_a_value_of_another_type_is_refused_by_the_name_of_its_field(field):
    with pytest.raises(InputError, match=f"{field}={{}} is a dict. Give ") as error: make(**{field: {}})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", [*AT_LEAST_0, *AT_LEAST_1])
def test_a_value_below_its_range_is_refused_and_what_is_no_number_too(field):
    kind = next(f.type for f in fields(Recipe) if f.name == field)
    for wrong in (-1, *((NAN, INF) if kind is float else (True,))):
        with pytest.raises(InputError, match=f"{field}="): make(**{field: wrong})


@pytest.mark.parametrize("field", sorted(CHOICES))
def test_an_unknown_choice_is_answered_with_the_nearest_or_all(field):
    first = CHOICES[field][0]
    with pytest.raises(InputError, match=f"Did you mean .*{first}" if len(first) > 2 else "unknown"):
        make(**{field: first + "x"})


@pytest.mark.parametrize("wrong, says", [
    ({"lr": 0}, "lr=0. Give a number above 0, or find"), ({"lr": "fnd"}, "lr='fnd'"),
    ({"lr": NAN}, "lr=nan"), ({"lr": 1e4}, "lr=10000"), ({"mom": NAN}, "mom="),
    ({"mom": 1}, "mom=1. Give a number from 0 to below 1"), ({"smoothing": -.1}, "smoothing"),
    ({"limit": 1}, "limit=1. Give 2 or more"), ({"epochs": True}, "epochs"),
    ({"aug": "pad_crp"}, "Did you mean pad_crop"), ({"name": "a/b"}, "name='a/b'. Give letters"),
    ({"name": ""}, "name=''"), ({"name": ".."}, "name='..'"), ({"lr_range": ("a", "b")}, "lr_range="),
    ({"lr_range": (1, INF)}, "lr_range="), ({"moms": ("a",) * 3}, "moms="), ({"drop": NAN}, "drop=nan"),
    ({"aug": 7}, "aug=7. Give a policy such as"), ({"aug": {"pad": 4}}, "aug={'pad': 4}. Give a policy"),
    ({"aug": policy.pad_crop}, "aug=<function pad_crop .* Give a policy"), ({"aug": [flip, 3]}, "aug="),
    ({"clip_norm": NAN}, "clip_norm=nan"), ({"pct_start": 0.}, "pct_start=0.0. Give a number above 0")])
def test_a_value_that_makes_no_sense_is_refused(wrong, says):
    with pytest.raises(InputError, match=says): make(**wrong)


def test_control_all_defaults_and_whole_numbers_for_floats_are_taken():
    assert make(lr=1, wd=0, div=10, mom=0).lr == 1 and make().aug == policy.pad_crop_flip_cutout()


def test_a_variant_changes_what_it_names_and_is_checked():
    base = make()
    assert base.but(epochs=3, lr=.1).epochs == 3 and base.epochs == 20 and base.but() == base
    with pytest.raises(InputError, match="epochs=0"): base.but(epochs=0)
    with pytest.raises(InputError, match="unknown recipe field 'epoch'. Did you mean epochs"):
        base.but(epoch=3)
    with pytest.raises(FrozenInstanceError): base.epochs = 3


def test_an_unknown_field_is_python_own_error():
    with pytest.raises(TypeError, match="epoch"): make(epoch=3)


AUGS = [None, "pad_crop", policy.pad_crop(), flip(), [flip()], A.Compose([flip()]),
        [A.OneOf([flip(), flip(.2)])]]


@pytest.mark.parametrize("aug", AUGS, ids=str)
def test_any_augmentation_is_written_down_as_plain_values(aug):
    r = make(aug=aug, moms=(.9, .8, .9))
    assert json.loads(json.dumps(r.as_dict()))["moms"] == [.9, .8, .9]
    assert r.fingerprint() == make(aug=aug, moms=(.9, .8, .9)).fingerprint() != r.but(seed=1).fingerprint()


OTHERS = {"name": "other", "aug": "pad_crop", "lr": .1, "limit": 50, "clip_value": 1., "clip_norm": 1.,
          "pct_start": .3, "peak_epoch": 3., "moms": (.9, .8, .9), "lr_range": (1e-4, 1.), "model": "tiny",
          "opt": "adam", "cam": "layer4", "smoothing": .2, "mom": .5, "drop": .5, "wd_norm_bias": False}


def test_every_number_counts_for_the_fingerprint():
    base, found = make(smoothing=0., valid="holdout"), {}
    for f in fields(Recipe):
        value = getattr(base, f.name)
        other = next(c for c in CHOICES[f.name] if c != value) if f.name in CHOICES else OTHERS.get(f.name)
        changed = base.but(**{f.name: value + 1 if other is None else other})
        found.setdefault(changed.fingerprint(), []).append(f.name)
    assert [names for names in found.values() if len(names) > 1] == [] and base.fingerprint() not in found
    assert make(aug=[flip(.3)]).fingerprint() != make(aug=[flip(.4)]).fingerprint()


def test_it_describes_itself():
    assert make(lr=.1).describe() == "resnet18, 20 epochs, one_cycle with lr=0.1, batches of 512"
