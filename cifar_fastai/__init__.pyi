from . import cli as cli, policy as policy
from .checkpoints import (
    Checkpoint as Checkpoint,
    StopOnNonFinite as StopOnNonFinite,
    StopOnSignal as StopOnSignal,
)
from .data import ImageData as ImageData, load_data as load_data
from .errors import InputError as InputError
from .explain import (
    ClassificationInterpretation as ClassificationInterpretation,
    GradCAMCallback as GradCAMCallback,
    ImageInterpretation as ImageInterpretation,
    gradcam_of as gradcam_of,
)
from .gradcam import CamOutput as CamOutput, GradCAM as GradCAM
from .loaders import (
    AlbumentationsTransform as AlbumentationsTransform,
    Cutout as Cutout,
    cifar_block as cifar_block,
    cifar_dataloaders as cifar_dataloaders,
)
from .models import (
    airbench as airbench,
    custom_resnet as custom_resnet,
    resnet18 as resnet18,
    resnet34 as resnet34,
    resnet50 as resnet50,
    resnet101 as resnet101,
)
from .policy import Policy as Policy
from .recipe import Recipe as Recipe
from .runs import Run as Run, learner_of as learner_of, train as train, train_seeds as train_seeds
from .training import (
    Precision as Precision,
    cifar_learner as cifar_learner,
    minimum as minimum,
    peak as peak,
    slide as slide,
    steep as steep,
    valley as valley,
)
from .tricks import AverageWeights as AverageWeights, L1Loss as L1Loss, whiten_stem as whiten_stem
from .weights import load_weights as load_weights, save_weights as save_weights
