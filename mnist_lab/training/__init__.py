"""The LightningModule and the callbacks of a run."""

from mnist_lab.training.callbacks import EpochProgress, History, LayerTable, SharedBuffers
from mnist_lab.training.checkpoint_files import WholeFiles
from mnist_lab.training.checkpoints import Checkpoints, ValidatedWeights
from mnist_lab.training.classifier import Classifier
from mnist_lab.training.divergence import Divergence
from mnist_lab.training.loss_scaling import scale_loss
from mnist_lab.training.pace import Pace
from mnist_lab.training.resume_state import ResumeState

__all__ = [
    "Checkpoints",
    "Classifier",
    "Divergence",
    "EpochProgress",
    "History",
    "LayerTable",
    "Pace",
    "ResumeState",
    "SharedBuffers",
    "ValidatedWeights",
    "WholeFiles",
    "scale_loss",
]
