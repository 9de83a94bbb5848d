"""The LightningModule and the callbacks of a run."""

from mnist_lab.training.callbacks import EpochProgress, History, LayerTable, NeuronForwardPass
from mnist_lab.training.checkpoint_files import WholeFiles
from mnist_lab.training.checkpoints import Checkpoints, ValidatedWeights
from mnist_lab.training.classifier import Classifier
from mnist_lab.training.dashboard import CHARTS, Dashboard
from mnist_lab.training.optimizers import SGD, Adam, AdamW, RMSprop
from mnist_lab.training.replay import Replay

__all__ = [
    "CHARTS",
    "SGD",
    "Adam",
    "AdamW",
    "Checkpoints",
    "Classifier",
    "Dashboard",
    "EpochProgress",
    "History",
    "LayerTable",
    "NeuronForwardPass",
    "RMSprop",
    "Replay",
    "ValidatedWeights",
    "WholeFiles",
]
