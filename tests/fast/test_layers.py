"""The layers that are faster than `torch.nn`'s compute the same: values, gradients, gradients of gradients."""

from collections.abc import Callable
from itertools import chain, pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mnist_lab.fast import RMSprop, layers
from mnist_lab.fast.layers import ConvPool2d, Dropout, Layers, Linear
from mnist_lab.models import CNN, MLP


def close(found: Tensor, expected: Tensor) -> None:
    """Equal to float32 rounding: sums of up to some thousand terms, in another order."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.detach().abs().max() + 1))


def same(layer: nn.Module, plain: Callable[..., Tensor], inputs: Tensor) -> None:
    """Checks the output, all first gradients and a second one against those of PyTorch's own function."""
    weights = [inputs.requires_grad_(), *layer.parameters()]
    found, expected = layer(inputs), plain(inputs, *layer.parameters())
    close(found, expected)
    gradient = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(found, weights, gradient), torch.autograd.grad(expected, weights, gradient), strict=True
    ):
        close(one, other)
    penalties = [
        torch.autograd.grad(
            torch.autograd.grad(output.pow(2).mean(), inputs, create_graph=True)[0].pow(2).sum(), weights[1]
        )[0]
        for output in (layer(inputs), plain(inputs, *layer.parameters()))
    ]
    close(*penalties)


@pytest.mark.slow
@given(
    images=st.integers(0, 300),
    inputs=st.integers(1, 900),
    outputs=st.integers(1, 600),
    bias=st.booleans(),
    copied_by_all=st.sampled_from([0, 2**18]),
    seed=st.integers(0, 2**31),
)
def test_a_linear_layer_computes_what_torch_does(
    images: int, inputs: int, outputs: int, bias: bool, copied_by_all: int, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = Linear(inputs, outputs, bias=bias)
    if images == 0:
        assert layer(torch.randn(0, inputs)).shape == (0, outputs)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "_COPIED_BY_ALL", copied_by_all)
        same(layer, F.linear, torch.randn(images, inputs))


