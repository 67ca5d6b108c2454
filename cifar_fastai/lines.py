"""Lines for people: what this package's logger says, on stdout and in a run's log file.

    with lines_to("runs/demo/log.txt"): logging.getLogger("cifar_fastai").info("data  digits")
"""
import logging
import os
import sys
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path

from .files import SaveError

__all__ = ["lines_to"]


class _Shown(logging.StreamHandler):
    "Lines on stdout until its reader is gone: then the run goes on, and the log file has the rest"
    def handleError(self, record):
        if not isinstance(sys.exc_info()[1], BrokenPipeError): return super().handleError(record)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        return os.close(nowhere)


class _Kept(logging.FileHandler):
    "Lines in a file; a disk without room for them is an error like any other"
    def handleError(self, record):
        error = sys.exc_info()[1]
        if not isinstance(error, OSError): return super().handleError(record)
        raise SaveError(f"cannot write {self.baseFilename}: {error.strerror}. "
                        "Make room, then go on with --resume.")

    def close(self):
        with suppress(OSError): super().close()           # what did not fit has been told


def _shown_from(log: logging.Logger) -> float:
    "The least level that handlers of `log` or of the root show to people; infinite where there are none"
    handlers = [*log.handlers, *(logging.getLogger().handlers if log.propagate else [])]
    unseen = (logging.FileHandler, logging.NullHandler)
    return min((h.level for h in handlers if not isinstance(h, unseen)), default=inf)


@contextmanager
def lines_to(
    file: str | Path | None = None,   # a log file that gets the lines too, with the time of day
    quiet: bool = False,              # nothing on stdout but warnings
):
    """Show the lines of this package's logger on stdout for a while, but those that a handler of somebody
    else already shows"""
    log = logging.getLogger("cifar_fastai")
    handlers, level = [], log.level
    least, others = logging.WARNING if quiet else logging.INFO, _shown_from(log)
    if least < others:
        shown = _Shown(sys.stdout)
        shown.setLevel(least)
        shown.addFilter(lambda record: record.levelno < others)
        handlers.append(shown)
    if file is not None:
        kept = _Kept(file, encoding="utf-8")
        kept.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        handlers.append(kept)
    for h in handlers: log.addHandler(h)
    log.setLevel(logging.INFO)
    try: yield log
    finally:
        log.setLevel(level)
        for h in handlers:
            log.removeHandler(h)
            h.close()
