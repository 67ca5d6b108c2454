"""The lines of this package's logger on stdout and in a run's log file, and errors in one line.

    with show_log("runs/demo/log.txt"): logging.getLogger("cifar_fastai").info("data  digits")
"""
import errno
import logging
import os
import sys
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path

from fastprogress.fastprogress import format_time

from ..errors import InputError
from ..files import SaveError, read_json
from ..recipe import counted

__all__ = ["LostProcess", "OutOfMemory", "announce", "one_line_errors", "show_log", "show_table",
           "silent_log"]

log = logging.getLogger("cifar_fastai")
NO_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class _Shown(logging.StreamHandler):
    """Lines on stdout, above the live display if there is one; where its reader has closed the pipe the run
    goes on, and the log file has the rest"""
    stream = property(lambda self: sys.stdout, lambda self, stream: None)

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
        with suppress(OSError): super().close()           # the error was raised before


def _shown_from(log: logging.Logger) -> float:
    "The least level that handlers of `log` or of the root show to people; infinite where there are none"
    handlers = [*log.handlers, *(logging.getLogger().handlers if log.propagate else [])]
    unseen = (logging.FileHandler, logging.NullHandler)
    return min((h.level for h in handlers if not isinstance(h, unseen)), default=inf)


@contextmanager
def show_log(
    file: str | Path | None = None,   # a log file that gets the lines too, with the time of day
    quiet: bool = False,              # nothing on stdout but warnings
):
    """Show the lines of this package's logger on stdout for a while, but those that a handler of somebody
    else already shows"""
    handlers, level = [], log.level
    least, others = logging.WARNING if quiet else logging.INFO, _shown_from(log)
    if least < others:
        shown = _Shown()
        shown.setLevel(least)
        shown.addFilter(lambda record: record.levelno < others and not getattr(record, "in_table", False))
        handlers.append(shown)
    if file is not None:
        kept = _Kept(file, encoding="utf-8", errors="backslashreplace")
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


@contextmanager
def silent_log():
    "Nothing of this package's logger: of several processes that train together the first one tells"
    was, log.disabled = log.disabled, True
    try: yield
    finally: log.disabled = was


def show_table(
    rows: dict[str, str],
    links: dict[str, str],     # row → what a click on it opens
) -> None:
    "A table of two columns at the terminal, by rich, which honours NO_COLOR"
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
    table = Table(show_header=False, border_style="dim")
    for name, text in rows.items():
        style = f"link {links[name]}" if name in links else ""
        table.add_row(Text(name, "bold"), Text(text, style, overflow="fold"))
    Console(highlight=False).print(table)


def announce(r: dict, folder: Path, in_table: bool) -> None:
    "The figures of results.json, as a table at a terminal and as lines of the log elsewhere"
    page, hidden = (folder / "report.html").resolve().as_uri(), {"in_table": in_table}
    pictures, mistakes = counted(r["pictures"], "picture"), counted(r["mistakes"], "mistake")
    tta = {f"with {r['tta']} TTA": f"{r['accuracy_tta']:.2%}"} if "accuracy_tta" in r else {}
    log.info("test        %.2f %% of %s%s; cross-entropy %.4f, %s", 100 * r["accuracy"], pictures,
             "".join(f", {v} {k}" for k, v in tta.items()), r["cross_entropy"], mistakes, extra=hidden)
    log.info("took        %.0f s", r["seconds"], extra=hidden)
    log.info("page        %s", page, extra=hidden)
    log.info("folder      %s", folder, extra=hidden)
    if in_table:
        show_table({"accuracy": f"{r['accuracy']:.2%} of {pictures}", **tta, "mistakes": f"{r['mistakes']:,}",
                    "cross-entropy": f"{r['cross_entropy']:.4f}", "time": format_time(r["seconds"]),
                    "page": page, "folder": str(folder)},
                   links={"page": page, "folder": page.removesuffix("report.html")})


class OutOfMemory(InputError):
    "The device, or this process, has no room for a batch"
    exit_status = 1


class LostProcess(InputError):
    "One of the processes that train together is gone, so the others cannot go on"
    exit_status = 1


@contextmanager
def one_line_errors(
    folder: str | Path,   # of the run
    bs: int,              # pictures a batch, as asked for; recipe.json has those that the data allows
):
    """Turn out-of-memory, disk-full, lost processes and signals into one-line errors that name the last
    checkpoint. Raises: LostProcess, OutOfMemory, SaveError, Stopped"""
    from ..checkpoints import CheckpointStore, Stopped  # not above: log lines are wanted before fastai is
    goes_on = f"Go on with --resume: {folder} is whole."
    try: yield
    except Stopped as stop:
        if not (Path(folder) / "checkpoints").exists(): raise
        raise Stopped(f"{stop} {goes_on}", stop.signum) from None
    except InputError: raise
    except (MemoryError, RuntimeError) as error:
        from ..processes import of_other_process
        if of_other_process(error):
            found = " ".join(str(error).split())[:200]
            raise LostProcess(f"another process ended or hangs ({found}). Its own error says why. "
                              f"{goes_on}") from error
        if not _for_memory(error): raise
        saved = CheckpointStore(Path(folder) / "checkpoints").newest()
        if (written := Path(folder) / "recipe.json").exists(): bs = read_json(written).get("bs", bs)
        kept = f" Last good checkpoint: {saved}; with more memory go on by --resume." if saved else ""
        found = (str(error).splitlines() or ["no room"])[0].rstrip(".")
        raise OutOfMemory(f"out of memory with batches of up to {bs} ({found[:200]}). Start a run with "
                          f"smaller ones, such as --bs {max(1, bs // 2)}.{kept}") from error
    except OSError as error:
        if error.errno not in NO_DISK: raise
        raise SaveError(f"cannot write in {folder}: {error.strerror}. Make room, then go on with --resume; "
                        "what was saved before is unchanged.") from error


def _for_memory(error: Exception) -> bool:
    "Whether `error` says that memory ran out; on a CPU torch has no type of its own for that"
    import torch
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)
