"""ResNet-18, 20 epochs, colour jitter and grey pictures, linear one-cycle with its peak at epoch 5.

After mHemaAP's S11 (predecessor D). Kept: net, batch of 64, 20 epochs, SGD with momentum going
.95-.85-.95, peak at epoch 5, both factors of 100, pad 4, flips, jitter of contrast .1, saturation .2 and hue
.1 half of the time, a fifth of the pictures in grey, a square of 16 pixels.
Changed:
- colours are changed before normalising. It normalised first, so that jitter clipped half of all pictures
  to 0…1 and lost everything darker than the mean: 85.6 % on training pictures.
- the square lies wholly inside each picture; one in eleven of its pictures had none.
- weight decay 5e-4, where it had none; Nesterov momentum.
- the rate is four times the one where the range test's smoothed loss is lowest; its own was the steepest
  place of a noisy curve.
- the last weights, not those that the test set liked best; the training loss is the training pictures'
  own."""
from cifar_fastai import Recipe, cli, policy
from cifar_fastai.parts import Explain, Loss, LRFind, OneCycle, Optimizer

recipe = Recipe(
    name      = "resnet18_jitter_20ep",
    model     = "resnet18",
    epochs    = 20,
    bs        = 64,
    aug       = policy.pad_crop_flip_cutout(
        pad=4, cutout=16, jitter=(0.0, 0.1, 0.2, 0.1), jitter_p=0.5, grey_p=0.2),
    loss      = Loss("ce", smoothing=0.0),
    opt       = Optimizer("sgd", wd=5e-4),
    lr        = LRFind("peak"),                          # the training loss decides, never the test set
    schedule  = OneCycle(
        pct_start=5 / 20,                                # the peak at epoch 5
        div=100.0, div_final=1e4,                        # of the peak; torch's is of the first rate
        anneal="linear", moms=(0.95, 0.85, 0.95)),
    explain   = Explain("layer4+layer2"),
)

if __name__ == "__main__": cli.main(recipe)
