"""What TensorBoard shows of a run besides its scalars."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from mnist_lab.data import Batches, ImageDataModule

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
        """Writes the network's graph."""
        if (writer := _writer(trainer)) is None:
            return
        net = _net(pl_module).cpu().float()
        try:
            with warnings.catch_warnings(action="ignore"):
                writer.add_graph(net, torch.zeros(1, *_data(trainer).shape))
        except Exception as error:  # tracing can fail in any way, depending on the layers
            log.warning(f"TensorBoard gets no graph: {type(net).__name__} can't be traced ({error})")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes a figure of the worst mistakes."""
        if (writer := _writer(trainer)) is None or self.mistakes == 0:
            return
        batches, names, epoch = _data(trainer).val_dataloader(whole=True), _data(trainer).class_names, _epoch(trainer)
        assert isinstance(batches, Batches)
        labels, probabilities = _answers(trainer, pl_module, batches)
        wrong = (probabilities.argmax(1) != labels).nonzero().squeeze(1)
        if len(wrong) == 0:
            return
        of_the_truth = probabilities[wrong, labels[wrong]]
        worst = wrong[of_the_truth.argsort()[: self.mistakes]]
        captions = [f"{names[labels[i]]} → {names[probabilities[i].argmax()]}" for i in worst]
        title = f"epoch {epoch}: {len(wrong):,} of {len(labels):,} wrong"
        writer.add_figure("mistakes/validation", _gallery(title, _visible(_pixels(batches, worst)), captions), epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the histograms."""
        if (writer := _writer(trainer)) is None or not self.histograms:
            return
        for name, weight in pl_module.net.named_parameters():  # type: ignore[union-attr]
            for kind, values in (("weights", weight.detach()), ("gradients", weight.grad)):
                if values is not None and (finite := values[values.isfinite()]).numel():
                    writer.add_histogram(f"{kind}/{name}", finite.float(), _epoch(trainer))

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the confusion matrix, the precision-recall curves and the projector's images."""
        if (writer := _writer(trainer)) is None:
            return
        batches, names, epoch = _data(trainer).test_dataloader(whole=True), _data(trainer).class_names, _epoch(trainer)
        labels, probabilities = _answers(trainer, pl_module, batches)
        predicted = probabilities.argmax(1)
        counts = (labels * len(names) + predicted).bincount(minlength=len(names) ** 2).view(len(names), len(names))
        writer.add_figure("confusion_matrix/test", _confusion(counts, names), epoch)
        for number, name in enumerate(names):
            writer.add_pr_curve(f"precision_recall/{name}", labels == number, probabilities[:, number], epoch)

        net, inputs = _net(pl_module), []
        linear = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
        sample = torch.linspace(0, len(labels) - 1, min(self.embedding, len(labels))).long()
        if not linear or len(sample) == 0:
            return
        pixels = _pixels(batches, sample)
        linear[-1].register_forward_pre_hook(lambda _, given: inputs.append(given[0].flatten(1)))
        _logits(trainer, net, batches.prepare(pixels.to(pl_module.device), 0))
        pictures = _visible(pixels)
        said = ([names[number] for number in numbers[sample]] for numbers in (labels, predicted))
        writer.add_embedding(
            inputs[0].cpu().double().round(decimals=4),  # written as text: 3 MB instead of 10
            [[f"{a} right" if a == b else f"{a} → {b}", a, b] for a, b in zip(*said, strict=True)],
            1 - pictures if pictures.shape[1] == 1 else pictures,  # in dark on light, the class's colour can be seen
            tag="last_hidden_layer",
            metadata_header=["answer", "label", "predicted"],  # the first non-numeric column labels the points
        )


def _writer(trainer: L.Trainer) -> SummaryWriter | None:
    """TensorBoard's writer; None in all processes but the first, and if the run has no TensorBoard logger."""
    if not (trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger)):
        return None
    writer: SummaryWriter = trainer.logger.experiment
    return writer


def _data(trainer: L.Trainer) -> ImageDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ImageDataModule)
    return data


def _epoch(trainer: L.Trainer) -> int:
    """The epoch, counted from 1: the current one during training, the last one afterwards."""
    return trainer.current_epoch + (1 if trainer.training or trainer.validating else 0)


def _net(module: L.LightningModule) -> nn.Module:
    """A copy of the network in evaluation mode, not compiled."""
    net = copy.deepcopy(module.net)
    assert isinstance(net, nn.Module)
    return net.eval()


@torch.inference_mode()
def _logits(trainer: L.Trainer, net: nn.Module, images: Tensor) -> Tensor:
    with trainer.precision_plugin.forward_context():
        logits: Tensor = net(trainer.precision_plugin.convert_input(images))
    return logits


def _answers(trainer: L.Trainer, net: nn.Module, batches: Batches) -> tuple[Tensor, Tensor]:
    """Labels, int64 (N,), and probabilities, float32 (N, classes), of all images, on the CPU."""
    inputs = ((batch.labels, batch.prepare(batch.pixels, batch.first)) for batch in batches)
    found = [(labels, _logits(trainer, net, images).float().softmax(1)) for labels, images in inputs]
    labels, probabilities = zip(*found, strict=True)
    return torch.cat(labels).cpu(), torch.cat(probabilities).cpu()


def _pixels(batches: Batches, positions: Tensor) -> Tensor:
    """Images at positions of unshuffled batches: (n, C, H, W), uint8 or what the user's own dataset gives."""
    return torch.stack([batches.images[int(i)].cpu() for i in batches.sampler.index[positions]])


def _visible(pixels: Tensor) -> Tensor:
    """The same images as float32 in [0, 1]."""
    return pixels / 255 if pixels.dtype == torch.uint8 else pixels.float().clamp(0, 1)


def _gallery(title: str, images: Tensor, captions: Sequence[str]) -> Figure:
    """Images, float32 (n, C, H, W) in [0, 1], in a square grid, each with its caption."""
    from matplotlib.figure import Figure

    side, longest = math.ceil(math.sqrt(len(images))), max(map(len, captions))
    figure = Figure(figsize=(5, 6), dpi=150, layout="constrained")
    figure.suptitle(f"{title}\nthe worst first: what it is → what it was taken for", fontsize=11)
    for axes, image, caption in zip(figure.subplots(side, side, squeeze=False).flat, images, captions, strict=False):
        axes.imshow(image.permute(1, 2, 0), cmap="gray_r", vmin=0, vmax=1)
        axes.set_title(caption.replace(" →", "\n→") if longest > 10 else caption, fontsize=11 if longest < 8 else 8)
    for axes in figure.axes:
        axes.set_axis_off()
    return figure


def _confusion(counts: Tensor, names: Sequence[str]) -> Figure:
    """A confusion matrix of counts, int64 (true class, predicted class): the more mistakes, the darker the cell."""
    from matplotlib.figure import Figure

    total, right = int(counts.sum()), int(counts.diagonal().sum())
    mistakes = counts.clone().fill_diagonal_(0)
    most = max(1, int(mistakes.max()))
    side = max(5.0, 0.3 * len(names))
    figure = Figure(figsize=(side, side), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.imshow(mistakes, cmap="Blues", vmin=0, vmax=most)
    if len(names) <= 20:
        for row, column in counts.nonzero().tolist():
            color = "gray" if row == column else "white" if mistakes[row, column] > 0.6 * most else "black"
            size = 9 if len(names) <= 12 else 6
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=size, color=color)
    short = max(map(len, names)) <= 3
    axes.set_xticks(range(len(names)), names, rotation=0 if short else 45, ha="center" if short else "right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true class", title=f"{total - right:,} of {total:,} test images wrong")
    return figure
