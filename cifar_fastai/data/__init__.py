"""A source becomes `ImageData`: checked uint8 pictures, labels and class names. numpy and PIL only.

In: a name ("cifar10", "digits"), an archive, or a folder or .zip of pictures. Out: one `ImageData`, whose
fingerprint stands for every pixel and label.

Read image_data first (what comes out), then sources (where it comes from, and where CIFAR may lie).
A folder of your own: trees (a folder or .zip), layouts and label_tables (which picture is of which class),
pictures (one file), folders (all of them), picture_cache (decoded once). The official files: archives and
archive_members.
"""
from .image_data import ImageData
from .pictures import SUFFIXES
from .sources import NAMES, already_here, load_data, read_picture

__all__ = ["ImageData", "NAMES", "SUFFIXES", "already_here", "load_data", "read_picture"]
