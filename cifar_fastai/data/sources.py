"""A source → checked pictures, labels and class names, in memory as uint8. No fastai.

    data = load_data("digits")               # "cifar10", "cifar100", "digits", an archive, a folder
    data.x_train.shape, data.classes         # (1437, 32, 32, 3), ('0', '1', …)
    small = data.limit(500, seed=0)          # stratified, the same pictures whatever the order of the files
    train, held = data.holdout(200, seed=0)  # indices into x_train

CIFAR is looked for in this order: the `CIFAR10_DIR` (`CIFAR100_DIR`) variable; then, in each of ./, ./data,
~/data, the cache folder (`machine.cache_dir`), $TORCH_HOME or ~/.cache/torch and its datasets/, and fastai's
data and archive folders ($FASTAI_HOME or ~/.fastai, as its config.ini says): the official archives, packed or
unpacked, and for CIFAR-10 a whole folder cifar10/train/<class>/*, cifar10/test/<class>/*; then the official
archive, which torchvision downloads."""
import configparser
import logging
import os
import shutil
import socket
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ..errors import InputError, UnknownName
from ..files import alone
from ..machine import cache_dir
from .archives import KINDS, official_in, read_official
from .image_data import ImageData, describe_arrays, described_fields, split_off
from .picture_cache import read_folder
from .pictures import read_picture
from .trees import is_zip

__all__ = ["NAMES", "already_here", "fetch", "load_data", "places", "read_picture"]

log = logging.getLogger("cifar_fastai")
NAMES = ("cifar10", "cifar100", "digits")
URL = "https://www.cs.toronto.edu/~kriz/"
WHOLE = (("train", 5000), ("test", 1000))   # pictures of a class in all of CIFAR-10


def load_data(
    source: str | Path = "cifar10",   # "cifar10", "cifar100", "digits", or a path: folder, .zip, archive
    *,
    size: int = 32,                   # side of the pictures, 8 to 256
    unverified: bool = False,         # take the files at a path or in CIFAR10_DIR whatever their MD5
    download: bool = True,            # fetch CIFAR where it is not found
    split: float | None = None,       # share of a folder without a test set that tests; None: 0.2
    split_seed: int = 0,              # which pictures these are: another seed, others
) -> ImageData:
    "Checked pictures from `source`. Raises: InputError, in one line, where that cannot be"
    if split is not None and not (isinstance(split, float) and 0 < split < 1):
        raise InputError(f"data split {split!r} is no share of the pictures. Give one such as 0.2.")
    if type(size) is not int or not 8 <= size <= 256:
        raise InputError(f"picture size {size!r} is not a whole number from 8 to 256.")
    try:
        if source in NAMES and split is not None: raise _has_its_own(source)
        if source == "digits": return _digits(size)
        if source in NAMES: return _cifar(source, size, unverified, download)
        return _from_path(Path(os.path.expanduser(source)), size, unverified, split=split, seed=split_seed)
    except OSError as e: raise InputError(f"cannot read data {source} ({e}). Check path and rights.") from e


def _has_its_own(source):
    return InputError(f"{source} has its own test set, so that a data split has no meaning. Leave it out.")


def _build(arrays, classes, source, files=(None, None), about=None):
    about = about or describe_arrays(*arrays, classes)
    data = ImageData(*arrays, classes, source, **described_fields(about),
                     files_train=files[0], files_test=files[1])
    log.debug("%s", data)
    if 0 in about["std"]:
        log.warning("a colour channel of %s has one value in all training pictures: nets see 0 there", source)
    if about["shared"]:
        log.warning("%s of %s test pictures of %s are byte-identical to training pictures",
                    f"{about['shared']:,}", f"{len(data.x_test):,}", source)
    return data


