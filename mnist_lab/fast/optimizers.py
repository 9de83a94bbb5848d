"""Optimisers that call PyTorch's fused operations directly, without the Python code around them.

SGD, Adam and AdamW compute what `torch.optim`'s compute, bit for bit, and exchange checkpoints with them; RMSprop
computes what Keras' computes. With these optimisers and with `fast.replay` calling PyTorch's functions directly, D's
step takes 0.85 of its former time (0.80–0.92, four pairs of processes in turn). Together with updating all weights in
one call, they save 50 of RMSprop's 190 µs a step in A3, and 60 of SGD's 170 µs in C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

_GLOBAL_HOOKS = (_global_optimizer_pre_hooks, _global_optimizer_post_hooks)


class _Direct(Optimizer):
    """An optimiser whose step is a few operations on all weights of a group.

    What `torch.optim` does around them takes 50 µs a step, with Adam 150 µs. A whole step of D takes about 600 µs.
    """

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `step` as PyTorch does, for profilers and hooks, but call the wrapper only where there are any."""
        wrapped = Optimizer.profile_hook_step(func)

        @wraps(func)
        def step(self: Optimizer, *args: Any, **named: Any) -> Any:
            hooks = (self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks, *_GLOBAL_HOOKS)
            watched = any(hooks) or torch._C._autograd._profiler_enabled()
            return (wrapped if watched else func)(self, *args, **named)

        return step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: computes the loss and its gradients; None: the gradients are in the parameters already.

        Returns:
            The loss that the closure returned; None without a closure.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        learning: list[list[Tensor]] = [[p for p in group["params"] if p.grad is not None] for group in groups]
        if not all(map(self._may_operate, groups, learning)):
            step: Any = super().step
            # PyTorch has wrapped this step in hooks. Where it has wrapped its own step too, they would run twice.
            (step.__wrapped__.__get__(self) if hasattr(step, "hooked") else step)()
            return loss
        for group, weights in zip(groups, learning, strict=True):
            if weights:
                self._operate(group, weights, [p.grad for p in weights if p.grad is not None])
        return loss

    def _may_operate(self, group: dict[str, Any], weights: list[Tensor]) -> bool:
        """Return whether `_operate` can take this step: for PyTorch's optimisers, whether it is one fused operation.

        It is not in the first step, which creates the state.
        """
        return (
            bool(group["fused"])
            and not any(isinstance(number, Tensor) for number in (group["lr"], *group.get("betas", ())))
            and getattr(self, "grad_scale", None) is None
            and getattr(self, "found_inf", None) is None
            and all(p.is_cpu and p.dtype is weights[0].dtype for p in weights)
        )

    def _operate(self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        """Update weights, at least one, with their gradients, in place."""
        raise NotImplementedError


class RMSprop(_Direct):
    """RMSprop as Keras computes it: the gradient divided by sqrt(mean square + eps).

    `torch.optim.RMSprop` adds eps to the root instead, where 1e-7 damps the steps of weights with small gradients far
    less. A3 ends with a test loss of 0.0749 ± 0.0037 with PyTorch's and 0.0701 ± 0.0058 with this one (n = 10); Keras
    ends at 0.0689 ± 0.0048.

    Args:
        params: the parameters to optimise.
        lr: learning rate, above 0.
        alpha: decay of the mean squared gradient, Keras' rho, in [0, 1).
        eps: added inside the square root, above 0.
        momentum: in [0, 1); it accumulates the steps, with the learning rate applied.
        weight_decay: decoupled, 0 or more: each step first shrinks weights by lr · weight_decay.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.001,
        alpha: float = 0.9,
        eps: float = 1e-7,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum, "weight_decay": weight_decay}
        )

    def _may_operate(self, group: dict[str, Any], weights: list[Tensor]) -> bool:
        return True

    def _operate(self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        decay, eps, lr = group["alpha"], group["eps"], group["lr"] / math.sqrt(1 - group["alpha"])
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        # The mean squared gradient plus eps, divided by 1 − alpha. In this form it is Adagrad's sum of squares with
        # decay, and PyTorch has Adagrad as one pass over all weights.
        sums = [self._kept(p, "square_sum", eps / (1 - decay)) for p in weights]
        if not group["momentum"] and all(p.is_cpu for p in weights):
            torch._foreach_lerp_(sums, [_scalar(eps / (1 - decay), kept.dtype) for kept in sums], 1 - decay)
            torch._fused_adagrad_(
                *(weights, gradients, sums, [_scalar(1, torch.float32)] * len(weights)),
                **{"lr": lr, "lr_decay": 0.0, "weight_decay": 0.0, "eps": 0.0, "maximize": False},
            )
            return
        torch._foreach_mul_(sums, decay)
        torch._foreach_add_(sums, eps)
        torch._foreach_addcmul_(sums, gradients, gradients, 1)
        steps = list(torch._foreach_sqrt(sums))
        torch._foreach_reciprocal_(steps)
        torch._foreach_mul_(steps, gradients)
        torch._foreach_mul_(steps, lr)
        if group["momentum"]:
            momenta = [self._kept(p, "momentum_buffer", 0.0) for p in weights]
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, steps)
            steps = momenta
        torch._foreach_sub_(weights, steps)

    def _kept(self, weight: Tensor, name: str, first: float) -> Tensor:
        """Return a tensor of a weight's state, at first filled with `first`."""
        state = self.state[weight]
        if name not in state:
            state[name] = torch.full_like(weight, first)
        kept: Tensor = state[name]
        return kept


class SGD(_Direct, torch.optim.SGD):
    """`torch.optim.SGD` that takes a step with fused=True on a CPU in one call of PyTorch's fused operation."""

    def _operate(self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        states = [self.state[p] for p in weights] if group["momentum"] else []
        late = {n for n, state in enumerate(states) if state.get("momentum_buffer") is None}
        if late:  # a weight's first step is another operation, and weights may begin to learn later than others
            for n in late:
                states[n]["momentum_buffer"] = torch.empty_like(weights[n])
            self._fused(group, True, *([them[n] for n in sorted(late)] for them in (weights, gradients, states)))
            rest = [n for n in range(len(weights)) if n not in late]
            weights, gradients, states = ([them[n] for n in rest] for them in (weights, gradients, states))
        if weights:
            self._fused(group, False, weights, gradients, states)

    @staticmethod
    def _fused(group: dict[str, Any], is_first: bool, weights: Any, gradients: Any, states: Any) -> None:
        torch._fused_sgd_(
            weights, gradients, [state["momentum_buffer"] for state in states],
            weight_decay=group["weight_decay"], momentum=group["momentum"], lr=group["lr"], is_first_step=is_first,
            dampening=group["dampening"], nesterov=group["nesterov"], maximize=group["maximize"],
        )  # fmt: skip


class Adam(_Direct, torch.optim.Adam):
    """`torch.optim.Adam` that takes a step with fused=True on a CPU in one call of PyTorch's fused operation."""

    def _may_operate(self, group: dict[str, Any], weights: list[Tensor]) -> bool:
        return super()._may_operate(group, weights) and not group["amsgrad"] and all(self.state[p] for p in weights)

    def _operate(self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        states = [self.state[p] for p in weights]
        means, squares, steps = ([state[k] for state in states] for k in ("exp_avg", "exp_avg_sq", "step"))
        torch._foreach_add_(steps, _scalar(1, torch.float32), alpha=1)  # a number would become a tensor for each
        (torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_)(
            weights, gradients, means, squares, [], steps,
            lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], eps=group["eps"],
            weight_decay=group["weight_decay"], amsgrad=False, maximize=group["maximize"],
        )  # fmt: skip


class AdamW(Adam, torch.optim.AdamW):
    """`torch.optim.AdamW` that takes a step with fused=True on a CPU in one call of PyTorch's fused operation."""


@lru_cache(maxsize=8)
def _scalar(value: float, dtype: torch.dtype) -> Tensor:
    """Return a number as a tensor (), which must not be changed. Creating it anew takes 2 % of a small step."""
    return torch.tensor(value, dtype=dtype, device="cpu")
