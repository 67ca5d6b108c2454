"""Find CIFAR on this machine, or download it.

Order: the `CIFAR10_DIR` (`CIFAR100_DIR`) variable; then, in each of ./, ./data, ~/data, the cache folder
(`machine.cache_dir`), $TORCH_HOME or ~/.cache/torch and its datasets/, and fastai's data and archive
folders ($FASTAI_HOME or ~/.fastai, as its config.ini says): the official archives, packed or unpacked,
and for CIFAR-10 a whole folder cifar10/train/<class>/*, cifar10/test/<class>/*; then the official
archive, which torchvision downloads."""
import configparser
import logging
import os
import socket
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError
from ..machine import cache_dir
from .archives import KINDS, official_in

__all__ = ["already_here", "fetch", "places"]

log = logging.getLogger("cifar_fastai")
URL = "https://www.cs.toronto.edu/~kriz/"
WHOLE = (("train", 5000), ("test", 1000))   # pictures a class


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
) -> Path:         # the archive, its MD5 checked, in `data.folders.cache_dir`
    "Download the official archive by torchvision. Raises `InputError` within 10 s where there is no network"
    kind, folder = next(k for k in KINDS if k.name == name), cache_dir()
    if folder is None: raise InputError("there is no home folder to keep it in (set XDG_CACHE_HOME)")
    why = _unreachable(URL + kind.archive)
    if why: raise InputError(f"{URL}{kind.archive} cannot be reached ({why})")
    log.info("downloading %s to %s", URL + kind.archive, folder)
    from torchvision.datasets.utils import download_url
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as part, _socket_timeout(30):
            download_url(URL + kind.archive, part, kind.archive, kind.md5)
            os.replace(Path(part) / kind.archive, folder / kind.archive)
        return folder / kind.archive
    except (OSError, RuntimeError) as e:
        raise InputError(f"the download of {URL}{kind.archive} to {folder} failed ({e})") from e


@contextmanager
def _socket_timeout(seconds):
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try: yield
    finally: socket.setdefaulttimeout(before)


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
