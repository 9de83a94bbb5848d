"""Lightning as in its templates: torchvision's data and transforms, a DataLoader, and metrics logged at each step."""

import os
import sys
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from torchvision import transforms
from torchvision.datasets import MNIST

from mnist_lab.bench.work import BATCH_SIZES, Clock

network, epochs = sys.argv[1], int(sys.argv[2])


class LitClassifier(L.LightningModule):
    """The classifier, as in a template."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *{
                "A3": [
                    nn.Flatten(),
                    nn.Linear(784, 512),
                    nn.ReLU(),
                    nn.Dropout(0.2),
                    nn.Linear(512, 512),
                    nn.ReLU(),
                    nn.Dropout(0.2),
                    nn.Linear(512, 10),
                ],
                "B": [
                    nn.Conv2d(1, 30, 5),
                    nn.ReLU(),
                    nn.MaxPool2d(2),
                    nn.Dropout(0.2),
                    nn.Flatten(),
                    nn.Linear(4320, 128),
                    nn.ReLU(),
                    nn.Linear(128, 10),
                ],
                "C": [nn.Flatten(), nn.Linear(784, 784), nn.ReLU(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10)],
                "D": [nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10)],
            }[network]
        )
        self.loss = nn.CrossEntropyLoss()
        self.train_acc = MulticlassAccuracy(10, average="micro")
        self.val_acc = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One training step."""
        images, labels = batch
        logits = self.net(images)
        loss: Tensor = self.loss(logits, labels)
        self.train_acc(logits, labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """One validation step."""
        images, labels = batch
        logits = self.net(images)
        self.val_acc(logits, labels)
        self.log("val/loss", self.loss(logits, labels), on_step=False, on_epoch=True, prog_bar=True)
        self.log("val/acc", self.val_acc, on_step=False, on_epoch=True, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser that the network's article uses."""
        if network == "A3":
            return torch.optim.RMSprop(self.parameters(), lr=0.001, alpha=0.9, eps=1e-7)
        if network == "C":
            return torch.optim.SGD(self.parameters(), lr=0.01)
        return torch.optim.Adam(self.parameters(), lr=0.001, eps=1e-7)


clock = Clock()


class Ticks(L.Callback):
    """Tells the clock when epochs begin and training ends."""

    def on_train_epoch_start(self, *_: Any) -> None:
        """Record the start of an epoch."""
        clock.tick()

    def on_train_end(self, *_: Any) -> None:
        """Record the end of the last epoch."""
        clock.tick()


root = os.environ["BENCH_DATA"]
train = DataLoader(MNIST(root, train=True, transform=transforms.ToTensor()), BATCH_SIZES[network], shuffle=True)
test = DataLoader(MNIST(root, train=False, transform=transforms.ToTensor()), BATCH_SIZES[network])
module = LitClassifier()
trainer = L.Trainer(
    max_epochs=epochs, accelerator="cpu", default_root_dir=os.environ["BENCH_DIR"], num_sanity_val_steps=0,
    callbacks=[Ticks()],
)  # fmt: skip
trainer.fit(module, train, test)
clock.report(lambda: trainer.validate(module, test, verbose=False)[0]["val/acc"])
