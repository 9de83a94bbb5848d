"""Modules and data of one's own, each a few lines of plain Lightning. In this folder:

    python -m mnist_lab --config-dir conf module=autoencoder
    python -m mnist_lab --config-dir conf model=vae callbacks=early_stopping
    python -m mnist_lab --config-dir conf data=pairs model=cnn
    python -m mnist_lab --config-dir conf model=cnn callbacks=probe monitor=val/probe_acc

The files in conf/ name the classes, and the metric that a run is judged by where that is not val/acc.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MaxMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from mnist_lab.data import mnist_5k
from mnist_lab.training import Classifier

Batch = tuple[Tensor, Tensor]
"""Images, float32 (B, C, H, W), and labels, int64 (B,)."""


class Scored(Classifier):
    """Our classifier with one more metric of validation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.val_f1 = MulticlassF1Score(10)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        images, labels = batch
        self.val_f1(self(images), labels)
        self.log("val/f1", self.val_f1)


class Template(L.LightningModule):
    """A module as lightning-hydra-template has it: its network, optimiser and schedule are arguments."""

    def __init__(self, net: nn.Module, optimizer: Any, scheduler: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False, ignore=["net"])
        self.net, self.criterion = net, nn.CrossEntropyLoss()
        self.val_acc, self.val_acc_best, self.test_acc = MulticlassAccuracy(10), MaxMetric(), MulticlassAccuracy(10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        loss: Tensor = self.criterion(self(images), labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        self.val_acc(self(images), labels)
        self.log("val/acc", self.val_acc, on_step=False, on_epoch=True, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        self.val_acc_best(self.val_acc.compute())
        self.log("val/acc_best", self.val_acc_best.compute(), sync_dist=True, prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        self.test_acc(self(images), labels)
        self.log("test/acc", self.test_acc, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> Any:
        optimizer = self.hparams["optimizer"](params=self.parameters())
        if self.hparams["scheduler"] is None:
            return {"optimizer": optimizer}
        schedule = {"scheduler": self.hparams["scheduler"](optimizer=optimizer), "monitor": "val/acc"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class Autoencoder(L.LightningModule):
    """Learns to give its input back through a few numbers."""

    def __init__(self, size: int = 32, lr: float = 0.001) -> None:
        super().__init__()
        self.lr = lr
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, size), nn.ReLU())
        self.decoder = nn.Linear(size, 784)

    def loss(self, batch: Batch) -> Tensor:
        images, _ = batch
        return F.mse_loss(self.decoder(self.encoder(images)), images.flatten(1))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch), sync_dist=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("test/loss", self.loss(batch), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)


class VAE(L.LightningModule):
    """A variational autoencoder, which logs nothing but the evidence lower bound of validation, to be large."""

    def __init__(self, size: int = 8, lr: float = 0.001) -> None:
        super().__init__()
        self.lr = lr
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 2 * size))
        self.decoder = nn.Sequential(nn.Linear(size, 128), nn.ReLU(), nn.Linear(128, 784))

    def elbo(self, images: Tensor) -> Tensor:
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        likelihood = -F.binary_cross_entropy_with_logits(self.decoder(code), images.flatten(1), reduction="none").sum(1)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return torch.mean(likelihood - divergence)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return -self.elbo(batch[0])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val/elbo", self.elbo(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)


class GAN(L.LightningModule):
    """Two networks, each with an optimiser of its own, trained in turn by manual optimisation."""

    def __init__(self, size: int = 16, lr: float = 0.0002) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.size, self.lr = size, lr
        self.generator = nn.Sequential(nn.Linear(size, 128), nn.ReLU(), nn.Linear(128, 784), nn.Sigmoid())
        self.judge = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1))

    def losses(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The judge's loss and the generator's."""
        made = self.generator(torch.randn(len(images), self.size, device=self.device))
        real, fake, fooled = self.judge(images), self.judge(made.detach()), self.judge(made)
        ones, zeros = torch.ones_like(real), torch.zeros_like(real)
        judged = F.binary_cross_entropy_with_logits(real, ones) + F.binary_cross_entropy_with_logits(fake, zeros)
        return judged, F.binary_cross_entropy_with_logits(fooled, ones)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        for n, optimizer in enumerate(self.optimizers()):
            loss = self.losses(batch[0])[n]
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.log(("train/judge_loss", "train/loss")[n], loss, on_step=False, on_epoch=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log_dict(dict(zip(("val/judge_loss", "val/loss"), self.losses(batch[0]), strict=True)))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("test/loss", self.losses(batch[0])[1])

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        nets = (self.judge, self.generator)
        return [torch.optim.Adam(net.parameters(), self.lr, betas=(0.5, 0.999)) for net in nets]


class Contrastive(L.LightningModule):
    """Trains the network of `model`, with the optimiser of `optimizer`, to find an image's other half in its batch.

    Args:
        net: images → vectors; its logits serve as those.
        optimizer: makes an optimiser of its parameters.
    """

    def __init__(self, net: nn.Module, optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]) -> None:
        super().__init__()
        self.net, self.optimizer = net, optimizer

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.step(batch[0], "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.step(batch[0], "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.step(batch[0], "test")

    def step(self, images: Tensor, stage: str) -> Tensor:
        left, right = images.clone(), images.clone()
        left[..., 14:], right[..., :14] = 0, 0
        first, second = (F.normalize(self.net(half), dim=1) for half in (left, right))
        likeness, own = first @ second.T / 0.1, torch.arange(len(images), device=self.device)
        loss = F.cross_entropy(likeness, own)
        found = (likeness.argmax(1) == own).float().mean()
        self.log_dict({f"{stage}/loss": loss, f"{stage}/found_acc": found}, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.net.parameters())


class Neighbours(L.LightningModule):
    """Answers with the label of the nearest training image: a probe that learns by heart and has no optimiser."""

    images: Tensor
    labels: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(size, 784))
        self.register_buffer("labels", torch.full((size,), -1))
        self.known = 0

    def on_train_epoch_start(self) -> None:
        self.known = 0

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        places = slice(self.known, self.known + len(images))
        self.images[places], self.labels[places] = images.flatten(1), labels
        self.known += len(images)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.answer(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.answer(batch, "test")

    def answer(self, batch: Batch, stage: str) -> None:
        images, labels = batch
        nearest = torch.cdist(images.flatten(1), self.images).argmin(1)
        self.log(f"{stage}/acc", (self.labels[nearest] == labels).float().mean())

    def configure_optimizers(self) -> None:
        return None


class Probe(L.Callback):
    """Logs how many validation images have the label of the training image that is nearest in the network's output."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.known: list[Batch] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        with torch.no_grad():
            self.known.append((pl_module(batch[0]), batch[1]))

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: int
    ) -> None:
        points, labels = (torch.cat(parts) for parts in zip(*self.known, strict=True))
        nearest = torch.cdist(pl_module(batch[0]), points).argmin(1)
        pl_module.log("val/probe_acc", (labels[nearest] == batch[1]).float().mean())


