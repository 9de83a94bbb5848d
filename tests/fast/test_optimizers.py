"""The optimisers of the fast path compute what Keras' and PyTorch's do."""

from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mnist_lab.composing import compose_config, run_config
from mnist_lab.fast import SGD, Adam, AdamW, RMSprop


def keras_rmsprop(
    w: np.ndarray[Any, Any], gradients: list[np.ndarray[Any, Any]], lr: float, rho: float, eps: float, momentum: float
) -> np.ndarray[Any, Any]:
    """Keras' RMSprop, from the formulas of its documentation."""
    square, speed = np.zeros_like(w), np.zeros_like(w)
    for g in gradients:
        square = rho * square + (1 - rho) * g * g
        step = lr * g / np.sqrt(square + eps)
        speed = momentum * speed + step
        w = w - (speed if momentum else step)
    return w


@given(
    seed=st.integers(0, 2**31),
    lr=st.floats(1e-4, 1e-1),
    rho=st.floats(0, 0.99),
    momentum=st.sampled_from([0.0, 0.9]),
    eps=st.sampled_from([1e-7, 1e-3]),
)
def test_rmsprop_computes_what_keras_does(seed: int, lr: float, rho: float, momentum: float, eps: float) -> None:
    rng = np.random.default_rng(seed)
    start, gradients = rng.normal(size=5), [rng.normal(size=5) * 10.0 ** rng.integers(-5, 1) for _ in range(4)]
    weight = nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = RMSprop([weight], lr, rho, eps, momentum)
    for gradient in gradients:
        weight.grad = torch.from_numpy(gradient)
        optimizer.step()
    expected = keras_rmsprop(start, gradients, lr, rho, eps, momentum)
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_rmsprop_decouples_weight_decay_from_the_gradient() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    weight.grad = torch.zeros(1)
    RMSprop([weight], lr=0.1, weight_decay=0.5).step()
    assert weight.item() == pytest.approx(2.0 * (1 - 0.05))


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**31),
    kind=st.one_of(
        st.tuples(
            st.sampled_from([(Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)]),
            st.fixed_dictionaries(
                {"betas": st.tuples(st.floats(0, 0.99), st.floats(0, 0.99))}, optional={"amsgrad": st.booleans()}
            ),
        ),
        st.tuples(
            st.just((SGD, torch.optim.SGD)),
            st.one_of(
                st.fixed_dictionaries(
                    {"momentum": st.sampled_from([0.0, 0.9]), "dampening": st.sampled_from([0.0, 0.5])}
                ),
                st.fixed_dictionaries({"momentum": st.just(0.9), "nesterov": st.booleans()}),
            ),
        ),
    ),
    settings=st.fixed_dictionaries(
        {"weight_decay": st.sampled_from([0.0, 0.1])}, optional={"fused": st.just(True), "maximize": st.booleans()}
    ),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_optimizers_are_pytorchs_bit_for_bit_and_their_checkpoints_are_exchangeable(
    seed: int, kind: tuple[Any, dict[str, Any]], settings: dict[str, Any], dtype: torch.dtype
) -> None:
    torch.manual_seed(seed)
    pair, settings = kind[0], kind[1] | settings
    start = [torch.randn(3, 4, dtype=dtype), torch.randn(4, dtype=dtype), torch.randn(2, dtype=dtype)]
    gradients = [[torch.randn_like(tensor) for tensor in start] for _ in range(6)]
    ends = []
    for first, second in (pair, pair[::-1]):  # the first takes some steps, the second goes on from its checkpoint
        weights = [nn.Parameter(tensor.clone()) for tensor in start]
        groups = [{"params": weights[:2], "lr": 0.01}, {"params": weights[2:], "lr": 0.1}]
        without = {1: weights[1], 2: weights[2]}  # of a group a part, and a whole one
        optimizer = first(groups, **settings)
        for number, found in enumerate(gradients):
            if number == 3:
                kept, optimizer = optimizer.state_dict(), second(groups, **settings)
                optimizer.load_state_dict(kept)
            for weight, gradient in zip(weights, found, strict=True):
                weight.grad = gradient.clone() if weight is not without.get(number) else None
            optimizer.param_groups[0]["lr"] *= 0.9
            optimizer.step()
        ends.append([*weights, *(number for state in optimizer.state.values() for number in state.values())])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


@pytest.mark.parametrize("settings", [{}, {"nesterov": True}, {"dampening": 0.5, "weight_decay": 0.1}])
def test_momentum_of_a_weight_begins_with_its_first_gradient(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(3, 4), torch.randn(4, 3, 4)
    ends = []
    for kind, fused in ((SGD, True), (torch.optim.SGD, False)):
        weights = [nn.Parameter(row.clone()) for row in start]
        optimizer = kind(weights, lr=0.1, momentum=0.9, fused=fused, **settings)
        for number, found in enumerate(gradients):
            for place, weight in enumerate(weights):
                weight.grad = found[place].clone() if number >= place else None
            optimizer.step()
        ends.append(torch.stack([weight.detach() for weight in weights]))
    torch.testing.assert_close(ends[0], ends[1])


@pytest.mark.parametrize("one", [SGD, Adam, AdamW, RMSprop])
def test_optimizer_hooks_run_once_a_step_and_profilers_see_it(one: Any) -> None:
    weight = nn.Parameter(torch.ones(2))
    torch.optim.SGD([weight]), torch.optim.Adam([weight]), torch.optim.AdamW([weight])  # which wrap their step in hooks
    for settings in [{}] if one is RMSprop else [{"fused": True}, {"fused": False}]:
        steps: list[str] = []
        optimizer = one([weight], **settings)

        def step(optimizer: Any = optimizer) -> None:
            weight.grad = torch.ones(2)
            optimizer.step()

        step()
        with torch.profiler.profile() as profile:
            step()
        assert [e.count for e in profile.key_averages() if e.key == f"Optimizer.step#{one.__name__}.step"] == [1]
        own = optimizer.register_step_post_hook(lambda *_, steps=steps: steps.append("own"))
        step()
        everyones = register_optimizer_step_pre_hook(lambda *_, steps=steps: steps.append("everyone's"))
        step()
        own.remove()
        step()
        everyones.remove()
        step()
        assert steps == ["own", "everyone's", "own", "everyone's"]


def test_adam_step_returns_the_loss_of_its_closure() -> None:
    weight = nn.Parameter(torch.ones(2))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        (loss := (weight**2).sum()).backward()
        return loss

    optimizer = Adam([weight], lr=0.1, fused=True)
    losses = [optimizer.step(closure).item() for _ in range(3)]
    assert losses[0] == 2.0 and losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("adam", {"lr": 0.001, "betas": (0.9, 0.999), "eps": 1e-7}),
        ("adamw", {"lr": 0.001, "betas": (0.9, 0.999), "eps": 1e-7, "weight_decay": 0.004}),
        ("rmsprop", {"lr": 0.001, "alpha": 0.9, "eps": 1e-7, "momentum": 0.0}),
        ("sgd", {"lr": 0.01, "momentum": 0.0, "nesterov": False}),
    ],
)
def test_optimizers_have_keras_defaults(option: str, expected: dict[str, Any]) -> None:
    cfg = run_config(compose_config([f"optimizer={option}"]))
    optimizer = instantiate(cfg.optimizer, _convert_="all")([nn.Parameter(torch.zeros(1))])
    group = optimizer.param_groups[0]
    assert {key: tuple(group[key]) if key == "betas" else group[key] for key in expected} == expected
