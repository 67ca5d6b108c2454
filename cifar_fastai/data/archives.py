"""The official CIFAR files, packed or unpacked: read member by member, by name, type and size.

    cifar = read_official("cifar-10-python.tar.gz")         # any of the four archives, or its unpacked folder
    cifar.x_train.shape, cifar.classes                      # (50000, 32, 32, 3), ('airplane', …)
    read_official("my-small-copy.tar.xz", unverified=True)  # another MD5: only when asked to"""
import bz2
import gzip
import hashlib
import lzma
import stat
import tarfile
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from .archive_members import binary_rows, one_line, python_rows, read_class_names

__all__ = ["KINDS", "Kind", "Official", "official_in", "read_official"]

Official = namedtuple("Official", "kind x_train y_train x_test y_test classes")   # x (N,32,32,3), y (N,)
MOST = 450_000_000   # bytes an archive may unpack to; the official ones: 186 MB


@dataclass(frozen=True)
class Kind:
    "One official archive: what is in it and what it must sum to"
    name: str            # the data set: "cifar10" or "cifar100"
    n_classes: int
    archive: str         # file name on the authors' page
    md5: str             # of the whole archive
    folder: str          # the one folder inside
    train: tuple         # members with training pictures, in order
    test: str
    meta: str            # member with the class names
    extra: tuple         # members that are not read
    largest: int         # bytes of a member, generously
    sums: tuple = ()     # MD5 of (*train, test, meta), from torchvision; none are published for binary

    @property
    def binary(self): return self.test.endswith(".bin")
    @property
    def members(self): return (*self.train, self.test, self.meta)
    def lies_in(self, folder): return sum((folder / m).is_file() for m in self.members) > 1   # one: by chance


KINDS = (
    Kind("cifar10", 10, "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a",
         "cifar-10-batches-py", tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta",
         ("readme.html",), 40_000_000,
         ("c99cafc152244af753f735de768cd75f", "d4bba439e000b95fd0a9bffe97cbabec",
          "54ebc095f3ab1f0389bbae665268c751", "634d18415352ddfa80567beed471001a",
          "482c414d41f54cd18b22e5b47cb7c3cb", "40351d587109b95175f43aff81a1287e",
          "5ff9c542aee3614f3951f8cda6e48888")),
    Kind("cifar10", 10, "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530",
         "cifar-10-batches-bin", tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin",
         "batches.meta.txt", ("readme.html",), 40_000_000),
    Kind("cifar100", 100, "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python",
         ("train",), "test", "meta", ("file.txt~",), 200_000_000,
         ("16019d7e3df5f24257cddd939b257f8d", "f0ef6b0ae62326f3e7ffdfab6717acfc",
          "7973b15100ade9c7d40fb424638fde48")),
    Kind("cifar100", 100, "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary",
         ("train.bin",), "test.bin", "fine_label_names.txt", ("coarse_label_names.txt",), 200_000_000),
)


def official_in(
    folder: Path,      # an unpacked folder, its parent, or a place where archives are kept
    name: str = "",    # "cifar10" or "cifar100"; else both
) -> list:             # paths for `read_official`
    "The official CIFAR files in `folder`, judged by names alone"
    found = []
    for kind in [k for k in KINDS if name in ("", k.name)]:
        found += [d for d in (folder, folder / kind.folder) if kind.lies_in(d)]
        found += [p for p in [folder / kind.archive] if p.is_file()]
    return found


def read_official(
    path: Path,                # archive (plain tar, or packed by gzip, xz or bzip2) or unpacked folder
    unverified: bool = False,  # take files with another MD5; their structure is checked all the same
) -> Official:
    """Pictures and labels of an official CIFAR archive or folder.
    Raises: InputError where checksum, members, sizes, rows, labels or class names are not right"""
    path = Path(path)
    kind, members = _read_folder(path, unverified) if path.is_dir() else _read_archive(path, unverified)
    absent = [m for m in kind.members if m not in members]
    if absent: raise InputError(f"{path} lacks {', '.join(absent)}. Fetch {kind.archive} again.")
    classes = read_class_names(members.pop(kind.meta), kind.n_classes, f"{path}: {kind.meta}", kind.binary)
    rows = binary_rows if kind.binary else python_rows
    parts = {m: rows(members.pop(m), kind.n_classes, f"{path}: {m}") for m in (*kind.train, kind.test)}
    x_test, y_test = parts.pop(kind.test)
    x_train, y_train = (np.concatenate(p) for p in zip(*parts.values()))
    return Official(kind, _pictures(x_train), y_train, _pictures(x_test), y_test, classes)


