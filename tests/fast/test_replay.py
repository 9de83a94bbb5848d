"""Repeating the operations of the first step gives what calling the network anew gives, or isn't done."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import CrossEntropyLoss

from mnist_lab.fast import ConvPool2d, Dropout, Linear, Replay, layers
from mnist_lab.models import CNN, MLP

SHAPE = (1, 12, 12)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLP(SHAPE, 10, [300, 200], dropout=0.2),
    "mlp_gelu": lambda: MLP(SHAPE, 10, [30], activation="gelu", dropout=0.5),
    "cnn_gelu": lambda: CNN(SHAPE, 10, filters=4, activation="gelu"),
    "cnn": lambda: CNN(SHAPE, 10),
    "batch_norm": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(400, 10)
    ),
    "dropout_of_all": lambda: nn.Sequential(
        *(Dropout(0.1), nn.Flatten(), Dropout(0.1), Linear(144, 200), nn.ReLU(), Dropout(0.5), Dropout(0.2)),
        *(nn.Tanh(), nn.ReLU(), nn.ReLU(), Linear(200, 10)),
    ),
    "attention": lambda: nn.Sequential(
        nn.Flatten(1, 2), nn.TransformerEncoderLayer(12, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(144, 10)
    ),
}


class Flat(nn.Module):
    """A layer of a user's, which may do anything."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def mini_batches(sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(n, *SHAPE, generator=generator), torch.randint(10, (n,), generator=generator)) for n in sizes]


def train(net: nn.Module, repeats: bool, sizes: list[int]) -> tuple[list[Tensor], int]:
    """Losses, last weights and buffers after training; how many steps were repeated."""
    torch.manual_seed(3)
    optimizer, loss = torch.optim.SGD(net.parameters(), lr=0.1, fused=True), CrossEntropyLoss()
    replay, found, count = Replay(net, loss), [], 0
    given = mini_batches(sizes)
    for images, labels in given:
        outcome = replay(images, labels) if repeats else None
        count += outcome is not None
        if outcome is None:
            optimizer.zero_grad()
            value = loss(net(images), labels)
            value.backward()
        else:
            value = outcome[1]
        found.append(value.detach())
        optimizer.step()
    assert all(torch.equal(one, same) for (one, _), (same, _) in zip(given, mini_batches(sizes), strict=True))
    return [*found, *(p.detach() for p in net.parameters()), *net.buffers(), torch.rand(3)], count


@pytest.mark.parametrize("name", NETWORKS)
def test_replay_gives_the_same_losses_weights_buffers_and_random_numbers_bit_for_bit(name: str) -> None:
    net = NETWORKS[name]()
    sizes = [128] * 6 + [50] + [128] * 3  # an epoch's last mini-batch is smaller
    ordinary, _ = train(copy.deepcopy(net), False, sizes)
    repeated, count = train(net, True, sizes)
    assert all(map(torch.equal, ordinary, repeated))
    assert count == 9


def test_gradients_have_the_memory_layout_of_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_AVX512", False)  # convolutions then have channels last, and so have their gradients
    net = nn.Sequential(ConvPool2d(1, 4, 3, 2), ConvPool2d(4, 8, 3, 2), nn.Flatten(), nn.Linear(8, 10))
    ordinary, _ = train(copy.deepcopy(net), False, [128] * 4)
    repeated, count = train(net, True, [128] * 4)
    assert count == 4
    assert all(map(torch.equal, ordinary, repeated))


CHANGES: dict[str, Callable[[Any], object]] = {
    "a weight stops learning": lambda layers: layers[1].weight.requires_grad_(False),
    "a rate changes": lambda layers: setattr(layers[3], "p", 0.1),
    "a hook comes": lambda layers: layers[2].register_forward_hook(lambda *_: None),
    "a weight gets a hook": lambda layers: layers[1].weight.register_hook(lambda _: None),
    "a layer is another": lambda layers: layers.__setitem__(2, nn.Tanh()),
    "a weight is another": lambda layers: setattr(layers[1], "weight", nn.Parameter(layers[1].weight.detach() * 2)),
    "a layer stops training": lambda layers: layers[3].eval(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_replay_falls_back_for_a_changed_network(change: str) -> None:
    net, loss = MLP(SHAPE, 10, [30], dropout=0.5), CrossEntropyLoss()
    replay = Replay(net, loss)
    ((images, labels),) = mini_batches([128])
    assert replay(images, labels) is not None
    replay.check(net, loss)
    assert replay(images, labels) is not None
    CHANGES[change](net.layers)
    replay.check(net, loss)
    assert replay(images, labels) is None


def test_replay_falls_back_for_another_network_or_loss() -> None:
    net, loss = MLP(SHAPE, 10, [30], dropout=0.5), CrossEntropyLoss()
    replay = Replay(net, loss)
    ((images, labels),) = mini_batches([128])
    assert replay(images, labels) is not None
    for other in ((copy.deepcopy(net), loss), (net, CrossEntropyLoss())):
        replay.check(*other)
        assert replay(images, labels) is None
        replay.check(net, loss)
        assert replay(images, labels) is not None


def with_hook() -> nn.Module:
    net = MLP(SHAPE, 10, [30])
    net.layers.register_forward_hook(lambda *_: None)
    return net


@pytest.mark.parametrize(
    "make",
    [lambda: nn.Sequential(Flat(), Linear(144, 10)), with_hook],
)
def test_replay_falls_back_for_operations_that_may_differ_from_step_to_step(make: Callable[[], nn.Module]) -> None:
    net, state = make(), torch.get_rng_state()
    ((images, labels),) = mini_batches([128])
    assert Replay(net, CrossEntropyLoss())(images, labels) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert Replay(nn.Sequential(nn.Flatten(), nn.Linear(144, 10)), lambda x, y: x.sum())(images, labels) is None


def test_replay_draws_new_dropout_masks_at_each_step() -> None:
    net = nn.Sequential(nn.Flatten(), Dropout(0.5), nn.Linear(144, 10))
    replay = Replay(net, CrossEntropyLoss())
    ((images, labels),) = mini_batches([128])
    first, second = replay(images, labels), replay(images, labels)
    assert first is not None and second is not None and not torch.equal(first[0], second[0])
