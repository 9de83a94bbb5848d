"""Sources of images, the batches made of them, and the LightningDataModule that holds both."""

from mnist_lab.data.batches import Batch, Batches, EpochOrder
from mnist_lab.data.datamodule import ImageDataModule
from mnist_lab.data.sources import (
    DataUnavailableError,
    ImageSet,
    Source,
    cifar10,
    emnist,
    fashion_mnist,
    image_folder,
    kmnist,
    mnist,
    mnist_5k,
    qmnist,
)

__all__ = [
    "Batch",
    "Batches",
    "DataUnavailableError",
    "EpochOrder",
    "ImageDataModule",
    "ImageSet",
    "Source",
    "cifar10",
    "emnist",
    "fashion_mnist",
    "image_folder",
    "kmnist",
    "mnist",
    "mnist_5k",
    "qmnist",
]
