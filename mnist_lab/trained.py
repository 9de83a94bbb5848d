"""A run's network, ready to be asked about images: no trainer, no training data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from hydra.utils import get_object
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig
from torch import Tensor, nn

from mnist_lab.build import build, build_data, build_module, check_size, load_module, load_weights
from mnist_lab.data import ImageDataModule
from mnist_lab.data.evaluation import evaluation_transform
from mnist_lab.errors import UserError, brief, printable
from mnist_lab.network import give_logits
from mnist_lab.result import Result
from mnist_lab.run_folder import checkpoint_of, load_config
from mnist_lab.startup import collect_garbage_again
from mnist_lab.training import Classifier
from mnist_lab.training.checkpoint_files import read_checkpoint
from mnist_lab.user_code import errors_in_one_line
from mnist_lab.words import path_of

UNKNOWN: dict[str, Any] = {"shape": (), "class_names": (), "shift": torch.zeros(()), "divisor": torch.ones(())}
"""Preparation of images where a checkpoint has none: a user's own data prepares them itself."""


@dataclass(frozen=True)
class TrainedRun:
    """The network of a run, with all that is needed to use it.

    Attributes:
        run_dir: the run's folder.
        checkpoint: "last" or "best".
        cfg: the run's config.
        net: float32 (B, C, H, W) → logits (B, classes), in evaluation mode, on `device`; of a run without class
            probabilities the LightningModule, or its network.
        shape: (C, H, W) of the images that it takes; empty for a user's own data, as `class_names`.
        class_names: in the order of the logits.
        shift: float32 (C, 1, 1), subtracted from pixel values.
        divisor: float32 (C, 1, 1), divides what remains.
        finished: whether it learned from images that came as finished float32: then it takes those, and nothing scales.
        device: where the network is.
        evaluation: what images go through before they are scaled, uint8 (C, H, W) → uint8, or float32, which isn't
            scaled, as data.eval_transform or data.transform say; None: nothing.
        why: why the network gives no class probabilities; None: it gives them.
    """

    run_dir: Path
    checkpoint: str
    cfg: DictConfig
    net: nn.Module
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    shift: Tensor
    divisor: Tensor
    finished: bool
    device: torch.device
    evaluation: Callable[[Tensor], Tensor] | None = None
    why: str | None = None

    def __repr__(self) -> str:
        size = sum(weight.numel() for weight in self.net.parameters())
        return f"TrainedRun({self.run_dir}, {self.checkpoint}: {type(self.net).__name__}, {size:,} parameters)"

    @property
    def result(self) -> Result:
        """Return what the run recorded.

        Raises:
            UserError: it was never finished.
        """
        return Result.load(self.run_dir)

    def scale(self, images: Tensor) -> Tensor:
        """Return pixel values as the network takes them.

        Args:
            images: uint8 (N, C, H, W); float32 where `finished`.

        Returns:
            float32 (N, C, H, W), on the network's device.
        """
        if self.evaluation is not None and len(images):
            images = torch.stack([self.evaluation(image) for image in images.cpu()])
        if images.is_floating_point():
            return images.to(self.device)
        return (images.to(self.device).float() - self.shift) / self.divisor

    def require_probabilities(self) -> None:
        """Raise UserError if the network gives no class probabilities."""
        if self.why is not None:
            raise UserError(f"{self.run_dir} has no network that gives class probabilities: {self.why}")

    @torch.inference_mode()
    def predict(self, images: Tensor | np.ndarray[Any, Any], batch_size: int = 250) -> Tensor:
        """Return the probabilities of the classes.

        Args:
            images: uint8 (N, C, H, W), or (N, H, W) where C is 1, as a tensor or an array: light on dark, as the
                images were that the network has learned from. Float32 where `finished`.
            batch_size: images a forward pass.

        Returns:
            float32 (N, classes), on the CPU; each row sums to 1.

        Raises:
            UserError: images of another shape or type, or the network gives no probabilities.
        """
        self.require_probabilities()
        # A copy, where an array is read-only, as Pillow's are, or runs backwards.
        images = images if isinstance(images, Tensor) else torch.from_numpy(np.require(images, None, ["C", "W"]))
        if images.dim() == 3 and self.shape[0] == 1:
            images = images.unsqueeze(1)
        kind = torch.float32 if self.finished else torch.uint8
        if images.dtype != kind or tuple(images.shape[1:]) != self.shape:
            raise UserError(
                f"{self.run_dir} takes {str(kind).removeprefix('torch.')} images of the shape "
                f"(N, {', '.join(map(str, self.shape))}), "
                f"not {str(images.dtype).removeprefix('torch.')} of the shape {tuple(images.shape)}"
            )
        batches = images.split(batch_size)
        found = [self.net(self.scale(batch)).float().softmax(1).cpu() for batch in batches]
        return torch.cat(found) if found else torch.empty(0, len(self.class_names))


