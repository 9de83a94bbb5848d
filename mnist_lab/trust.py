"""Which code a run's config may name: any if this user wrote it, otherwise only layers and the like."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mnist_lab.errors import UserError, printable
from mnist_lab.files import cache_dir, sync_folder
from mnist_lab.targets import with_current_names

HARMLESS = re.compile(
    r"(torch\.nn|torch\.optim|torchvision\.transforms\.v2)\.(?!_)\w+"
    r"|torch\.nn\.modules\.(\w+\.)?[A-Z]\w*"
    r"|torch\.nn\.init\.[a-z]\w+_"
    r"|torch\.nn\.functional\.((leaky_)?relu6?|[cegs]elu|silu|mish|hardswish|softplus|tanh|(log_)?(sigmoid|softmax)"
    r"|cross_entropy|nll_loss|binary_cross_entropy(_with_logits)?|mse_loss|(smooth_)?l1_loss|huber_loss)"
    r"|torch\.nn\.utils\.(parametrizations\.)?(weight_norm|spectral_norm|orthogonal)"
    r"|torch\.optim\.lr_scheduler\.([A-Z]\w*LR|ReduceLROnPlateau|CosineAnnealingWarmRestarts|ChainedScheduler)"
    r"|torch\.optim\.swa_utils\.(SWALR|get_(ema|swa)_(multi_)?avg_fn)"
    r"|torch\.(tensor|relu|tanh|sigmoid)|datetime\.timedelta|torchvision\.transforms\.[A-Z]\w*"
    r"|torchmetrics\.classification\.[A-Z]\w*"
    r"|torchmetrics\.(Accuracy|AUROC|AveragePrecision|CalibrationError|CohenKappa|ConfusionMatrix|ExactMatch|F1Score"
    r"|FBetaScore|HammingDistance|HingeLoss|JaccardIndex|LogAUC|MatthewsCorrCoef|NegativePredictiveValue|Precision"
    r"|PrecisionAtFixedRecall|PrecisionRecallCurve|ROC|Recall|RecallAtFixedPrecision|SensitivityAtSpecificity"
    r"|Specificity|SpecificityAtSensitivity|StatScores|MetricCollection|(Cat|Max|Mean|Min|Sum)Metric)"
    r"|mnist_lab\.models\.(CNN|MLP|ConvPool2d|ConvStack|Dropout|Linear|Neuron|NeuronForwardPass)"
    r"|mnist_lab\.data\.(Augment|ImageDataModule|cifar10|emnist|fashion_mnist|from_datasets|image_folder|kmnist|mnist"
    r"|mnist_5k|qmnist)"
    r"|mnist_lab\.fast\.(SGD|Adam|AdamW|RMSprop|ConvPool2d|Dropout|Linear|FastClassifier)"
    r"|mnist_lab\.show\.tensorboard\.Dashboard"
    r"|mnist_lab\.training\.Classifier"
    r"|mnist_lab\.training\.schedules\.(step|cosine|one_cycle|Plateau)"
    r"|lightning\.(pytorch\.)?Trainer"
    r"|lightning\.pytorch\.callbacks\.(BackboneFinetuning|DeviceStatsMonitor|EarlyStopping|EMAWeightAveraging"
    r"|GradientAccumulationScheduler|LearningRateFinder|LearningRateMonitor|ModelPruning|ModelSummary"
    r"|RichModelSummary|RichProgressBar|StochasticWeightAveraging|Timer|TQDMProgressBar|WeightAveraging)"
)
"""Classes and functions that only build networks, data and their training.

Functions given to them, as to LambdaLR, are `_target_`s of the config in turn. Left out is what writes files wherever
its arguments say, as ModelCheckpoint does, imports by name, downloads, or starts processes.
"""
NETWORKS = re.compile(
    r"torchvision\.models\.(alexnet|googlenet|inception_v3|maxvit_t|(wide_)?resnet\d+(_2)?|resnext\w+|vit_[bhl]_\d+"
    r"|(convnext|efficientnet|mobilenet|regnet|shufflenet|swin)_\w+|(densenet|mnasnet|squeezenet|vgg)\w+)"
)
"""Networks of torchvision, harmless without weights: these would be downloaded, and read by unpickling them."""
WEIGHTS = ("weights", "weights_backbone", "pretrained", "pretrained_backbone", "_args_")
LOGGERS = re.compile(r"lightning\.pytorch\.loggers\.(TensorBoardLogger|CSVLogger)")
"""Loggers, harmless where they write in the run's folder."""
PLACES = ("name", "version", "sub_dir", "save_dir")