class Pairs(L.LightningDataModule):
    """Pairs of digits, as images of two channels; the label says whether they are the same digit.

    Args:
        count: training pairs; half as many validate, and as many test.
        batch_size: pairs in a batch.
        seed: of the choice of pairs.
    """

    def __init__(self, count: int = 1000, batch_size: int = 50, seed: int = 0) -> None:
        super().__init__()
        self.count, self.batch_size, self.seed = count, batch_size, seed

    def setup(self, stage: str | None = None) -> None:
        found: Any = mnist_5k(Path(), False)
        chance = torch.Generator().manual_seed(self.seed)
        self.parts = {
            part: self.pairs(images, labels, count, chance)
            for part, images, labels, count in (
                ("train", found.train_images, found.train_labels, self.count),
                ("val", found.train_images, found.train_labels, self.count // 2),
                ("test", found.test_images, found.test_labels, self.count // 2),
            )
        }

    @staticmethod
    def pairs(images: Tensor, labels: Tensor, count: int, chance: torch.Generator) -> TensorDataset:
        first, second = torch.randint(len(images), (2, count), generator=chance)
        pixels = torch.cat([images[first], images[second]], dim=1).float() / 255
        return TensorDataset(pixels, (labels[first] == labels[second]).long())

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.parts["train"], self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.parts["val"], self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.parts["test"], self.batch_size)
