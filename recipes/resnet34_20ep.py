"""ResNet-34, 20 epochs, one-cycle Nesterov SGD: the recipe of resnet18_20ep with a deeper net.

Three of the five predecessors (A, C, D) ship a ResNet-34 and never trained it."""
from cifar_fastai import cli

from .resnet18_20ep import recipe as resnet18

recipe = resnet18.but(name="resnet34_20ep", model="resnet34")

if __name__ == "__main__": cli.main(recipe)