def _digits(size):
    "scikit-learn's digits: 8×8 grey 0…16 → RGB 0…255, enlarged by PIL's bicubic filter; 80/20 by seed 0"
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    grey, y = load_digits(return_X_y=True)
    small = (Image.fromarray((p.reshape(8, 8) * (255 / 16)).astype(np.float32)) for p in grey)
    big = np.stack([np.asarray(p.resize((size, size), Image.Resampling.BICUBIC)) for p in small])
    x = np.repeat(np.rint(big).clip(0, 255).astype(np.uint8)[..., None], 3, axis=3)
    train, test = train_test_split(np.arange(len(y)), test_size=.2, stratify=y, random_state=0)
    y = y.astype(np.int64)
    return _build((x[train], y[train], x[test], y[test]), tuple("0123456789"), "digits")


def _from_path(path, size, unverified, name="", split=None, seed=0):
    "What lies at `path`; with `name`, only that data set will do"
    if not path.exists():
        if len(path.parts) == 1 and not path.suffix:
            raise UnknownName("data source or path", str(path), NAMES)
        raise InputError(f"data {path} is not there. Give a folder, an archive or one of {', '.join(NAMES)}.")
    loose = path.is_dir() and not any((path / s).is_dir() for s in ("train", "test"))
    found = official_in(path, name) if loose else [] if path.is_dir() or is_zip(path) else [path]
    if not found: return _from_folder(path, size, name, split, seed)
    if split is not None: raise _has_its_own(found[0])
    if loose and not name and len({k.name for k in KINDS if official_in(path, k.name)}) > 1:
        raise InputError(f"{path} holds CIFAR-10 and CIFAR-100. Give the archive or the folder of one.")
    at, got = _first_whole(found, unverified)
    if name not in ("", got.kind.name):
        raise InputError(f"{at} holds {got.kind.name}, not {name}. Check the path.")
    x_train, x_test = (_resized(x, size) for x in (got.x_train, got.x_test))
    title = f"{at.name} (unverified)" if unverified else got.kind.name
    return _build((x_train, got.y_train, x_test, got.y_test), got.classes, title)


def _first_whole(found: list, unverified: bool) -> tuple:
    "The first of several copies that can be read, and what it holds. Raises: InputError where none can"
    for path in found[:-1]:
        try: return path, read_official(path, unverified)
        except InputError as e: log.warning("passed over: %s", e)
    return found[-1], read_official(found[-1], unverified)


def _from_folder(path, size, name, split, seed):
    "A folder of pictures, or a .zip of one; what has no test set is split"
    f = read_folder(path, size, describe_arrays)
    if name and len(f.classes) != int(name.removeprefix("cifar")):
        raise InputError(f"{path} has {len(f.classes)} classes, which is not {name}. Check the path.")
    if not len(f.x_test): f = _split_off(f, path, .2 if split is None else split, seed)
    elif split is not None: raise _has_its_own(path)
    return _build(f[:4], f.classes, name or str(path), (f.files_train, f.files_test), f.about)


def _split_off(f, path, share, seed):
    "`f` with a test set of its own pictures"
    train, test = split_off(f.x_train, f.y_train, share, seed)
    if not len(test):
        raise InputError(f"{path} has too few pictures to split off {share:g} of a class, or each is there "
                         "twice. Add pictures, give another data split or a folder with test/<class>/*.")
    log.warning("%s has no test set: %s of its %s pictures are split off to test, by class and content "
                "(seed %d; --data-split or split= changes the share)",
                path, f"{len(test):,}", f"{len(f.y_train):,}", seed)
    untested = sorted({f.classes[c] for c in np.setdiff1d(f.y_train, f.y_train[test])})
    if untested: log.warning("%s: too few pictures to test class %s", path, ", ".join(untested[:5]))
    parts = [a[i] for i in (train, test) for a in (f.x_train, f.y_train)]
    files = [[f.files_train[i] for i in idx] for idx in (train, test)]
    return f._replace(**dict(zip(f._fields, parts)), files_train=files[0], files_test=files[1])


def _resized(x, size): return x if x.shape[1] == size else np.stack([read_picture(p, size) for p in x])


