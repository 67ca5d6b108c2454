"""A source becomes `ImageData`: checked uint8 pictures, labels and class names. numpy and PIL only.

In: a name ("cifar10", "digits"), an archive, or a folder or .zip of pictures. Out: one `ImageData`, whose
fingerprint stands for every pixel and label.

Read image_data first (what comes out), then sources (where it comes from, and where CIFAR may lie).
A folder of your own: trees (a folder or .zip), layouts and label_tables (which picture is of which class),
pictures (one file), picture_cache (all of them, decoded once). The official files: archives, archive_members.
"""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "image_data": ["ImageData"], "pictures": ["SUFFIXES"], "sources": ["NAMES", "already_here", "load_data",
    "read_picture"]})