def _pictures(rows):
    "(N,3072) rows, channel by channel → (N,32,32,3)"
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _check_size(what, found, most):
    if 0 <= found <= most: return
    raise InputError(f"{what} has {found:,} bytes, CIFAR needs at most {most:,}. Fetch the official archive.")


def _check_md5(path, expected, found):
    if expected == found: return
    raise InputError(f"{path} is not the official file: MD5 expected {expected}, found {found}. "
                     "Fetch it again, or pass --unverified to use it as it is.")


def _read_folder(folder, unverified):
    kind = next((k for k in KINDS if k.lies_in(folder)), None)
    if kind is None: raise InputError(f"{folder} holds no CIFAR batches. Give their folder or archive.")
    if kind.binary and not unverified:
        raise InputError(f"{folder} cannot be verified: for unpacked binary files no MD5 sums are published. "
                         f"Give {kind.archive} itself, or pass --unverified.")
    members = {}
    for name, md5 in zip(kind.members, kind.sums or kind.members):
        path = folder / name
        if not path.exists(): continue
        info = path.stat()
        if not stat.S_ISREG(info.st_mode): raise InputError(f"{path} is no file. Fetch {kind.archive} again.")
        _check_size(path, info.st_size, kind.largest)
        members[name] = path.read_bytes()
        found = hashlib.md5(members[name], usedforsecurity=False).hexdigest()
        if not unverified: _check_md5(path, md5, found)
    return kind, members


def _read_archive(path, unverified):
    with open(path, "rb") as f:
        found = hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if not unverified and found not in {k.md5 for k in KINDS}:
            near = [k for k in KINDS if path.name.startswith(k.archive.split(".")[0])]
            if not near:
                raise InputError(f"{path} is not an official CIFAR archive (its MD5 is {found}). If it holds "
                                 "pictures, unpack it and give the folder, or a .zip. For another copy of "
                                 "CIFAR: --unverified.")
            _check_md5(path, " or ".join(f"{k.md5} ({k.archive})" for k in near), found)
        f.seek(0)
        try: return _read_members(path, _Bounded(_unpacked(f), path))
        except InputError: raise
        except Exception as e:   # hostile bytes: tarfile, zlib and lzma raise more kinds than they document
            what = f"{type(e).__name__}: {one_line(e)}"
            raise InputError(f"{path} is no archive, damaged or cut short ({what}). Fetch it again.") from e


def _unpacked(file):
    "`file` as a stream of plain tar, whatever it is packed with"
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"): return gzip.GzipFile(fileobj=file)
    if magic.startswith(b"\xfd7zXZ"): return lzma.LZMAFile(file)
    if magic.startswith(b"BZh"): return bz2.BZ2File(file)
    return file


class _Bounded:
    "A stream that ends in an error after `MOST` bytes, however little they were packed into"
    def __init__(self, file, path): self.file, self.path, self.given = file, path, 0

    def read(self, n):
        data = self.file.read(n)
        self.given += len(data)
        _check_size(f"{self.path}, unpacked,", self.given, MOST)
        return data


def _read_members(path, stream):
    kind, members = None, {}
    with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as tar:
        for m in tar:
            folder, _, name = m.name.removeprefix("./").partition("/")
            if m.isdir() and not name and folder in (".", *(k.folder for k in KINDS)): continue
            kind = kind or next((k for k in KINDS if k.folder == folder), None)
            what = f"{path}: member {one_line(m.name)}"
            if not kind or folder != kind.folder or name not in (*kind.members, *kind.extra):
                raise InputError(f"{what} is in no CIFAR archive. Use the official one.")
            if not m.isreg() or m.issparse(): raise InputError(f"{what} is no file. Use the official one.")
            if name in members: raise InputError(f"{what} is there twice. Use the official one.")
            _check_size(what, m.size, kind.largest)
            members[name] = tar.extractfile(m).read()
            if len(members[name]) != m.size: raise EOFError(f"{name} ends early")
    while stream.read(1 << 20): pass   # to the very end: only there gzip and xz compare their own sums
    if kind: return kind, members
    raise InputError(f"{path} holds nothing. Give one of {', '.join(k.archive for k in KINDS)}.")
