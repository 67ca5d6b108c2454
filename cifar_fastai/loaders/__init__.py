"""`ImageData` becomes fastai `DataLoaders`: a DataBlock with an Albumentations item transform, whole batches.

In: an `ImageData` and a policy, an `A.Compose` or a list of its transforms. Out: `DataLoaders` whose batches
are a pure function of (seed, epoch, place in its order), whatever the number of workers.

Read block first (the DataBlock), then augment and transforms (what happens to a picture), picture_store (all
pictures under one index), batch_dl (how a batch is made) and workers (the processes that make it).
"""
from .augment import AlbumentationsTransform, build_augmentation
from .block import cifar_block, cifar_dataloaders, subsets, usable_device
from .transforms import Cutout
from .workers import LoaderError, worker_failed

__all__ = ["AlbumentationsTransform", "Cutout", "LoaderError", "build_augmentation", "cifar_block",
           "cifar_dataloaders", "subsets", "usable_device", "worker_failed"]
