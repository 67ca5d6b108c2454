"""ResNet-18, 20 epochs, AdamW, linear one-cycle from a hundredth of the peak, which stands at epoch 5.

After adil22jaleel's S11 (predecessor A). Kept: net, batch of 512, 20 epochs, peak at epoch 5, both
factors of 100 (the last rate is a 10,000th of the peak), beta1 going .95-.85-.95 as it silently did, a
weight decay of 1e-2, a square of 16 pixels, a reflected border.
Changed:
- Adam's coupled decay of 1e-2 drowned the gradient (89.9 % on training pictures): AdamW decays beside it.
- pictures are padded by 4, not by 2, and mirrored: it had no flip.
- one mean and std for training, test and what is shown, of the training pictures alone; it used three.
- the rate is half of where the range test's loss is lowest, or less after a short warm-up, not the steepest
  place of a noisy curve.
- Grad-CAM shows the predicted class beside the true one, in the right colours."""
from cifar_fastai import Recipe, cli, policy
from cifar_fastai.parts import Explain, Loss, LRFind, OneCycle, Optimizer

recipe = Recipe(
    name      = "resnet18_adam_20ep",
    model     = "resnet18",
    epochs    = 20,
    bs        = 512,
    aug       = policy.pad_crop_flip_cutout(pad=4, cutout=16),
    loss      = Loss("ce", smoothing=0.0),
    opt       = Optimizer("adamw", wd=1e-2),             # decoupled: rate × 1e-2 off each weight a step
    lr        = LRFind("peak", divide=8.0),              # an eighth of SGD's peak
    schedule  = OneCycle(
        pct_start=5 / 20,                                # the peak at epoch 5
        div=100.0, div_final=1e4,                        # of the peak; torch's is of the first rate
        anneal="linear", moms=(0.95, 0.85, 0.95)),
    explain   = Explain("layer4+layer2"),
)

if __name__ == "__main__": cli.main(recipe)