def seal(content: str) -> str | None:
    """Return a seal that shows later that this user wrote a text: HMAC-SHA256 with a key in the user's cache folder.

    Args:
        content: the text.

    Returns:
        The seal in hexadecimal; None if no key can be stored.
    """
    path = cache_dir() / "key"
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(32))
                file.flush()
                os.fsync(file.fileno())
            sync_folder(path.parent)
        key = path.read_bytes()
        if len(key) == 32:
            return hmac.new(key, content.encode(), hashlib.sha256).hexdigest()
    return None


def is_sealed(content: str, sealed: Any) -> bool:
    """Return whether the seal that came with a text shows that this user wrote it."""
    own = seal(content)
    return own is not None and isinstance(sealed, str) and hmac.compare_digest(own, sealed)


def trusts(name: str) -> bool:
    """Return whether MNIST_LAB_TRUST, a list with commas, names this package (or `sweep`)."""
    return name in os.environ.get("MNIST_LAB_TRUST", "").split(",")


def check_harmless(path: Path, config: Any) -> None:
    """Make sure that a config that this user has not written runs no code of others' choice, and writes nowhere else.

    Args:
        path: its file, or the folder of the trial that it is of.
        config: its content, as dictionaries and lists.

    Raises:
        UserError: it contains an interpolation or control characters, or names code that is neither harmless nor from a
            package in MNIST_LAB_TRUST.
    """
    for value in interpolations(config):
        raise UserError(
            f"{path} was not written here and has {value[:100]}, which could become the name of code. "
            "Write there what it stands for"
        )
    for value in values(config):
        if not isinstance(value, str | int | float | None):  # as YAML's own tags make of it
            raise UserError(
                f"{path} was not written here and has a {type(value).__name__}, {value}: write it as a text"
            )
        if isinstance(value, str) and printable(value) != value:
            raise UserError(f"{path} was not written here and has control characters: {printable(value)[:100]}")
    doubts: dict[str, str] = {}
    for described in _described(config):
        package = str(described["_target_"]).partition(".")[0]
        if not trusts(package) and (words := _objection(described)) is not None:
            doubts.setdefault(package, words)
    if doubts:
        trusted = [*filter(None, os.environ.get("MNIST_LAB_TRUST", "").split(",")), *doubts]
        raise UserError(
            f"{path} was not written here and names {next(iter(doubts.values()))}. If it is yours (from another "
            f"machine, or {cache_dir() / 'key'} was lost), or you trust it, write MNIST_LAB_TRUST={','.join(trusted)} "
            "before the command"
        )


def _objection(described: dict[str, Any]) -> str | None:
    """Return what speaks against an object that a config describes; None where it is harmless."""
    target = with_current_names(str(described["_target_"]))
    if NETWORKS.fullmatch(target):
        given = [key for key in WEIGHTS if described.get(key)]
        return f"{target} with {given[0]}, which would be downloaded" if given else None
    if LOGGERS.fullmatch(target):
        places = {key: str(described[key]) for key in PLACES if described.get(key)}
        # TensorBoard's replaces $NAME.
        inside = re.compile(r"(?!(.*/)?\.\.(/|$))[\w .-]+(/[\w .-]+)*")
        outside = [key for key, place in places.items() if not inside.fullmatch(place)]
        return f"{target} with {outside[0]}={places[outside[0]]}, which is elsewhere" if outside else None
    return None if HARMLESS.fullmatch(target) else f"{target}, which would be run"


def is_harmless(word: str) -> bool:
    """Return whether an override, `KEY._target_=NAME` or several names with commas, names only what is harmless."""
    key, _, names = word.partition("=")
    alone = re.fullmatch(r"\+{0,2}[\w.]+\._target_", key) is not None
    return alone and all(HARMLESS.fullmatch(with_current_names(name)) for name in names.split(","))


def targets(config: Any) -> Iterator[Any]:
    """Yield every `_target_` in a config."""
    return (described["_target_"] for described in _described(config))


def _described(config: Any) -> Iterator[dict[str, Any]]:
    """Yield every dictionary with a `_target_` in a config, the outer ones before those in them."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield config
        for value in config.values():
            yield from _described(value)
    elif isinstance(config, list):
        for value in config:
            yield from _described(value)


def interpolations(config: Any) -> Iterator[str]:
    """Yield every string in a config that contains an interpolation, which is replaced when the config is used."""
    return (value for value in values(config) if isinstance(value, str) and "${" in value)


def values(config: Any) -> Iterator[Any]:
    """Yield every value in a config that is neither a dictionary nor a list."""
    if not isinstance(config, dict | list):
        yield config
        return
    for value in config.values() if isinstance(config, dict) else config:
        yield from values(value)
