"""Save so that a reader sees the old file or the new one; load the newest checkpoint that verifies.

    store = CheckpointStore("runs/demo/checkpoints")
    store.save({"model": model.state_dict()}, epoch=3, fingerprint={"seed": 0})
    state = store.load_newest(expect={"seed": 0})        # None where there is nothing to resume

A checkpoint is two files: `epoch-0003.pt`, tensors and plain values only, and the manifest `epoch-0003.json`.
The manifest is written last and removed first, so a `.pt` without one is a save that was cut short.
"""
import hashlib
import io
import json
import logging
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..files import read_json, save_atomically, sweep, write_json
from ..machine import versions

__all__ = ["CheckpointError", "CheckpointStore", "differences", "plain_values", "verified"]

log = logging.getLogger("cifar_fastai")
_NAME = re.compile(r"epoch-(\d{4,})(?:-batch-(\d{5,}))?")


class CheckpointError(InputError):
    "There are checkpoints, and none can be used"
    exit_status = 1


def plain_values(value, where: str = "state"):
    "`value` as tensors and plain Python values, which load without running code. Raises: TypeError"
    if value is None or isinstance(value, (bool, int, float, str)) and not isinstance(value, np.generic):
        return value
    if isinstance(value, torch.Tensor):
        value = value.detach().as_subclass(torch.Tensor)
        return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value   # a view of more
    if isinstance(value, np.generic): return value.item()
    if isinstance(value, np.ndarray):                     # torch does little with unsigned integers
        return torch.from_numpy(value.astype(np.int64 if value.dtype.kind == "u" else value.dtype))
    if isinstance(value, dict):
        return {plain_values(k, where): plain_values(v, f"{where}[{k!r}]") for k, v in value.items()}
    if isinstance(value, tuple): return tuple(plain_values(v, f"{where}[{i}]") for i, v in enumerate(value))
    if isinstance(value, list) or hasattr(value, "itemgot"):                 # fastcore's L
        return [plain_values(v, f"{where}[{i}]") for i, v in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}: only tensors and plain values can be saved")


def differences(saved: dict, expect: dict) -> str:
    "What of `expect` is not so in `saved`, field by field; empty where all agree"
    expect = json.loads(json.dumps(expect))
    return "; ".join(f"{name} was {_short(saved.get(name))}, is now {_short(value)}"
                     for name, value in expect.items() if saved.get(name) != value)


def _short(value, limit: int = 80) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[:limit - 1] + "…"


def verified(path: str | Path) -> dict:
    "The state in one checkpoint's `.pt` file. Raises: CheckpointError where it is not what was saved"
    try: return _read_state(Path(path), _read_manifest(Path(path)))
    except _Bad as reason: raise CheckpointError(f"{Path(path).name} {reason}.") from reason


