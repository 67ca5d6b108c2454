"Small archives in the official CIFAR formats, written by hand: no reader is tested against itself"
import hashlib
import io
import struct
import tarfile
from dataclasses import replace

import numpy as np

from cifar_fastai.data import archives, sources
from cifar_fastai.data.archives import KINDS

PY10, BIN10, PY100, BIN100 = KINDS
NAMES10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NAMES100 = [f"fine_{i}" for i in range(100)]


def pickled(value):
    "`value` (dicts, lists, bytes, ints, uint8 arrays) as Python 2's cPickle wrote it, protocol 2"
    return b"\x80\x02" + _ops(value) + b"."


def _ops(v):
    if isinstance(v, dict): return b"}(" + b"".join(_ops(k) + _ops(x) for k, x in v.items()) + b"u"
    if isinstance(v, list): return b"](" + b"".join(map(_ops, v)) + b"e"
    if isinstance(v, bytes) and len(v) < 256: return b"U" + bytes([len(v)]) + v
    if isinstance(v, bytes): return b"T" + struct.pack("<i", len(v)) + v
    if isinstance(v, int): return b"J" + struct.pack("<i", v)
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"(" + b"".join(_ops(n) for n in v.shape) + b"t"
    return (b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
            b"(K\x01" + shape + dtype + b"\x89" + _ops(v.tobytes()) + b"tb")


def rows_of(kind, n=4, seed=0):
    "{member: (uint8 rows (n,3072), labels)} for each batch of `kind`"
    rng = np.random.default_rng(seed)
    return {m: (rng.integers(0, 256, (n, 3072), np.uint8), rng.integers(0, kind.n_classes, n).tolist())
            for m in (*kind.train, kind.test)}


def members_of(kind, rows=None):
    "{member: bytes} of a whole archive of `kind`"
    rows = rows or rows_of(kind)
    names = NAMES10 if kind.n_classes == 10 else NAMES100
    pack = _binary if kind.binary else _python
    files = {m: pack(kind, *r) for m, r in rows.items()}
    key = b"label_names" if kind.n_classes == 10 else b"fine_label_names"
    meta = "\n".join(names).encode() + b"\n\n" if kind.binary else pickled({key: [n.encode() for n in names]})
    return {kind.meta: meta, **files}


def _python(kind, rows, labels):
    batch = {b"batch_label": b"training batch 1 of 5", b"data": rows,
             b"labels" if kind.n_classes == 10 else b"fine_labels": labels,
             b"filenames": [b"img_%05d.png" % i for i in range(len(rows))]}
    if kind.n_classes == 100: batch[b"coarse_labels"] = [y // 5 for y in labels]
    return pickled(batch)


def _binary(kind, rows, labels):
    before = (lambda y: bytes([y])) if kind.n_classes == 10 else (lambda y: bytes([y // 5, y]))
    return b"".join(before(y) + r.tobytes() for r, y in zip(rows, labels))


def tar(path, kind, members, extra=()):
    "A tar at `path`, packed as its suffix says; `extra` are (TarInfo, bytes or None) put behind the rest"
    mode = {"tar": "w"}.get(path.name.rsplit(".", 1)[-1]) or f"w:{path.name.rsplit('.', 1)[-1]}"
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as t:
        for name, data in members.items():
            t.addfile(info(f"{kind.folder}/{name}", len(data)), io.BytesIO(data))
        for i, data in extra: t.addfile(i, data and io.BytesIO(data))
    return path


def info(name, size=0, **fields):
    i = tarfile.TarInfo(name)
    i.size = size
    for k, v in fields.items(): setattr(i, k, v)
    return i


def unpacked(folder, kind, members):
    "The same members as files in folder/<the official name>"
    (folder / kind.folder).mkdir(parents=True)
    for name, data in members.items(): (folder / kind.folder / name).write_bytes(data)
    return folder / kind.folder


def small_official(monkeypatch, folder, kind=PY10):
    "An archive of `kind` in `folder` whose own MD5 counts as the official one"
    folder.mkdir(parents=True, exist_ok=True)
    path = tar(folder / kind.archive, kind, members_of(kind))
    ours = replace(kind, md5=hashlib.md5(path.read_bytes()).hexdigest())
    kinds = tuple(ours if k.archive == kind.archive else k for k in archives.KINDS)
    for module in (archives, sources): monkeypatch.setattr(module, "KINDS", kinds)
    return path
