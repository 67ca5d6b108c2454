"""The one kind of error a user is meant to see: what was wrong, what was found, what to do, in one line."""
from difflib import get_close_matches

__all__ = ["InputError", "unknown"]


class InputError(ValueError):
    "A wrong input. The command line prints its text without a traceback and ends with `exit_status`"
    exit_status = 2

    def __init__(self, message: str = ""):
        super().__init__(message)
        self.message = message

    def __str__(self): return self.message                # fastai rewrites the args of what a callback raises


def unknown(
    kind: str,       # what was asked for, as the user calls it: "layer", "recipe", "flag"
    name: str,       # the name that is not known
    choices,         # iterable of the names that are
) -> InputError:     # to be raised by the caller
    "An `InputError` for an unknown `name` that offers the nearest of `choices`, or all of a short list"
    choices = sorted(map(str, choices))
    near = get_close_matches(str(name), choices, n=3, cutoff=0.5)
    if near: return InputError(f"unknown {kind} {name!r}. Did you mean {' or '.join(near)}?")
    return InputError(f"unknown {kind} {name!r}. Choose from: {', '.join(choices)}.")
