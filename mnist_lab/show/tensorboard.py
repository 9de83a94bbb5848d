"""Graph, figures, histograms and tables of a run for TensorBoard."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Subset

from mnist_lab.data import Batches, ImageDataModule
from mnist_lab.show import figures
from mnist_lab.show.answers import Answers
from mnist_lab.show.style import drawable
from mnist_lab.training.loggers import tensorboard_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

CHARTS = {
    "training and validation": {
        "loss": ["Multiline", ["train/loss", "val/loss"]],
        "accuracy": ["Multiline", ["train/acc", "val/acc"]],
    }
}
"""The Custom Scalars tab: charts by category, each with its kind and the scalars on it."""


class Dashboard(Callback):
    """Writes for TensorBoard the graph, the worst mistakes, histograms and the results of the test.

    It writes the graph before training; the worst mistakes and, if asked for, histograms after each epoch; and a
    confusion matrix, precision-recall curves and the projector after the test. It has no hooks on single batches, which
    would slow down training.

    Args:
        mistakes: number of misclassified validation images shown after each epoch, lowest probability of the true
            class first; 0: none.
        histograms: whether to write histograms of weights and of the last mini-batch's gradients after each epoch.
        embedding: number of test images in the projector, spread evenly over the test set; 0: none.
    """

    def __init__(self, mistakes: int = 25, histograms: bool = False, embedding: int = 1000) -> None:
        self.mistakes = mistakes
        self.histograms = histograms
        self.embedding = embedding

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the network's graph."""
        if (writer := _writer(trainer)) is None:
            return
        net = _net(pl_module).cpu().float()
        try:
            with warnings.catch_warnings(action="ignore"):
                writer.add_graph(net, torch.zeros(1, *_data(trainer).shape))
        except Exception as error:  # tracing can fail in any way, depending on the layers
            log.warning(f"TensorBoard gets no graph: {type(net).__name__} can't be traced ({error})")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write a figure of the worst mistakes."""
        if (writer := _writer(trainer)) is None or self.mistakes == 0:
            return
        counted = _counted(trainer.val_dataloaders, trainer.num_val_batches)
        answers = _answers(trainer, pl_module, _data(trainer).val_dataloader(whole=True), counted)
        if len(answers.mistakes):
            _draw(writer, "mistakes/validation", figures.least_probable(answers, self.mistakes), _step(trainer))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the histograms."""
        if (writer := _writer(trainer)) is None or not self.histograms:
            return
        for name, weight in pl_module.net.named_parameters():  # type: ignore[union-attr]
            for kind, values in (("weights", weight.detach()), ("gradients", weight.grad)):
                if values is not None and (finite := values[values.isfinite()]).numel():
                    writer.add_histogram(f"{kind}/{name}", finite.float(), _step(trainer))

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the confusion matrix, the precision-recall curves and the projector's images."""
        if (writer := _writer(trainer)) is None:
            return
        batches, step = _data(trainer).test_dataloader(whole=True), _step(trainer)
        answers = _answers(trainer, pl_module, batches, _counted(trainer.test_dataloaders, trainer.num_test_batches))
        names, labels, predicted = answers.classes, answers.labels, answers.predicted
        figure = figures.confusion_matrix(answers)
        figure.axes[0].set_title(f"{len(answers.mistakes):,} of {len(labels):,} test images wrong")
        _draw(writer, "confusion_matrix/test", figure, step)
        for number, name in enumerate(names):
            writer.add_pr_curve(f"precision_recall/{name}", labels == number, answers.probabilities[:, number], step)

        net, inputs = _net(pl_module), []
        sample = torch.linspace(0, len(labels) - 1, min(self.embedding, len(labels))).long()
        if len(sample) == 0:
            return
        for layer in net.modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        pixels = answers.at(sample)
        _logits(trainer, net, batches.prepare(pixels.to(pl_module.device), 0))
        hidden = [values.flatten(1) for values in inputs if len(values) == len(sample)]  # a row an image
        if not hidden:
            return
        height, width = pixels.shape[2:]  # TensorBoard's sprite needs squares
        pictures = F.pad(drawable(pixels) / 255, (0, max(0, height - width), 0, max(0, width - height)))
        said = ([names[number] for number in numbers[sample]] for numbers in (labels, predicted))
        writer.add_embedding(
            hidden[-1].cpu().double().round(decimals=4),  # written as text: 3 MB instead of 10
            [[f"{a} right" if a == b else f"{a} → {b}", a, b] for a, b in zip(*said, strict=True)],
            1 - pictures if pictures.shape[1] == 1 else pictures,  # in dark on light, the class's colour can be seen
            tag="last_hidden_layer",
            metadata_header=["answer", "label", "predicted"],  # the first non-numeric column labels the points
        )


def _writer(trainer: L.Trainer) -> SummaryWriter | None:
    """TensorBoard's writer; None in all processes but the first, and if the run has no TensorBoard logger."""
    logger = tensorboard_of(trainer) if trainer.is_global_zero else None
    return None if logger is None else logger.experiment


def _draw(writer: SummaryWriter, tag: str, figure: Figure, epoch: int) -> None:
    figure.set_dpi(150)
    with warnings.catch_warnings(action="ignore"):  # names of classes in characters that the font lacks
        writer.add_figure(tag, figure, epoch)


def _data(trainer: L.Trainer) -> ImageDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ImageDataModule)
    return data


def _step(trainer: L.Trainer) -> int:
    """Return the step at which Lightning draws: the optimiser's last, from 0; after training, the one after it."""
    return max(0, trainer.global_step - (1 if trainer.training or trainer.validating else 0))


def _net(module: L.LightningModule) -> nn.Module:
    """Return a copy of the network in evaluation mode, not compiled."""
    net = copy.deepcopy(module.net)
    assert isinstance(net, nn.Module)
    return net.eval()


@torch.inference_mode()
def _logits(trainer: L.Trainer, net: nn.Module, images: Tensor) -> Tensor:
    with trainer.precision_plugin.forward_context():
        logits: Tensor = net(trainer.precision_plugin.convert_input(images))
    return logits


def _counted(batches: Any, limits: Sequence[int | float]) -> int:
    """Return how many mini-batches Lightning goes through."""
    assert isinstance(batches, Batches)
    return int(limits[0]) * batches.steps


def _answers(trainer: L.Trainer, module: L.LightningModule, batches: Batches | list[Batches], counted: int) -> Answers:
    """Return what the network predicts for the images of the first `counted` of unshuffled batches."""
    assert isinstance(batches, Batches)
    net: Any = module
    pairs = islice(batches, counted)
    found = [(labels, _logits(trainer, net, images).float().softmax(1)) for images, labels in pairs]
    labels, probabilities = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    images: Subset[Tensor] = Subset(batches.images, batches.sampler.index.tolist())  # type: ignore[arg-type]
    return Answers(probabilities, labels, images, _data(trainer).class_names)
