"""A policy is plain values, checked when it is made."""
import json
from dataclasses import fields

import pytest

from cifar_fastai import policy
from cifar_fastai.errors import InputError
from cifar_fastai.policy import Policy


def test_the_named_policies_add_up_and_have_the_parameters_that_are_named():
    made = policy.none(), policy.pad_crop(), policy.pad_crop_flip(), policy.pad_crop_flip_cutout()
    assert [(p.pad, p.flip, p.cutout) for p in made] == [(0, 0, 0), (4, 0, 0), (4, .5, 0), (4, .5, 8)]
    assert all(p.mode == "reflect" and p.rotate == p.grey_p == 0 and not any(p.jitter) for p in made)
    assert policy.pad_crop_flip(2, .25, rotate=5, jitter=(.1, .2, .3, .4), grey_p=.2) == \
        Policy("pad_crop_flip", pad=2, flip=.25, rotate=5, jitter=(.1, .2, .3, .4), grey_p=.2)


@pytest.mark.parametrize("name", ["none", "pad_crop", "pad_crop_flip", "pad_crop_flip_cutout"])
def test_a_policy_is_found_by_its_name(name): assert policy.named(name) == getattr(policy, name)()


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="unknown augmentation policy 'padcrop'. Did you mean pad_crop"):
        policy.named("padcrop")


WRONG = [("flip", 1.5), ("cutout_p", -.1), ("rotate_p", 2), ("jitter_p", float("nan")), ("grey_p", "x"),
         ("pad", -1), ("pad", 1.5), ("cutout", -1), ("cutout", 2.5), ("rotate", float("nan")),
         ("mode", "wrap"), ("holes", (0, 1)), ("holes", (3, 1)), ("holes", (1,)), ("holes", 2),
         ("jitter", (.1, .1, .1)), ("jitter", (-1, 0, 0, 0)), ("jitter", .1), ("jitter", (0, 0, 0, .6)),
         ("fill", 300), ("fill", "red"), ("fill", float("nan")), ("flip", "always"), ("sizes", (24, 32)),
         ("sizes", ((1, 24), (2, 32))), ("sizes", ((0, 24), (0, 32))), ("sizes", ((0, 0),)), ("sizes", 24)]


@pytest.mark.parametrize("field, value", WRONG)
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(InputError, match=f"{field}=|padding mode 'wrap'") as error:
        Policy("p", **{field: value})
    assert "\n" not in str(error.value) and ("Give " in str(error.value) or field == "mode")


def test_every_field_is_tried_with_a_wrong_value():
    assert {f.name for f in fields(Policy)} - {f for f, _ in WRONG} == {"name"}


def test_a_variant_changes_what_it_names_and_is_checked_too():
    base = policy.pad_crop_flip()
    assert base.but(pad=2) == Policy("pad_crop_flip", pad=2, flip=.5) and base.pad == 4
    with pytest.raises(InputError, match="pad=-1"): base.but(pad=-1)
    with pytest.raises(InputError, match="unknown policy field 'pda'. Did you mean pad"): base.but(pda=2)


def test_a_policy_comes_back_from_json():
    p = policy.pad_crop_flip_cutout(jitter=(.1, .2, .3, .1), holes=(1, 2), fill=7)
    back = json.loads(json.dumps(p.as_dict()))
    assert policy.from_dict(back) == p
    assert policy.from_dict({"name": "pad_crop_flip", "flip": 1}) == policy.pad_crop_flip(flip=1)
    assert policy.from_dict({"pad": 2}) == Policy("own", pad=2)
