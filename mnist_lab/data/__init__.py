"""Sources of images, the batches made of them, and the LightningDataModule that holds both."""

from mnist_lab.data.archive import Archive
from mnist_lab.data.augment import Augment
from mnist_lab.data.batches import Batches, EpochOrder, WorkerBatches
from mnist_lab.data.datamodule import ImageDataModule
from mnist_lab.data.dataset_images import DatasetImages
from mnist_lab.data.download import DataUnavailableError, fetch
from mnist_lab.data.image_set import ImageSet, Source
from mnist_lab.data.sources import (
    cifar10,
    emnist,
    fashion_mnist,
    from_datasets,
    image_folder,
    kmnist,
    mnist,
    mnist_5k,
    qmnist,
)

__all__ = [
    "Archive",
    "Augment",
    "Batches",
    "DataUnavailableError",
    "DatasetImages",
    "EpochOrder",
    "ImageDataModule",
    "ImageSet",
    "Source",
    "WorkerBatches",
    "cifar10",
    "emnist",
    "fashion_mnist",
    "fetch",
    "from_datasets",
    "image_folder",
    "kmnist",
    "mnist",
    "mnist_5k",
    "qmnist",
]
