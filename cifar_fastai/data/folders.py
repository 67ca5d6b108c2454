"""Folders of pictures, or a .zip of one: checked, decoded once, then memory-mapped.

    folder = read_folder(Path("pets"), size=32, describe=lambda *arrays: {})
    folder.x_train.shape, folder.files_train[0]         # (N,32,32,3), 'train/cat/1.jpg'"""
import hashlib
import json
import logging
from collections import namedtuple
from pathlib import Path

import numpy as np

from .layouts import arrange
from .picture_cache import decoded
from .pictures import RULE
from .trees import open_tree

__all__ = ["Folder", "read_folder"]

log = logging.getLogger("cifar_fastai")

Folder = namedtuple("Folder", "x_train y_train x_test y_test classes files_train files_test about")


def read_folder(
    root: Path,      # a folder, or a .zip of one, in one of the layouts of docs/your-own-pictures.md
    size: int,       # side of the pictures
    describe,        # f(x_train, y_train, x_test, y_test, classes) -> dict for JSON, cached with the pictures
) -> Folder:         # without a test set of its own: `x_test` is empty, `about` None
    """All pictures below `root`; the second time from a memory-mapped cache, while no file has changed.
    Raises: InputError where classes differ, are empty or fewer than two, or a file is no readable picture"""
    root = Path(root)
    with open_tree(root) as tree:
        layout = arrange(tree)
        for line in layout.lines: log.warning("%s: %s", root, line)
        files, n = layout.train + layout.test, len(layout.train)
        key = hashlib.sha256(json.dumps([RULE, size, layout.classes, n, files]).encode()).hexdigest()
        names, labels = [f[0] for f in files], np.array([f[1] for f in files], np.int64)
        def described(x):
            return describe(x[:n], labels[:n], x[n:], labels[n:], layout.classes) if layout.test else None
        large = sum(f[2][0] for f in files) > 10_000 * len(files)        # bytes of the files
        x, about = decoded(root, names, size, tree.source, key, described, large)
    return Folder(x[:n], labels[:n], x[n:], labels[n:], layout.classes, names[:n], names[n:], about)
