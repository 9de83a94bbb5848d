"""What the networks share: layers that do what `torch.nn`'s do in less time, activations by name, first weights."""

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

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
MONOTONIC = ("relu", "leaky_relu", "elu", "tanh", "sigmoid")
"""Activations that never fall, so that a max-pool may come before them: the same values, for fewer evaluations."""

_ONEDNN = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")
_AVX512 = _ONEDNN and torch.backends.cpu.get_cpu_capability() == "AVX512"
# One operation each for whoever lists a step's: in PyTorch they are several, some of which can't be listed.
_OPERATIONS = torch.library.Library("mnist_lab", "DEF")
_OPERATIONS.define("max_pool(Tensor values, int side) -> Tensor")
_OPERATIONS.define("random_bits(int[] shape) -> Tensor", tags=torch.Tag.nondeterministic_seeded)
_SFC64 = np.random.SFC64(0)


def _random_bits(shape: Sequence[int]) -> Tensor:
    """int16 of this shape, each bit random: words of SFC64 (Doty-Humphrey 2014), begun at 256 random bits of PyTorch's.

    PyTorch's own generator takes half as long again for a small mask, and up to twice as long for a large one.
    """
    # From the lowest int64 up: by default the highest bit is never set.
    state = torch.empty(4, dtype=torch.int64).random_(-(2**63), None).numpy().view(np.uint64)
    _SFC64.state = {"bit_generator": "SFC64", "state": {"state": state}, "has_uint32": 0, "uinteger": 0}
    n = math.prod(shape)
    return torch.from_numpy(_SFC64.random_raw(-(-n // 4)).view(np.int16)[:n].reshape(shape))


def _max_pool(values: Tensor, side: int) -> Tensor:
    """oneDNN's pool in its blocks: (B, C, H, W) → (B, C, H // side, W // side).

    It remembers which values won, for `mkldnn_max_pool2d_backward`.
    """
    with torch.enable_grad():  # only for a gradient does it
        pooled: Tensor = torch.mkldnn_max_pool2d(values.detach().requires_grad_(), side, side)
    return pooled.detach()


OPERATIONS = {torch.ops.mnist_lab.random_bits.default: _random_bits, torch.ops.mnist_lab.max_pool.default: _max_pool}
"""What computes our operations: to call it oneself is 9 µs shorter than to have PyTorch find it."""
for _operation, _function in OPERATIONS.items():
    _OPERATIONS.impl(_operation, _function, "CompositeExplicitAutograd")


_ONEDNN_CALL = 2**20  # multiply-adds of a product; below, oneDNN's 10 µs a call cost more than it saves
_COPIED_BY_ALL = 2**18  # values; of fewer, one core copies a transposed matrix as fast as all


class Linear(nn.Linear):
    """`torch.nn.Linear`, its products computed by oneDNN where that is faster: on x86 CPUs, in float32.

    PyTorch gives float32 products to MKL, which leaves the AVX-512 units of AMD's processors unused; oneDNN, which it
    carries for convolutions, does not.
    """

    def forward(self, inputs: Tensor, relu: bool = False) -> Tensor:
        """Float (..., in_features) → (..., out_features); what is below 0 is 0 with `relu`."""
        replaces = _ONEDNN and _may_replace(inputs, self.weight)
        if not replaces or inputs.dim() != 2 or len(inputs) * self.weight.numel() < _ONEDNN_CALL:
            output = super().forward(inputs)
        elif torch.is_grad_enabled():
            output = _OneDNNLinear.apply(inputs, self.weight, self.bias)
        else:  # both in one pass
            return _linear(inputs, self.weight, self.bias, "relu" if relu else "none")
        return torch.relu(output) if relu else output


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """activation(inputs · weightᵀ + bias): (B, I), (O, I), (O,) or None → (B, O)."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, activation, [], "")
    return product


class _OneDNNLinear(torch.autograd.Function):
    """inputs · weightᵀ + bias: (B, I), (O, I), (O,) or None → (B, O)."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        of_inputs, of_weight, of_bias = ctx.needs_input_grad
        product = _OneDNNLinear.apply  # itself, so that gradients have gradients
        return (
            product(gradient, weight.t(), None) if of_inputs else None,
            product(_transposed(gradient), inputs.t(), None) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


class Layers(nn.Sequential):
    """`torch.nn.Sequential`; where no gradient is wanted, a `Linear` and the ReLU after it are computed as one."""

    def forward(self, values: Tensor) -> Tensor:
        """What the last layer gives."""
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
    """(B, O) → (O, B), which oneDNN wants in order; it would copy large ones with a single core."""
    transposed: Tensor = torch.cat([values.t()]) if values.numel() >= _COPIED_BY_ALL else values.t()
    return transposed


class ConvPool2d(nn.Conv2d):
    """A convolution without padding and the max-pool of its output: `MaxPool2d(pool)(Conv2d(...)(images))`.

    On CPUs with AVX-512 what lies between the two stays in the blocks of channels in which oneDNN computes. On others
    it lies with channels last, in which PyTorch's own pool is several times as fast.

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
        """The convolution's sizes and the pool's."""
        return f"{super().extra_repr()}, pool={self.pool}"  # type: ignore[no-untyped-call]

    def forward(self, images: Tensor) -> Tensor:
        """Float (B, in_channels, H, W) → (B, out_channels, (H − kernel_size + 1) // pool, the same of W)."""
        if not _may_replace(images, self.weight):
            return F.max_pool2d(super().forward(images), self.pool)
        if not _AVX512:
            plain: Tensor = _Plain.apply(F.max_pool2d(super().forward(channels_last(images)), self.pool))
            return plain
        output: Tensor = _OneDNNConvPool.apply(images, self.weight, self.bias, self.pool, torch.is_grad_enabled())
        return output


class _OneDNNConvPool(torch.autograd.Function):
    """max_pool2d(conv2d(images, weight, bias), pool)."""

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
        if torch.is_grad_enabled():  # a gradient's own gradient is asked for, which oneDNN doesn't have
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
    """The same values with channels first in memory, and a gradient with channels last."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous(memory_format=torch.channels_last)


def channels_last(images: Tensor) -> Tensor:
    """The same images (B, C, H, W) with channels last in memory.

    `Tensor.contiguous(memory_format=torch.channels_last)` leaves images of one channel as they are: their values lie in
    the same order either way. But their strides tell a convolution in which order to write what it gives.
    """
    if images.shape[1] > 1:
        return images.contiguous(memory_format=torch.channels_last)
    return images.contiguous().squeeze(1).unsqueeze(-1).permute(0, 3, 1, 2)


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, its mask made of 16 random bits a value where that is faster: on CPUs, in float32.

    The rate is rounded to a multiple of 2⁻¹⁶, and what is kept is scaled by exactly that rate.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Float of any shape → the same shape; in training each value is 0 with probability p, or value / (1 − p)."""
        dropped = round(self.p * 2**16)
        if not self.training or dropped in (0, 2**16) or not _may_replace(inputs):
            return super().forward(inputs)
        if inputs.dim() == 4 and inputs.is_contiguous(memory_format=torch.channels_last):
            bits = torch.ops.mnist_lab.random_bits(inputs.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        else:
            inputs, bits = inputs.contiguous(), torch.ops.mnist_lab.random_bits(inputs.shape)
        # ReLU's gradient passes a value on where another is above a threshold: here the scale, where it is kept.
        scale = _expanded(2**16 / (2**16 - dropped), inputs.shape)
        mask: Tensor = torch.ops.aten.threshold_backward(scale, bits, dropped - 2**15 - 1)
        return inputs * mask


@lru_cache(maxsize=8)
def _expanded(value: float, shape: torch.Size) -> Tensor:
    """A number as a float32 tensor of any shape, which nobody may change."""
    return torch.tensor(value, dtype=torch.float32).expand(shape)


def _may_replace(*tensors: Tensor) -> bool:
    """Whether a layer may take its own way: not where PyTorch reads the network to write it in another form."""
    return (
        all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)  # other types stand in for tensors
        and all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
        and all(tensor.numel() for tensor in tensors)
        and not torch.is_autocast_enabled("cpu")
        and torch._C._functorch.peek_interpreter_stack() is None  # of torch.func
        and forward_ad._current_level < 0
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )


def init_weights(net: nn.Module, init: str) -> None:
    """Sets the first weights of every linear and convolutional layer of `net`, in place.

    Args:
        net: the network.
        init: "glorot_uniform", Keras' default: weights uniform in ±sqrt(6 / (fan_in + fan_out)) (Glorot, Bengio 2010,
            eq. 16), biases zero; or "pytorch": as torch.nn made them.

    Raises:
        ValueError: `init` is neither.
    """
    if init == "pytorch":
        return
    if init != "glorot_uniform":
        raise ValueError(f"init must be glorot_uniform or pytorch, not {init}")
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def dropout_layer(rate: float) -> list[nn.Module]:
    """A dropout layer, or none at all where nothing is to be dropped."""
    return [Dropout(rate)] if rate > 0 else []


def flat_size(net: nn.Module, input_shape: tuple[int, ...]) -> int:
    """How many values `net` gives for one image of `input_shape` (C, H, W)."""
    with torch.no_grad():
        output: Tensor = net(torch.zeros(1, *input_shape))
        return output.numel()