def _cifar(name, size, unverified, download):
    "CIFAR from where its variable says, else from where it lies, else fetched"
    variable = f"{name.upper()}_DIR"
    if os.environ.get(variable):
        path = Path(os.path.expanduser(os.environ[variable]))
        if not path.exists(): raise InputError(f"{variable}={path} is not there. Correct or unset it.")
        return _from_path(path, size, unverified, name)
    for path in already_here(name):
        try: return _from_path(path, size, False, name)
        except InputError as e: log.warning("passed over: %s", e)
    try:
        if not download: raise InputError("download is off")
        return _from_path(fetch(name), size, False, name)
    except InputError as e:
        tried = ", ".join(map(str, places()))
        raise InputError(f"{name} was not found in {tried}; {variable} is not set; {e}. Give --data a path, "
                         f"set {variable}, or use --data digits, which needs no download.") from e


def places() -> list:
    "The folders that are searched, in order"
    home = Path(os.path.expanduser("~"))
    torch = Path(os.environ.get("TORCH_HOME") or home / ".cache/torch")
    fastai = Path(os.path.expanduser(os.environ.get("FASTAI_HOME") or home / ".fastai"))
    ini = configparser.ConfigParser()
    try: ini.read(fastai / "config.ini")
    except (configparser.Error, ValueError): log.warning("%s/config.ini is unreadable: ignored", fastai)
    own = [ini.get("DEFAULT", k, fallback=k, raw=True) for k in ("data", "archive")]
    own = [fastai / os.path.expanduser(p) for p in own]
    found = [Path(), Path("data"), home / "data", cache_dir(), torch, torch / "datasets", *own]
    return [p for p in found if p and "~" not in p.parts]


def already_here(
    name: str,     # "cifar10" or "cifar100"
) -> list:         # of paths for `load_data`, best first; not yet verified
    "What lies in `places` that looks like `name`"
    found = []
    for place in places():
        try:
            found += official_in(place, name)
            if name == "cifar10" and _is_whole(place / name): found.append(place / name)
        except OSError as e: log.warning("passed over: %s", e)
    return found


def _is_whole(folder):
    "Whether `folder` has ten classes of 5,000 and of 1,000 pictures: for a folder there is no checksum"
    for split, n in WHOLE:
        if not (folder / split).is_dir(): return False
        counts = [len(os.listdir(c)) for c in (folder / split).iterdir() if c.is_dir()]
        if counts != [n] * 10:
            log.warning("%s is not all of CIFAR-10 (%s pictures in %s/): ignored", folder, sum(counts), split)
            return False
    return True


def fetch(
    name: str,     # "cifar10" or "cifar100"
) -> Path:         # the archive, its MD5 checked, in `machine.cache_dir`
    "Download the official archive by torchvision. Raises `InputError` within 10 s where there is no network"
    kind, folder = next(k for k in KINDS if k.name == name), cache_dir()
    if folder is None: raise InputError("there is no home folder to keep it in (set XDG_CACHE_HOME)")
    why = _unreachable(URL + kind.archive)
    if why: raise InputError(f"{URL}{kind.archive} cannot be reached ({why})")
    archive = folder / kind.archive
    log.info("downloading %s to %s", URL + kind.archive, folder)
    from torchvision.datasets.utils import download_url
    try:
        with alone(archive) as waited, ExitStack() as after:
            if waited and archive.exists(): return archive
            for part in folder.glob("download-*"): shutil.rmtree(part, ignore_errors=True)   # of a killed one
            part = after.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix="download-"))
            after.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
            socket.setdefaulttimeout(30)
            download_url(URL + kind.archive, part, kind.archive, kind.md5)
            os.replace(Path(part) / kind.archive, archive)
        return archive
    except (OSError, RuntimeError) as e:
        raise InputError(f"the download of {URL}{kind.archive} to {folder} failed ({e})") from e


def _unreachable(url, seconds=8):
    "Why `url` does not answer, or ''; in a thread, because a name server that hangs obeys no timeout"
    from urllib.request import Request, urlopen
    answer = [f"no answer in {seconds} s"]

    def ask():
        try:
            with urlopen(Request(url, method="HEAD"), timeout=5): answer[0] = ""
        except Exception as e:   # also http.client's and a bad proxy's, which are no OSError
            answer[0] = " ".join(str(getattr(e, "reason", e)).split())[:120] or type(e).__name__

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0]