@pytest.mark.parametrize("avx512", [True, False])
@settings(max_examples=40)
@given(
    images=st.integers(1, 40),
    channels=st.integers(1, 4),
    filters=st.integers(1, 40),
    kernel_size=st.integers(1, 5),
    pool=st.integers(1, 3),
    height=st.integers(7, 20),
    width=st.integers(7, 20),
    ties=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_a_convolution_with_pooling_computes_what_torch_does(
    avx512: bool, images: int, channels: int, filters: int, kernel_size: int, pool: int, height: int, width: int,
    ties: bool, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    layer = ConvPool2d(channels, filters, kernel_size, pool)
    inputs = torch.randn(images, channels, height, width)
    if ties:  # as in the blank parts of a digit, where each value of a window is the greatest
        inputs[:, :, : height // 2] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "_AVX512", avx512 and layers._AVX512)
        same(layer, lambda x, w, b: F.max_pool2d(F.conv2d(x, w, b), pool), inputs)
        with torch.no_grad():
            close(layer(inputs), F.max_pool2d(F.conv2d(inputs, layer.weight, layer.bias), pool))


@settings(max_examples=30)
@given(rate=st.floats(0.01, 0.95), seed=st.integers(0, 2**31), last=st.booleans())
def test_dropout_has_its_rate_and_scale_and_its_gradient_the_same_mask(rate: float, seed: int, last: bool) -> None:
    torch.manual_seed(seed)
    inputs = torch.rand(37, 11, 13, 61) + 0.5
    if last:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    inputs.requires_grad_()
    output = Dropout(rate)(inputs)
    kept = output != 0
    n, spread = inputs.numel(), (rate * (1 - rate) / inputs.numel()) ** 0.5
    assert abs(float((~kept).double().mean()) - rate) < 6 * spread + 2**-16, n
    exact = 2**16 / (2**16 - round(rate * 2**16))
    torch.testing.assert_close(output, torch.where(kept, inputs * exact, 0.0))
    gradient = torch.randn(inputs.shape)  # with channels first, wherever the inputs have theirs
    (found,) = torch.autograd.grad(output, inputs, gradient)
    torch.testing.assert_close(found, torch.where(kept, gradient * exact, 0.0))


def test_dropout_drops_each_value_independently_and_anew_at_each_step() -> None:
    torch.manual_seed(0)
    layer, ones = Dropout(0.3), torch.ones(400_000)
    first, second = (layer(ones) == 0).double(), (layer(ones) == 0).double()
    for lag in (1, 2, 3, 4, 5, 8, 64, 512):  # four values come from one random number: none may follow another
        assert abs(float(torch.corrcoef(torch.stack([first[:-lag], first[lag:]]))[0, 1])) < 0.01, lag
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.01
    for quarter in range(4):
        assert abs(float(first[quarter::4].mean()) - 0.3) < 0.01, quarter


@given(
    sizes=st.lists(st.sampled_from([3, 40, 600]), min_size=2, max_size=4),
    batch=st.integers(1, 300),
    relus=st.lists(st.booleans(), min_size=3, max_size=3),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=30)
def test_layers_give_the_same_without_gradients(sizes: list[int], batch: int, relus: list[bool], seed: int) -> None:
    torch.manual_seed(seed)
    parts = [
        [Linear(*pair), *([nn.ReLU()] if relu else [])] for pair, relu in zip(pairwise(sizes), relus, strict=False)
    ]
    net, inputs = Layers(*chain(*parts), Dropout(0.5)).eval(), torch.randn(batch, sizes[0])
    expected = net(inputs.requires_grad_()).detach()
    with torch.no_grad():
        close(net(inputs), expected)


def test_hooks_see_the_output_of_each_layer_without_gradients_too() -> None:
    net, inputs, seen = Layers(Linear(784, 512), nn.ReLU(), Linear(512, 512), nn.ReLU()), torch.randn(64, 784), {}
    expected = net[:3](inputs).detach()
    for number in (1, 2):
        net[number].register_forward_hook(lambda _layer, _inputs, output, n=number: seen.update({n: output}))
    with torch.no_grad():
        close(net(inputs), expected.relu())
    close(seen[2], expected)
    assert float(seen[1].min()) == 0


@given(n=st.integers(1, 300), seed=st.integers(0, 2**31))
def test_random_bits_are_those_of_sfc64(n: int, seed: int) -> None:
    torch.manual_seed(seed)
    bits = torch.ops.mnist_lab.random_bits([n, 2, 2])
    assert bits.shape == (n, 2, 2) and bits.dtype == torch.int16
    words = bits.flatten().view(torch.int64).tolist()
    torch.manual_seed(seed)
    a, b, c, counter = torch.empty(4, dtype=torch.int64).random_(-(2**63), None).tolist()
    for word in words:
        b, c = b % 2**64, c % 2**64
        drawn = (a + b + counter) % 2**64
        a, b, c = b ^ b >> 11, c + (c << 3), (c << 24 | c >> 40) + drawn
        counter += 1
        assert word % 2**64 == drawn


def test_dropout_takes_its_masks_from_the_seed_and_does_nothing_when_not_training() -> None:
    layer, ones = Dropout(0.5), torch.ones(1000)
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(layer(ones))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert torch.equal(layer.eval()(ones), ones)
    assert torch.equal(Dropout(0.0)(ones), ones) and torch.equal(Dropout(1.0)(ones), ones * 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_autocast_use_pytorchs_implementation(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    images, net = torch.randn(8, 1, 28, 28), nn.Sequential(ConvPool2d(1, 30, 5, 2), nn.Flatten(), Linear(4320, 300))
    own = nn.Sequential(nn.Conv2d(1, 30, 5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4320, 300))
    for ours, theirs in zip(net.parameters(), own.parameters(), strict=True):
        theirs.data.copy_(ours.data)
    net.to(dtype), own.to(dtype)
    assert torch.equal(net(images.to(dtype)), own(images.to(dtype)))
    if dtype == torch.bfloat16:
        net.float(), own.float()
        with torch.autocast("cpu", dtype):
            assert torch.equal(net(images), own(images)) and net(images).dtype == dtype


def test_meta_tensors_leave_nothing_behind() -> None:
    layers = nn.Sequential(Dropout(0.25), Linear(1024, 1024))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert layers(torch.ones(7, 1024)).shape == (7, 1024)
    assert type(layers(torch.ones(7, 1024)).sum().item()) is float


@pytest.mark.slow
def test_networks_can_be_exported_traced_and_copied() -> None:
    net = nn.Sequential(ConvPool2d(1, 30, 5, 2), Dropout(0.2), nn.Flatten(), Linear(4320, 300)).eval()
    images = torch.randn(16, 1, 28, 28)
    expected = net(images)
    close(torch.export.export(net, (images,)).module()(images), expected)
    close(torch.jit.trace(net, images)(images), expected)
    torch.save(net.state_dict(), buffer := __import__("io").BytesIO())
    buffer.seek(0)
    copy: Any = nn.Sequential(ConvPool2d(1, 30, 5, 2), Dropout(0.2), nn.Flatten(), Linear(4320, 300)).eval()
    copy.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(copy(images), expected)


@given(seed=st.integers(0, 2**31), decay=st.sampled_from([0.0, 0.01]))
@settings(max_examples=20)
def test_fused_rmsprop_is_rmsprop(seed: int, decay: float) -> None:
    torch.manual_seed(seed)
    start = [torch.randn(30, 20), torch.randn(7)]
    ends = []
    for momentum in (0.0, 1e-30):  # with a momentum of nothing it takes the way in many passes
        weights = [nn.Parameter(tensor.clone()) for tensor in start]
        optimizer = RMSprop(weights, momentum=momentum, weight_decay=decay)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(5):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()
        ends.append(weights)
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("net", [MLP((1, 28, 28), 10, [256]), CNN((1, 12, 12), 10)], ids=["mlp", "cnn"])
def test_torch_func_transforms_work_on_the_layers(net: nn.Module) -> None:
    images = torch.rand(64, 1, *((28, 28) if isinstance(net, MLP) else (12, 12)))
    weights = {name: weight.detach() for name, weight in net.named_parameters()}
    net.eval()

    def loss(weights: dict[str, Tensor]) -> Tensor:
        logits: Tensor = torch.func.functional_call(net, weights, (images,))
        return logits.square().mean()

    net.zero_grad()
    net(images).square().mean().backward()
    for name, gradient in torch.func.grad(loss)(weights).items():
        torch.testing.assert_close(gradient, net.get_parameter(name).grad, rtol=1e-3, atol=1e-5)
    *_, change = torch.func.jvp(loss, (weights,), ({name: torch.ones_like(w) for name, w in weights.items()},))
    expected = sum(float(p.grad.sum()) for p in net.parameters() if p.grad is not None)
    assert float(change) == pytest.approx(expected, rel=1e-3)
