"""Side by side: contenders take turns in one process, and medians of at least five rounds are compared.

    times = alternate({"ours": epoch, "theirs": other})    # after a check that both give the same results
    ratio(times, "theirs", "ours")
"""
import os
import platform
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median

__all__ = ["Row", "alternate", "clock", "machine", "now", "ratio", "spread", "table", "threads", "timed_by",
           "until"]


CLOCK = [time.perf_counter]   # what `now` reads


@dataclass
class Row:
    "One goal of the table: what was measured against what, and whether it is reached"
    goal_id: str              # P1 … P11
    work: str
    against: str
    goal: float               # of `measured`
    measured: float           # a ratio, or seconds or milliseconds where `unit` says so
    at_most: bool = False     # whether less is better
    unit: str = "×"
    note: str = ""

    @property
    def passes(self) -> bool:
        return self.measured <= self.goal if self.at_most else self.measured >= self.goal

    def as_dict(self) -> dict: return asdict(self) | {"passes": self.passes}


def alternate(
    contenders: dict[str, Callable[[], float | None]],  # each works once, see `clock`
    rounds: int = 5,
    warm: int = 1,            # rounds that do not count
    over: Callable[[], bool] = lambda: False,  # whether time is up: then two rounds that count are enough
) -> dict[str, list[float]]:  # seconds a round
    "Let the contenders take turns: A B C, A B C, …"
    times = {name: [] for name in contenders}
    for k in range(warm + rounds):
        if k >= warm + 2 and over(): break
        for name, work in contenders.items():
            taken = clock(work)
            if k >= warm: times[name].append(taken)
    return times


def clock(work: Callable[[], float | None]) -> float:
    "Seconds that `work` took, or that it says it took"
    start = now()
    inside = work()
    return now() - start if inside is None else inside


def now() -> float:
    "Seconds by the clock in use"
    return CLOCK[0]()


@contextmanager
def timed_by(kind: str):
    "Time by \"wall\" clock, or by \"cpu\" time: for one thread on a machine where other programs run too"
    before, CLOCK[0] = CLOCK[0], {"wall": time.perf_counter, "cpu": time.process_time}[kind]
    try: yield
    finally: CLOCK[0] = before


def until(end: float, share: float = 1.0) -> Callable[[], bool]:
    "Whether `share` of the time from now to `end` (seconds of `time.monotonic`) is over"
    start = time.monotonic()
    return lambda: time.monotonic() - start >= share * (end - start)


def ratio(times: dict[str, list[float]], slow: str, fast: str) -> float:
    "Median of the rounds' own ratios: neighbours in time meet the same noise"
    return median(s / f for s, f in zip(times[slow], times[fast]))


def spread(times: dict[str, list[float]], name: str, base: str) -> str:
    "Median, lowest and highest of the rounds' own times in % of those of `base`"
    found = sorted(100 * t / b for t, b in zip(times[name], times[base]))
    return f"{median(found):6.1f}   ({found[0]:.1f} … {found[-1]:.1f})"


@contextmanager
def threads(n: int):
    "Let torch use `n` threads inside"
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try: yield
    finally: torch.set_num_threads(before)


def machine() -> dict:
    "What the figures hold for"
    import torch

    from cifar_fastai.machine import machine_name, versions
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": machine_name(), "cores": os.cpu_count(), "gpu": gpu, "system": platform.platform(),
            "versions": versions()}


def table(rows: list[Row]) -> str:
    "The rows as text: goal, measured, pass or short"
    lines = [("", "work", "against", "goal", "measured", "")]
    for r in rows:
        sign = "≤" if r.at_most else "≥"
        lines.append((r.goal_id, r.work, r.against, f"{sign} {r.goal:.3g} {r.unit}",
                      f"{r.measured:.3g} {r.unit}", "pass" if r.passes else "short"))
    widths = [max(len(line[k]) for line in lines) for k in range(6)]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in lines]
    notes = [f"\n{'':{widths[0]}}  {r.note}" if r and r.note else "" for r in [None, *rows]]
    return "\n".join(t + note for t, note in zip(text, notes))
