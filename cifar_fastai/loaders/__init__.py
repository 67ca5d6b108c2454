"""`ImageData` becomes fastai `DataLoaders`: a DataBlock with an Albumentations item transform, whole batches.

In: an `ImageData` and a policy, an `A.Compose` or a list of its transforms. Out: `DataLoaders` whose batches
are a pure function of (seed, epoch, place in its order), whatever the number of workers.

Read block first (the DataBlock), then augment and transforms (what happens to a picture), picture_store (all
pictures under one index), batch_dl (how a batch is made) and workers (the processes that make it).
"""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "augment": ["AlbumentationsTransform", "build_augmentation"], "block": ["cifar_block",
    "cifar_dataloaders", "subsets", "usable_device"], "transforms": ["Cutout"], "workers": ["LoaderError",
    "worker_failed"]})
