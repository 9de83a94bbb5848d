"""The LightningModule and the callbacks of a run."""

from mnist_lab.training.callbacks import EpochProgress, History, LayerTable
from mnist_lab.training.checkpoint_files import WholeFiles
from mnist_lab.training.checkpoints import Checkpoints, ValidatedWeights
from mnist_lab.training.classifier import Classifier

__all__ = [
    "Checkpoints",
    "Classifier",
    "EpochProgress",
    "History",
    "LayerTable",
    "ValidatedWeights",
    "WholeFiles",
]
