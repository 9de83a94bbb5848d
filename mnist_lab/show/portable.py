"""A run's network as a file for other programs: written, read again, and compared with the run."""

from __future__ import annotations

import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mnist_lab.build import build, build_tested
from mnist_lab.errors import UserError, brief, printable
from mnist_lab.files import move
from mnist_lab.network import give_logits
from mnist_lab.terminal import relative
from mnist_lab.trained import TrainedRun

TOLERANCE = 1e-4
"""Largest difference of a probability that is accepted as rounding; a class that leads by twice as much stays ahead."""


class Portable(nn.Module):
    """A network that takes unscaled images and returns probabilities.

    Args:
        net: float32 (N, C, H, W) → logits (N, classes).
        shift: float32 (C, 1, 1), subtracted from pixel values.
        divisor: float32 (C, 1, 1), divides the difference.
    """

    shift: Tensor
    divisor: Tensor

    def __init__(self, net: nn.Module, shift: Tensor, divisor: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("shift", shift)
        self.register_buffer("divisor", divisor)

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities, float32 (N, classes), of images, uint8 (N, C, H, W)."""
        logits: Tensor = self.net((images.float() - self.shift) / self.divisor)
        return logits.float().softmax(1)


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        suffix: the ending of its files.
        write: writes a run's network and facts about it to a file.
        read: reads a file's network: uint8 (N, C, H, W) → probabilities, float32 (N, classes).
        usage: lines of Python that use a file; {file} and {shape} stand for its name and a batch's shape.
    """

    suffix: str
    write: Callable[[TrainedRun, dict[str, str], Path], None]
    read: Callable[[Path], Callable[[Tensor], Tensor]]
    usage: str


def write_checked(run: TrainedRun, kind: str, target: Path | None) -> None:
    """Write a run's network, compare it with the run on the whole test set, and print the outcome and the usage.

    Args:
        run: the run, on the CPU.
        kind: a key of FORMATS.
        target: the file; None: one in RUN/export, named after the run.

    Raises:
        UserError: the network can't be written in that format, or the test images can't be loaded.
        SystemExit: the probabilities differ by more than TOLERANCE; no file is kept.
    """
    if run.finished:
        raise UserError(
            f"{run.run_dir} has learned from float32 images that its own dataset finished: a file that takes uint8 "
            "can't do as it does. Let the dataset give uint8"
        )
    trained, run = run, with_scaling_alone(run)
    form = FORMATS[kind]
    target = target or run.run_dir / "export" / f"{Path(run.cfg.name).name}{form.suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        file = Path(folder) / f"model{form.suffix}"
        logging.disable()  # torch.export reports failures in forty lines, here and on stderr
        try:
            with redirect_stderr(io.StringIO()):
                form.write(run, facts(run), file)
        except Exception as error:  # the user's own network may do anything that the format can't express
            raise UserError(f"{run.cfg.model._target_} can't be written as {kind}: {brief(error)}") from error
        finally:
            logging.disable(logging.NOTSET)
        images, largest, same = compare(trained, form.read(file))
        if not largest <= TOLERANCE:
            raise SystemExit(
                f"error: the {kind} model is wrong and was not kept: its probabilities differ from the run's by up to "
                f"{largest:.1e} on {images:,} test images, where {TOLERANCE:.0e} is allowed, and {images - same:,} get "
                "another class"
            )
        move(file, target)
    print(printable(f"model    {relative(target)}, {target.stat().st_size / 1e6:.1f} MB, {run.checkpoint} checkpoint"))
    print(
        f"checked  {images:,} test images: largest difference of a probability {largest:.1e}, "
        f"the same class for {same:,} of {images:,}"
    )
    print(f"use\n\n{form.usage.format(file=repr(str(target.absolute())), shape=(1, *run.shape))}")


def with_scaling_alone(run: TrainedRun) -> TrainedRun:
    """Return the run with what its images go through as a shift and a divisor per channel, which a file can hold.

    Args:
        run: the run, on the CPU.

    Raises:
        UserError: its transform does something else to images, too.
    """
    if run.evaluation is None:
        return run
    black, white = (run.scale(torch.full((1, *run.shape), value, dtype=torch.uint8)) for value in (0, 255))
    noise = torch.randint(0, 256, (4, *run.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = run.scale(noise)
    low, high = black.double().mean((0, 2, 3)), white.double().mean((0, 2, 3))
    if expected.shape == noise.shape and bool((low != high).all()):
        divisor = 255 / (high - low)
        shift, divisor = ((-low * divisor).float().view(-1, 1, 1), divisor.float().view(-1, 1, 1))
        scaled = replace(run, evaluation=None, shift=shift, divisor=divisor)
        if torch.allclose(scaled.scale(noise), expected, rtol=1e-5, atol=1e-5):
            return scaled
    raise UserError(
        f"{run.run_dir}: data.transform or data.eval_transform does more than to scale each channel's values, which is "
        "all that a file can hold. Do the rest in the network, or in data.source"
    )


def facts(run: TrainedRun) -> dict[str, str]:
    """Return what a file records as JSON: classes, shape (C, H, W), shift and divisor per channel, model."""
    return {
        "classes": json.dumps(run.class_names, ensure_ascii=False),
        "shape": json.dumps(run.shape),
        "shift": json.dumps(run.shift.flatten().tolist()),
        "divisor": json.dumps(run.divisor.flatten().tolist()),
        "model": json.dumps(OmegaConf.to_container(run.cfg.model), ensure_ascii=False),
    }


def compare(run: TrainedRun, predict: Callable[[Tensor], Tensor]) -> tuple[int, float, int]:
    """Compare a run's predictions with a file's on every image of the run's test set.

    Args:
        run: the run.
        predict: the file's network: uint8 (N, C, H, W) → float32 (N, classes).

    Returns:
        The number of images; the largest difference of a probability, NaN if one is not a number; and the number of
        images that get the same class.

    Raises:
        UserError: the test images can't be loaded.
    """
    count, largest, same = 0, torch.zeros(()), 0
    data = build_tested(run.cfg, run.run_dir)
    assert data.images is not None
    images = data.images.test_images
    for positions in torch.arange(len(images)).split(data.eval_batch_size):
        pixels = torch.stack([images[n] for n in positions.tolist()])
        expected, found = run.predict(pixels), predict(pixels)
        count += len(expected)
        largest = torch.maximum(largest, (expected - found).abs().max())
        same += int((expected.argmax(1) == found.argmax(1)).sum())
    return count, largest.item(), same


def _exported(run: TrainedRun) -> ExportedProgram:
    """Return the network as a graph of PyTorch's own operations, for any number of images."""
    model = Portable(run.net, run.shift, run.divisor).eval()
    images = torch.zeros(2, *run.shape, dtype=torch.uint8)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: Dim("N")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # don't publish the names of folders here
    return program


def write_torch_export(run: TrainedRun, facts: dict[str, str], path: Path) -> None:
    """Write a file for `torch.export.load`, with the facts as extra files."""
    torch.export.save(_exported(run), path, extra_files=dict(facts))


def read_torch_export(path: Path) -> Callable[[Tensor], Tensor]:
    """Read the module in such a file."""
    with warnings.catch_warnings():  # PyTorch 2.11 warns when it reads its own file
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        module: nn.Module = torch.export.load(path).module()
    return module


def write_onnx(run: TrainedRun, facts: dict[str, str], path: Path) -> None:
    """Write an ONNX model with input `images`, output `probabilities` and the facts as metadata."""
    program = torch.onnx.export(
        _exported(run),
        dynamo=True,
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: Dim("N")},),
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(facts)
    program.save(path)


def read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Open such a file in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def write_safetensors(run: TrainedRun, facts: dict[str, str], path: Path) -> None:
    """Write the network's weights under their names in its state dict, with the facts as metadata."""
    from safetensors.torch import save_model

    save_model(run.net, str(path), metadata=facts)


def read_safetensors(path: str | Path) -> Portable:
    """Build the network that a file describes, with its weights.

    The file names the class to build: read only files from sources whose code you would run.

    Args:
        path: a file written by `write_safetensors`.

    Returns:
        uint8 (N, C, H, W) → probabilities, float32 (N, classes), in evaluation mode, on the CPU.
    """
    from safetensors import safe_open
    from safetensors.torch import load_model

    with safe_open(path, framework="pt") as file:
        facts: dict[str, Any] = {key: json.loads(value) for key, value in file.metadata().items()}
    net = build(OmegaConf.create({"model": facts["model"]}), "model")
    load_model(net, path)
    give_logits(net, torch.zeros(1, *facts["shape"]))
    shift, divisor = (torch.tensor(facts[name]).view(-1, 1, 1) for name in ("shift", "divisor"))
    return Portable(net, shift, divisor).eval().requires_grad_(False)


FORMATS = {
    "onnx": Format(
        ".onnx",
        write_onnx,
        read_onnx,
        """import numpy, onnxruntime
model = onnxruntime.InferenceSession({file})
probabilities = model.run(None, {{"images": numpy.zeros({shape}, "uint8")}})[0]""",
    ),
    "torch_export": Format(
        ".pt2",
        write_torch_export,
        read_torch_export,
        """import torch
model = torch.export.load({file}).module()
probabilities = model(torch.zeros({shape}, dtype=torch.uint8))""",
    ),
    "safetensors": Format(
        ".safetensors",
        write_safetensors,
        read_safetensors,
        """import torch; from mnist_lab.show.portable import read_safetensors
model = read_safetensors({file})
probabilities = model(torch.zeros({shape}, dtype=torch.uint8))""",
    ),
}
