"""ResNet-18, 20 epochs, one-cycle Nesterov SGD, the rate found on the training loss."""
from cifar_fastai import Recipe, cli, policy

recipe = Recipe(
    name     = "resnet18_20ep",
    model    = "resnet18",
    epochs   = 20,
    bs       = 512,
    lr       = "find",          # the training loss decides, never the test set
    aug      = policy.pad_crop_flip_cutout(pad=4, cutout=8),
    cam      = "layer3",        # 8×8 map: layer4 is 4×4, too coarse to look at
)

if __name__ == "__main__": cli.main(recipe)