class CheckpointStore:
    "The checkpoints of one run: the last `keep` of them, each complete or not there"

    def __init__(
        self,
        folder: str | Path,  # made at the first save
        keep: int = 2,       # older ones are removed once a new one is complete
    ):
        if keep < 1: raise InputError(f"keep must be at least 1, found {keep}.")
        self.folder, self.keep = Path(folder), keep

    def save(
        self,
        state: dict,                      # tensors and plain values, nested as you like
        epoch: int,                       # complete epochs
        batch: int = 0,                   # complete batches of the epoch after those
        fingerprint: dict | None = None,  # what a run must share to go on from here: JSON values by name
    ) -> Path:                            # the `.pt` file
        "Write one checkpoint, then remove what is no longer needed. Raises: SaveError, TypeError"
        fingerprint = json.loads(json.dumps(fingerprint or {}, allow_nan=False))
        self._sweep()
        path = self.folder / (f"epoch-{epoch:04d}" + (f"-batch-{batch:05d}" if batch else "") + ".pt")
        buffer = io.BytesIO()
        torch.save(plain_values(state), buffer)
        data = buffer.getbuffer()
        digest = save_atomically(path, data)
        write_json(path.with_suffix(".json"), {
            "sha256": digest, "bytes": data.nbytes, "epoch": epoch, "batch": batch,
            "fingerprint": fingerprint, "versions": versions()})
        self._prune((epoch, batch))
        return path

    def complete(self) -> list[Path]:
        "The `.pt` names that have a manifest, oldest first; not verified"
        found = [(place, path) for path in self.folder.glob("epoch-*.json") if (place := _place(path))]
        return [path.with_suffix(".pt") for _, path in sorted(found)]

    def newest(self) -> Path | None:
        "The name of the last complete checkpoint, for messages"
        return (self.complete() or [None])[-1]

    def load_newest(
        self,
        expect: dict | None = None,  # fields of the fingerprint that must agree
    ) -> dict | None:                # the state on the CPU; None where there is no checkpoint
        "The newest checkpoint that verifies. Raises: CheckpointError, InputError (another run's)"
        bad = []
        for path in reversed(self.complete()):
            try: state = _read_state(path, manifest := _read_manifest(path))
            except _Bad as reason:
                bad.append(f"{path.name} {reason}")
                continue
            if found := differences(manifest["fingerprint"], expect or {}):
                raise InputError(f"cannot resume from {path}: {found}. "
                                 "Use what the run was started with, or start a new one in another folder.")
            if bad: log.warning(f"{'; '.join(bad)}: going back to {path}")
            return state
        if bad: raise CheckpointError(f"no checkpoint in {self.folder} can be used: {'; '.join(bad)}. "
                                      "Restore one from a copy, or start a new run in another folder.")
        return None

    def _prune(self, place: tuple[int, int]) -> None:
        "Keep the one at `place` and the `keep` - 1 before it; one beyond was found bad when this run resumed"
        paths = self.complete()
        older = [p for p in paths if _place(p) < place]
        gone = older[:max(0, len(older) - self.keep + 1)] + [p for p in paths if _place(p) > place]
        for path in gone:
            with suppress(OSError):                       # in this order, or it would look like a broken one
                path.with_suffix(".json").unlink(missing_ok=True)
                path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        "Remove what dead processes left: temporary files, and `.pt` files whose manifest was never written"
        whole = set(self.complete())
        sweep(self.folder)
        for path in self.folder.glob("*.pt"):
            if _place(path) and path not in whole:
                with suppress(OSError): path.unlink(missing_ok=True)


class _Bad(Exception):
    "Why one checkpoint cannot be used"


def _place(path: Path) -> tuple[int, int] | None:
    "(epoch, batch) from a file's name; None for a file that is no part of a checkpoint"
    found = _NAME.fullmatch(path.stem)
    return (int(found[1]), int(found[2] or 0)) if found else None


def _read_manifest(path: Path) -> dict:
    "The manifest of `path`, its fields of the right types"
    kinds = {"sha256": str, "bytes": int, "fingerprint": dict}
    try: manifest = read_json(path.with_suffix(".json"))
    except InputError: manifest = {}
    if all(isinstance(manifest.get(k), t) for k, t in kinds.items()): return manifest
    raise _Bad("has no readable manifest")


def _read_state(path: Path, manifest: dict) -> dict:
    "The state in `path`, read once: the bytes that were checked are the bytes that are loaded"
    try:
        size = path.stat().st_size
        if size != manifest["bytes"]: raise _Bad(f"has {size:,} bytes instead of {manifest['bytes']:,}")
        data = path.read_bytes()
    except OSError as error: raise _Bad(f"cannot be read ({error.strerror})") from error
    if hashlib.sha256(data).hexdigest() != manifest["sha256"]: raise _Bad("is not what was saved (sha256)")
    try: state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:                            # a hostile file may provoke any; none of it was run
        raise _Bad(f"holds more than tensors and plain values ({type(error).__name__})") from error
    if not isinstance(state, dict): raise _Bad(f"holds a {type(state).__name__} instead of a state")
    return state
