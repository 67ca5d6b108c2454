"""The 6.57 M ResNet of DAWNBench, 24 epochs, cosine one-cycle with its peak at epoch 5, clipped gradients.

After hassiahk's Session9 (predecessor E). Kept: 24 epochs, batch of 512, peak at epoch 5, first rate an
eighth of the peak, last one a 10,000th of the first, momentum going .95-.85-.95, weight decay of 5e-3 as
it was, gradients clipped to ±.1, pad 4, one to three holes of 8 pixels in four of five pictures.
Changed:
- half of the pictures are mirrored. It mirrored all of them, so that the net never saw one as the test
  set shows it.
- norm before ReLU everywhere, no bias before a norm: the net of the assignment.
- the rate is found on the training loss; it ran 480 passes over the test set to choose it.
- a holdout may be kept (`--valid holdout`).

`--norm gn` is the task it did not do, no batch norm at all: GroupNorm(1, C), a layer norm, in all eight
places. It could only exchange some."""
from cifar_fastai import Recipe, cli, policy
from cifar_fastai.parts import Explain, Loss, LRFind, OneCycle, Optimizer, Regularise

recipe = Recipe(
    name       = "custom_resnet_24ep",
    model      = "custom_resnet",
    epochs     = 24,
    bs         = 512,
    aug        = policy.pad_crop_flip_cutout(pad=4, cutout=8, holes=(1, 3), cutout_p=0.8),
    loss       = Loss("ce", smoothing=0.0),
    opt        = Optimizer("sgd", wd=5e-3),
    lr         = LRFind("peak"),                         # the training loss decides, never the test set
    schedule   = OneCycle(
        pct_start=5 / 24,                                # the peak at epoch 5
        div=8.0, div_final=8e4,                          # of the peak; torch's is of the first rate
        anneal="cos", moms=(0.95, 0.85, 0.95)),
    regularise = Regularise(clip_value=0.1),
    explain    = Explain("layer3+layer1"),               # layer3 is the last stage here
)
recipe_gn = recipe.but(name="custom_resnet_gn_24ep", build={"norm": "gn"})

if __name__ == "__main__": cli.main(recipe)
