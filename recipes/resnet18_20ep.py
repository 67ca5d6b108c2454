"""ResNet-18, 20 epochs, one-cycle Muon, the rate found on the training loss."""
from cifar_fastai import Recipe, cli, policy
from cifar_fastai.parts import Explain, Loss, LRFind, OneCycle, Optimizer

recipe = Recipe(
    name     = "resnet18_20ep",
    model    = "resnet18",
    epochs   = 20,
    bs       = 512,
    aug      = policy.pad_crop_flip_cutout(pad=4, cutout=8),
    loss     = Loss("ce", smoothing=0.1),
    opt      = Optimizer("muon", mom=0.9, wd=5e-4),      # the decay is of norms, biases and the head
    lr       = LRFind("peak"),                           # the training loss decides, never the test set
    schedule = OneCycle(pct_start=0.25, div=25.0, div_final=1e4, anneal="linear"),
    explain  = Explain("layer4+layer2"),                 # layer4 knows the class, layer2 the outlines
)

if __name__ == "__main__": cli.main(recipe)
