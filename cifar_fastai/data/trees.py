"""A folder of pictures, or a `.zip` of one, as a tree of names. Nothing is unpacked and nothing is written.

    with open_tree("pets.zip") as tree:
        tree.top                       # {"train": {"cat": {"1.jpg": (size, checksum), …}, …}, …}
        tree.source("train/cat/1.jpg") # for `read_picture`: the path of a file, a member's bytes"""
import os
import stat
import zipfile
from functools import cached_property
from pathlib import Path

from ..errors import InputError
from .archive_members import one_line
from .pictures import SUFFIXES

__all__ = ["is_picture", "is_unread", "is_zip", "open_tree"]

HIDDEN = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "lost+found", "icon\r"}
NOT_READ = {".heic", ".heif", ".svg", ".psd", ".jxl", ".raw", ".dng", ".cr2", ".nef", ".eps", ".jxr", ".exr"}
MOST = 100_000_000   # bytes a member of a .zip may have: a picture or a table


def open_tree(path: str | Path) -> "FolderTree | ZipTree":   # to be used by `with`
    "The tree of names in a folder or a `.zip`. Raises: InputError for a member or a link that is not safe"
    return FolderTree(path) if os.path.isdir(path) else ZipTree(path)


def _suffix(name): return os.path.splitext(name)[1].lower()
def _hidden(name): return name.startswith(".") or name.lower() in HIDDEN


def is_picture(name: str) -> bool:
    "Whether `name` is that of a picture that can be read"
    return _suffix(name) in SUFFIXES


def is_unread(name: str) -> bool:
    "Whether `name` is that of a picture of a format that is not read"
    return _suffix(name) in NOT_READ


def is_zip(path: Path) -> bool:
    "Whether `path` is a .zip by its name or its first bytes"
    if _suffix(path.name) == ".zip": return True
    with open(path, "rb") as f: return f.read(4) in (b"PK\3\4", b"PK\5\6")


class FolderTree:
    "A folder on disk; links are followed, but not in a circle"
    def __init__(self, root): self.root = Path(root)
    top = cached_property(lambda self: _walk(os.fspath(self.root), ()))
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def source(self, name): return f"{os.fspath(self.root)}/{name}"

    def read(self, name):
        "The bytes of a table"
        with open(self.source(name), "rb") as f: return f.read(MOST)


def _walk(folder, above):
    "name → a folder's own names, a file's (size, time); `above`: the folders that `folder` lies in"
    here = os.stat(folder)
    above = (*above, (here.st_dev, here.st_ino))
    if above[-1] in above[:-1]: raise InputError(f"{folder} links to a folder around it. Remove the link.")
    with os.scandir(folder) as it: entries = [e for e in it if not _hidden(e.name)]
    return {e.name: _walk(e.path, above) if e.is_dir() else _stat(e) for e in entries}


def _stat(entry):
    "(size, time) of a file; whatever has no picture's name may also be a pipe or a link to nowhere"
    if not is_picture(entry.path) and not entry.is_file(): return 0, 0
    try: info = entry.stat()
    except OSError as e: raise InputError(f"cannot read {entry.path}: {e.strerror}. Replace it.") from e
    if not stat.S_ISREG(info.st_mode): raise InputError(f"{entry.path} is not a file. Move or remove it.")
    return info.st_size, info.st_mtime_ns


class ZipTree:
    "A `.zip`, read member by member"
    def __init__(self, path):
        self.root, self.top, self.members = Path(path), {}, {}
        try: self.zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as e:
            raise InputError(f"{path} is no whole .zip ({one_line(e)}). Fetch it again.") from e
        try:
            for member in self.zip.infolist(): self._add(member)
        except BaseException:
            self.zip.close()
            raise

    def __enter__(self): return self
    def __exit__(self, *_): self.zip.close()

    def _add(self, member):
        *folders, name = self._parts(member)
        if any(map(_hidden, (*folders, name))): return
        node = self.top
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict): raise self._refused(member, "lies in a file")
        if member.is_dir(): return
        if name in node: raise self._refused(member, "is there twice")
        if member.file_size > MOST: raise self._refused(member, f"has over {MOST:,} bytes")
        node[name] = member.file_size, member.CRC
        self.members["/".join((*folders, name))] = member

    def _parts(self, member):
        "Folders and file name of a member (of a folder: the name is empty)"
        parts = member.filename.removeprefix("./").split("/")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR): raise self._refused(member, "is no file")
        if member.flag_bits & 1: raise self._refused(member, "is encrypted")
        odd = {"", ".", ".."} & set(parts[:-1]) or {".", ".."} & set(parts[-1:])
        if odd or "\\" in member.filename or ":" in parts[0]: raise self._refused(member, "has no safe name")
        return parts

    def _refused(self, member, why):
        return InputError(f"{self.root}: member {one_line(member.filename)} {why}. "
                          "Give a .zip without it, or a folder.")

    def source(self, name):
        "The bytes of a member"
        try: return self.zip.read(self.members[name])
        except Exception as e:   # hostile bytes: zlib, lzma and zipfile raise more kinds than they document
            why = f"member {one_line(name)} ({one_line(e)})"
            raise InputError(f"cannot read {self.root}: {why}. Fetch it again.") from e

    read = source
