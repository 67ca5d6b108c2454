"""ResNet-18, 50 epochs, SGD with momentum .95, the rate lowered tenfold when the holdout loss stops falling.

After gmshashank's Session4 (predecessor C). Kept: net, 50 epochs, batch of 128, momentum, weight decay,
patience 3 and cooldown 1, up to four holes of 8 pixels half of the time, flips; a tenth of the rate where
the range test's loss is lowest, which is what fastai's `minimum` gives.
Changed:
- the schedule watches 5,000 training pictures that are held out; it watched the test set.
- the weights of the best epoch on that holdout are kept.
- std is that of the pixels (.247 .243 .262), not the mean of the pictures' own (.202 .199 .201).
- pictures are padded by 4, not by 2; one to four holes, not always four.
- Nesterov momentum; 100 batches of the range test by a factor, not 3,950 by a step."""
from cifar_fastai import Recipe, cli, policy
from cifar_fastai.parts import Explain, Loss, LRFind, Optimizer, Plateau

recipe = Recipe(
    name      = "resnet18_plateau_50ep",
    model     = "resnet18",
    epochs    = 50,
    bs        = 128,
    aug       = policy.pad_crop_flip_cutout(pad=4, cutout=8, holes=(1, 4), cutout_p=0.5),
    loss      = Loss("ce", smoothing=0.0),
    opt       = Optimizer("sgd", mom=0.95, wd=5e-4),
    lr        = LRFind("minimum"),                       # a tenth of the rate with the lowest loss
    schedule  = Plateau(patience=3, drop=0.1, cooldown=1),
    valid     = "holdout",                               # what the schedule watches is not the test set
    keep      = "best",
    explain   = Explain("layer4+layer2"),
)

if __name__ == "__main__": cli.main(recipe)
