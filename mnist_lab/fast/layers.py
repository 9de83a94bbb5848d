"""Layers that compute what `torch.nn`'s compute, in less time on a CPU.

What they save together with `fast.Replay` and `fast.optimizers` is in bench/README.md's table of seconds an epoch,
which `python -m mnist_lab bench` measures. `tests/fast/test_layers.py` compares values and gradients.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

_ONEDNN = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")
_AVX512 = _ONEDNN and torch.backends.cpu.get_cpu_capability() == "AVX512"
# Operations of our own, so that `make_fx` can record them: in PyTorch each is several, some of which it can't record.
_OPERATIONS = torch.library.Library("mnist_lab", "DEF")
_OPERATIONS.define("max_pool(Tensor values, int side) -> Tensor")
_OPERATIONS.define("random_bits(int[] shape) -> Tensor", tags=torch.Tag.nondeterministic_seeded)
_SFC64 = np.random.SFC64(0)


def _random_bits(shape: Sequence[int]) -> Tensor:
    """Return random bits from SFC64 (Doty-Humphrey 2014), seeded with 256 random bits of PyTorch's: int16 of `shape`.

    PyTorch's own generator takes 1.5 times as long for a small mask, and up to twice as long for a large one.
    """
    # From the lowest int64 up: by default the highest bit is never set.
    state = torch.empty(4, dtype=torch.int64).random_(-(2**63), None).numpy().view(np.uint64)
    _SFC64.state = {"bit_generator": "SFC64", "state": {"state": state}, "has_uint32": 0, "uinteger": 0}
    n = math.prod(shape)
    return torch.from_numpy(_SFC64.random_raw(-(-n // 4)).view(np.int16)[:n].reshape(shape))


def _max_pool(values: Tensor, side: int) -> Tensor:
    """Return oneDNN's max-pool in its own memory format: (B, C, H, W) → (B, C, H // side, W // side).

    The result holds which values were the largest, for `mkldnn_max_pool2d_backward`.
    """
    with torch.enable_grad():  # without gradients oneDNN doesn't keep them
        pooled: Tensor = torch.mkldnn_max_pool2d(values.detach().requires_grad_(), side, side)
    return pooled.detach()


OPERATIONS = {torch.ops.mnist_lab.random_bits.default: _random_bits, torch.ops.mnist_lab.max_pool.default: _max_pool}
"""The function of each of our operations: calling it directly saves 9 µs of PyTorch's dispatch."""
for _operation, _function in OPERATIONS.items():
    _OPERATIONS.impl(_operation, _function, "CompositeExplicitAutograd")


_ONEDNN_CALL = 2**20  # multiply-adds of a product; below, oneDNN's 10 µs a call cost more than it saves
_COPIED_BY_ALL = 2**18  # values; of fewer, one core copies a transposed matrix as fast as all