def no_probabilities(cfg: DictConfig) -> str | None:
    """Return why the network of a run with this config gives no class probabilities; None where it does."""
    for section, kind in (("data", ImageDataModule), ("module", Classifier)):
        if section in cfg and _is_class(cfg[section]._target_, object) and not _is_class(cfg[section]._target_, kind):
            return f"{section} is {cfg[section]._target_}, which is no {kind.__name__}"
    if _is_class(cfg.model._target_, L.LightningModule):
        return f"model is {cfg.model._target_}, a LightningModule of your own"
    if cfg.trainer.get("enable_checkpointing") is False:
        return "trainer.enable_checkpointing=false kept no weights"
    return None


def _is_class(target: str, kind: type) -> bool:
    found = get_object(target)
    return isinstance(found, type) and issubclass(found, kind)


def load_classifier(
    run_dir: str | Path, checkpoint: str | None = None, overrides: Sequence[str] = (), device: str | None = None
) -> TrainedRun:
    """Do what `load_run` does.

    Raises:
        UserError: the run's network gives no class probabilities, or `load_run` raises it.
    """
    run = load_run(run_dir, checkpoint, overrides, device)
    run.require_probabilities()
    return run


def load_run(
    run_dir: str | Path, checkpoint: str | None = None, overrides: Sequence[str] = (), device: str | None = None
) -> TrainedRun:
    """Load the network of a run from its folder. Never executes code that a checkpoint holds.

    Args:
        run_dir: the run's folder.
        checkpoint: "last" or "best"; None: the one that the run was tested with.
        overrides: `key=value`, replacing values of the run's config.
        device: as PyTorch names it; None: a GPU where there is one, else the CPU.

    Raises:
        UserError: there is no such run, device or checkpoint, or they don't belong together.
    """
    collect_garbage_again()
    run_dir = path_of(run_dir)
    cfg = load_config(run_dir, list(overrides))
    checkpoint = checkpoint or cfg.test_checkpoint
    path = checkpoint_of(run_dir, checkpoint)
    try:
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={device}: {brief(error)}") from error
    saved = read_checkpoint(path)
    # Its first weights are not the caller's random numbers.
    with errors_in_one_line(cfg), isolate_rng(include_cuda=False):
        check_size(cfg, path, saved)
        why = no_probabilities(cfg)
        facts = saved.get("ImageDataModule")
        if not isinstance(facts, dict) or not UNKNOWN.keys() <= facts.keys():
            if why is None:
                raise UserError(f"{path} doesn't say how images are prepared for it: train the run again")
            facts = UNKNOWN
        net = _network(cfg, path, saved, facts["shape"]) if why is None else _module(cfg, path, saved)
        evaluation = None
        if facts is not UNKNOWN:
            transform, given = build(cfg, "data.transform"), build(cfg, "data.eval_transform")
            evaluation = evaluation_transform(transform, given, facts["shape"], facts.get("finished", False))
    return TrainedRun(
        run_dir=run_dir,
        checkpoint=checkpoint,
        cfg=cfg,
        net=net.to(where).eval().requires_grad_(False),
        shape=tuple(facts["shape"]),
        class_names=tuple(printable(str(name)) for name in facts["class_names"]),
        shift=facts["shift"].to(where),
        divisor=facts["divisor"].to(where),
        finished=facts.get("finished", False),
        evaluation=evaluation,
        device=where,
        why=why,
    )


def _network(cfg: DictConfig, path: Path, saved: dict[str, Any], shape: Sequence[int]) -> nn.Module:
    net: nn.Module = build(cfg, "model")
    load_weights(net, path, saved)
    if not str(cfg.model._target_).startswith("mnist_lab."):
        give_logits(net, torch.zeros(1, *shape))
    return net


def _module(cfg: DictConfig, path: Path, saved: dict[str, Any]) -> nn.Module:
    module = build_module(cfg, build_data(cfg))
    load_module(module, path, saved)
    return module.net if isinstance(module, Classifier) else module
