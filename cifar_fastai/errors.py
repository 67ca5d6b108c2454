"""`InputError`: what was wrong, what was found, what to do, in one line."""
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches

__all__ = ["InputError", "UnknownName", "report_errors"]


class InputError(ValueError):
    "A wrong input. The command line prints its text without a traceback and ends with `exit_status`"
    exit_status = 2

    def __init__(self, message: str = ""):
        super().__init__(message)
        self.message = message

    def __str__(self): return self.message                # fastai rewrites the args of what a callback raises


class UnknownName(InputError):
    "A name that is not known; offers the nearest of those that are, or all of a short list"

    def __init__(
        self,
        kind: str,   # what was asked for, as the user calls it: "layer", "recipe", "flag"
        name: str,   # the name that is not known
        choices,     # iterable of the names that are
    ):
        choices = sorted(map(str, choices))
        near = get_close_matches(str(name), choices, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Choose from: {', '.join(choices)}."
        super().__init__(f"unknown {kind} {name!r}. {hint}")

    def __reduce__(self): return InputError, (self.message,)   # a worker process sends its text alone


@contextmanager
def report_errors(debug: bool = False) -> Iterator[None]:
    "Turn an `InputError` into one line on stderr and its exit status; other errors keep their traceback"
    with suppress(AttributeError, OSError): sys.stdout.reconfigure(errors="backslashreplace")
    try: yield
    except BaseException as error:
        if debug: raise
        if isinstance(error, InputError):
            # a machine has one input and a run one signal: the first process of either speaks for all
            rank = {2: "LOCAL_RANK", 130: "RANK", 143: "RANK"}.get(error.exit_status, "")
            if os.environ.get(rank, "0") == "0": print(f"cifar_fastai: {error}", file=sys.stderr)
            raise SystemExit(error.exit_status) from None
        if isinstance(error, KeyboardInterrupt):
            print("cifar_fastai: stopped by Ctrl-C", file=sys.stderr)
            raise SystemExit(130) from None
        if isinstance(error, BrokenPipeError):   # the reader of our output is gone: nobody left to tell
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        raise
