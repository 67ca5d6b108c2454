"""The 6.57 M ResNet of DAWNBench with L1 and rotation, 24 epochs, a linear one-cycle that ends where it
began.

After anilbhatt1's S9 (predecessor B). Kept: 24 epochs, batch of 512, peak at epoch 5, first and last rate
a tenth of the peak ("no annihilation"), momentum going .95-.85-.95, pad 4, a square of 16 pixels half of
the time, weight decay of 1e-4, L1 of 5e-4, the rotation by 5 degrees of its README.
Changed:
- the 1.18 M weights that its forward pass never used are gone (`--summary` checks for such).
- its L1 took the mean of each tensor, 2e-10 a weight in the large ones: nothing. As 5e-4 · Σ|w| it would
  pull some fifty times as hard as a usual weight decay. By the rule "scaled" it pulls as one of 5e-4, and
  not on norms and biases. The loss that is shown is without it.
- pictures are mirrored; the border is the mean colour (it filled normalised pictures with a raw mean).
- cross-entropy of logits, which is its NLL of log_softmax.
- Nesterov SGD; a rate found over six decades, not over one, and with momentum.

That the rate does not fall at the end is the experiment: compare with custom_resnet_24ep."""
from cifar_fastai import Recipe, cli, policy
from cifar_fastai.parts import Explain, Loss, LRFind, OneCycle, Optimizer, Regularise

recipe = Recipe(
    name       = "custom_resnet_l1_24ep",
    model      = "custom_resnet",
    epochs     = 24,
    bs         = 512,
    aug        = policy.pad_crop_flip_cutout(pad=4, mode="constant", cutout=16, cutout_p=0.5, rotate=5),
    loss       = Loss("ce", smoothing=0.0),
    opt        = Optimizer("sgd", wd=1e-4),
    lr         = LRFind("peak"),                         # the training loss decides, never the test set
    schedule   = OneCycle(
        pct_start=5 / 24,                                # the peak at epoch 5
        div=10.0, div_final=10.0,                        # the last rate is the first one
        anneal="linear", moms=(0.95, 0.85, 0.95)),
    regularise = Regularise(l1=5e-4, l1_rule="scaled"),
    explain    = Explain("layer3+layer1"),               # layer3 is the last stage here
)

if __name__ == "__main__": cli.main(recipe)
