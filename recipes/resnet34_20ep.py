"""ResNet-34, 20 epochs, one-cycle Nesterov SGD: resnet18_20ep with a deeper net and torch's own optimiser.

Four of the five predecessors (A, C, D, E) ship a ResNet-34 and never trained it."""
from cifar_fastai import cli
from cifar_fastai.parts import Optimizer

from .resnet18_20ep import recipe as resnet18

recipe = resnet18.but(name="resnet34_20ep", model="resnet34", opt=Optimizer("sgd", mom=0.9, wd=5e-4))

if __name__ == "__main__": cli.main(recipe)