class Linear(nn.Linear):
    """`torch.nn.Linear` that multiplies with oneDNN where that is faster: on x86 CPUs, in float32.

    PyTorch multiplies float32 matrices with MKL, which leaves half of an AMD processor's AVX-512 unused. oneDNN, which
    PyTorch ships for convolutions, uses all of it. Results differ from `torch.nn.Linear`'s by rounding only.
    """

    def forward(self, inputs: Tensor, relu: bool = False) -> Tensor:
        """Return the layer's output, and its ReLU if `relu`: float (..., in_features) → (..., out_features)."""
        replaces = _ONEDNN and _may_replace(inputs, self.weight)
        if not replaces or inputs.dim() != 2 or len(inputs) * self.weight.numel() < _ONEDNN_CALL:
            output = super().forward(inputs)
        elif torch.is_grad_enabled():
            output = _OneDNNLinear.apply(inputs, self.weight, self.bias)
        else:  # product and ReLU in one pass over the values
            return _linear(inputs, self.weight, self.bias, "relu" if relu else "none")
        return torch.relu(output) if relu else output


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """Return activation(inputs · weightᵀ + bias): (B, I), (O, I), (O,) or None → (B, O)."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, activation, [], "")
    return product


class _OneDNNLinear(torch.autograd.Function):
    """Compute inputs · weightᵀ + bias, with gradients: (B, I), (O, I), (O,) or None → (B, O)."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        of_inputs, of_weight, of_bias = ctx.needs_input_grad
        product = _OneDNNLinear.apply  # which has a gradient, for gradients of gradients
        return (
            product(gradient, weight.t(), None) if of_inputs else None,
            product(_transposed(gradient), inputs.t(), None) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


class Layers(nn.Sequential):
    """`torch.nn.Sequential` that computes a `Linear` and the ReLU after it in one pass where no gradient is needed.

    Evaluations and predictions save a pass over the values. Results differ from `Sequential`'s by rounding only.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Return the last layer's output."""
        if torch.is_grad_enabled() or not _may_replace(values):
            output: Tensor = super().forward(values)  # type: ignore[no-untyped-call]
            return output
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            following = layers[:1]
            relu = type(layer) is Linear and [*map(type, following)] == [nn.ReLU]
            if relu and not any(x._forward_hooks or x._forward_pre_hooks for x in (layer, *following)):
                values = layer(values, relu=True)
                layers.pop(0)
            else:
                values = layer(values)
        return values


def _transposed(values: Tensor) -> Tensor:
    """Return the transpose, (B, O) → (O, B), contiguous if large: oneDNN would copy it with a single core."""
    transposed: Tensor = torch.cat([values.t()]) if values.numel() >= _COPIED_BY_ALL else values.t()
    return transposed


class ConvPool2d(nn.Conv2d):
    """A convolution without padding followed by a max-pool: `MaxPool2d(pool)(Conv2d(...)(images))`.

    On CPUs with AVX-512 the values between the two stay in oneDNN's blocked memory format, which saves converting them.
    On others they are in channels-last order, in which PyTorch's own pool is several times as fast.

    Args:
        in_channels: of the images.
        out_channels: filters.
        kernel_size: their side in pixels.
        pool: side and stride of the max-pool in pixels.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, pool: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        self.pool = pool

    def extra_repr(self) -> str:
        """Return the sizes of the convolution and of the pool."""
        return f"{super().extra_repr()}, pool={self.pool}"  # type: ignore[no-untyped-call]

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled output.

        Args:
            images: float (B, in_channels, H, W).

        Returns:
            Float (B, out_channels, (H − kernel_size + 1) // pool, (W − kernel_size + 1) // pool).
        """
        if not _may_replace(images, self.weight):
            return F.max_pool2d(super().forward(images), self.pool)
        if not _AVX512:
            plain: Tensor = _Plain.apply(F.max_pool2d(super().forward(channels_last(images)), self.pool))
            return plain
        output: Tensor = _OneDNNConvPool.apply(images, self.weight, self.bias, self.pool, torch.is_grad_enabled())
        return output


class _OneDNNConvPool(torch.autograd.Function):
    """Compute max_pool2d(conv2d(images, weight, bias), pool) with oneDNN, with gradients."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, pool: int, learns: bool) -> Tensor:
        blocked = images.to_mkldnn()
        between = F.conv2d(blocked, weight, bias)
        if not learns:
            return torch.mkldnn_max_pool2d(between, pool, pool).to_dense()
        pooled: Tensor = torch.ops.mnist_lab.max_pool(between, pool)
        ctx.save_for_backward(images, blocked, weight, bias, between, pooled)
        ctx.pool = pool
        return pooled.to_dense()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, blocked, weight, bias, between, pooled = ctx.saved_tensors
        if torch.is_grad_enabled():  # for gradients of gradients, which oneDNN doesn't have
            output = F.max_pool2d(F.conv2d(images, weight, bias), ctx.pool)
            wanted = [
                tensor for tensor, needed in zip((images, weight, bias), ctx.needs_input_grad, strict=False) if needed
            ]
            found = iter(torch.autograd.grad(output, wanted, gradient, create_graph=True))
            return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)
        pool, no_padding, one = [ctx.pool, ctx.pool], [0, 0], [1, 1]
        of_between = torch.ops.aten.mkldnn_max_pool2d_backward(
            gradient.to_mkldnn(), pooled, between, pool, pool, no_padding, one, False
        )
        of_images, of_weight, of_bias = torch.ops.aten.convolution_backward(
            of_between,
            blocked,
            weight,
            [len(weight)],
            one,
            no_padding,
            one,
            False,
            no_padding,
            1,
            ctx.needs_input_grad[:3],
        )
        return of_images.to_dense() if of_images is not None else None, of_weight, of_bias, None, None


class _Plain(torch.autograd.Function):
    """Copy values to channels-first order, and their gradient to channels-last order."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous(memory_format=torch.channels_last)


def channels_last(images: Tensor) -> Tensor:
    """Return the same images, (B, C, H, W), in channels-last order.

    `Tensor.contiguous(memory_format=torch.channels_last)` leaves images of one channel as they are, as their values
    have the same order either way. But a convolution takes the order of its output from their strides.
    """
    if images.shape[1] > 1:
        return images.contiguous(memory_format=torch.channels_last)
    return images.contiguous().squeeze(1).unsqueeze(-1).permute(0, 3, 1, 2)


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` that draws 16 random bits a value where that is faster: on CPUs, in float32.

    They come from a faster generator: PyTorch's takes 1.5 times as long for a small mask, and up to twice as long for a
    large one. The distribution is `torch.nn.Dropout`'s, except that the rate is rounded to a multiple of
    2⁻¹⁶; kept values are scaled for exactly the rounded rate. The random numbers are others than PyTorch's.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Return float inputs of any shape, in training each set to 0 with probability p, else divided by 1 − p."""
        dropped = round(self.p * 2**16)
        if not self.training or dropped in (0, 2**16) or not _may_replace(inputs):
            return super().forward(inputs)
        if inputs.dim() == 4 and inputs.is_contiguous(memory_format=torch.channels_last):
            bits = torch.ops.mnist_lab.random_bits(inputs.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        else:
            inputs, bits = inputs.contiguous(), torch.ops.mnist_lab.random_bits(inputs.shape)
        # ReLU's gradient passes one value where another is above a threshold: the scale where the bits are.
        scale = _expanded(2**16 / (2**16 - dropped), inputs.shape)
        mask: Tensor = torch.ops.aten.threshold_backward(scale, bits, dropped - 2**15 - 1)
        return inputs * mask


@lru_cache(maxsize=8)
def _expanded(value: float, shape: torch.Size) -> Tensor:
    """Return a number as a float32 tensor of `shape`, which must not be changed."""
    return torch.tensor(value, dtype=torch.float32).expand(shape)


def _may_replace(*tensors: Tensor) -> bool:
    """Return whether a layer may use its fast path: not on GPUs, in autocast, or while PyTorch traces the network."""
    return (
        all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)  # not of subclasses that stand in for tensors
        and all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
        and all(tensor.numel() for tensor in tensors)
        and not torch.is_autocast_enabled("cpu")
        and torch._C._functorch.peek_interpreter_stack() is None  # of torch.func
        and forward_ad._current_level < 0
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )
