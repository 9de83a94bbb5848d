"""The LightningModule and the callbacks of a run."""

from mnist_lab.fast import SGD, Adam, AdamW, Replay, RMSprop
from mnist_lab.training.callbacks import EpochProgress, History, LayerTable, NeuronForwardPass
from mnist_lab.training.checkpoint_files import WholeFiles
from mnist_lab.training.checkpoints import Checkpoints, ValidatedWeights
from mnist_lab.training.classifier import Classifier
from mnist_lab.training.dashboard import CHARTS, Dashboard

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
