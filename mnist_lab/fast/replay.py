"""Record the operations of a training step once, then repeat them without modules or autograd.

Calling modules, building the autograd graph and walking it back takes a sixth of a small network's step. Besides, a
recorded step computes ReLU within the matrix product before it, calls PyTorch's functions without looking them up by
name (2 % of a step of A3 or D), and writes over values that are no longer needed (1.5 % of A3's and C's).
`tests/fast/test_replay.py` compares it with the ordinary step, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from mnist_lab.fast.layers import OPERATIONS

_KNOWN_LAYERS = ("torch.nn.modules.", "mnist_lab.models.", "mnist_lab.fast.")
_ATEN = torch.ops.aten
_MUL, _THRESHOLD = _ATEN.mul.Tensor, _ATEN.threshold_backward.default
_FUNCTIONS = OPERATIONS | {
    _ATEN._log_softmax.default: torch._log_softmax,
    _ATEN.addmm.default: torch.addmm,
    _ATEN.mm.default: torch.mm,
    _ATEN.mul.Tensor: torch.mul,
    _ATEN.sum.dim_IntList: torch.sum,
    _ATEN.t.default: Tensor.t,
    _ATEN.view.default: Tensor.view,
}
"""The function of each operation: where PyTorch has to look it up by name, a step of A3 or D takes 2 % longer."""
_LINEAR = "mkldnn._linear_pointwise.default"  # which not every PyTorch has
_RANDOM_BITS = "mnist_lab.random_bits.default"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Replay:
    """Compute a network's logits, loss and gradients from the recorded operations of its first step.

    They are repeated in order, on new images, current weights and new random numbers.

    Only networks of layers that do the same at each step are recorded: PyTorch's own and ours, without hooks, for as
    long as nobody changes them. The recorded step is used only if it has given what the ordinary step gives, bit for
    bit.

    Args:
        net: float32 (B, C, H, W) → logits (B, num_classes), on the CPU.
        loss: (logits, labels int64 (B,)) → a scalar.
    """

    def __init__(self, net: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._net, self._loss = net, loss
        self._step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, list[Tensor | None]]] | None = None
        self._shape: torch.Size | None = None
        self._facts: list[Any] = []
        self._parameters: list[nn.Parameter] = []
        self._holds = True

    def check(self, net: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Stop replaying if network or loss have changed since the first step. Call it whenever others may change them.

        Args:
            net: the network that is trained now.
            loss: its loss now.
        """
        self._holds = net is self._net and loss is self._loss
        if self._holds and self._shape is not None:
            facts = self._facts_now()
            self._holds = len(facts) == len(self._facts) and all(map(_unchanged, self._facts, facts))

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor] | None:
        """Set each parameter's gradient to that of the loss.

        Args:
            images: float32 (B, C, H, W).
            labels: int64 (B,).

        Returns:
            The logits and their loss; None if the step can't be replayed, and nothing was changed.
        """
        if self._shape is None:  # the first shape is that of all mini-batches but an epoch's last
            self._shape, self._facts = images.shape, self._facts_now()
            self._parameters = list(self._net.parameters())
            self._step = self._record(images, labels)
        if self._step is None or not self._holds or images.shape != self._shape:
            return None
        with torch.no_grad():
            logits, loss, gradients = self._step(images, labels)
        for weight, gradient in zip(self._parameters, gradients, strict=True):
            weight.grad = gradient
        return logits, loss

    def _layers(self) -> list[Any]:
        return [*self._net.modules(), self._loss]

    def _facts_now(self) -> list[Any]:
        """Return all that the layers hold: settings, weights, `requires_grad`, hooks, submodules."""
        facts: list[Any] = []
        for parameter in self._net.parameters():
            facts += [parameter.requires_grad, bool(parameter._backward_hooks), bool(_hooks_after(parameter))]
        for layer in self._layers():
            for value in vars(layer).values() if isinstance(layer, nn.Module) else ():
                facts += [*value, *value.values()] if isinstance(value, dict) else [value]
        return facts

    def _may_record(self) -> bool:
        """Return whether network and loss are of known layers without hooks."""
        layers, parameters = self._layers(), self._parameters
        return (
            all(type(layer).__module__.startswith(_KNOWN_LAYERS) for layer in layers)
            and not any(getattr(layer, hooks) for layer in layers for hooks in _HOOKS)
            and not any(parameter._backward_hooks or _hooks_after(parameter) for parameter in parameters)
        )

    def _record(self, images: Tensor, labels: Tensor) -> Callable[[Tensor, Tensor], Any] | None:
        """Return the step as recorded operations; None if it can't be recorded."""
        if not self._may_record():
            return None
        parameters, buffers = self._parameters, list(self._net.buffers())
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        one = torch.ones((), dtype=images.dtype)

        def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, list[Tensor | None]]:
            logits = self._net(images)
            loss = self._loss(logits, labels)
            found = iter(torch.autograd.grad(loss, learning, one, allow_unused=True))
            gradients = [next(found) if parameter.requires_grad else None for parameter in parameters]
            return logits, loss, [*map(_as_laid_out, gradients, parameters)]

        random, values = torch.get_rng_state(), [buffer.clone() for buffer in buffers]

        def undo() -> None:
            torch.set_rng_state(random)
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value)

        def outcome(step: Callable[[Tensor, Tensor], Any]) -> list[Tensor | None]:
            logits, loss, gradients = step(images, labels)
            found = [logits, loss, *gradients, *(buffer.clone() for buffer in buffers)]
            undo()
            return found

        expected = outcome(step)  # before it is recorded, so that what layers cache in it becomes a constant
        try:
            recorded = make_fx(step)(images, labels)
        except Exception:  # tracing runs any code of layers, and has no error of its own for what it can't follow
            return None
        finally:
            undo()
        repeated = _compiled(recorded)
        with torch.no_grad():
            return repeated if all(map(_same, expected, outcome(repeated))) else None


def _compiled(recorded: GraphModule) -> Callable[[Tensor, Tensor], Any]:
    """Simplify a recorded step and return it as a function of images and labels."""
    graph = recorded.graph
    for node in graph.nodes:
        before: Any = node.args[0] if node.args else None
        if node.target is _ATEN.relu.default and str(before.target) == _LINEAR and len(before.users) == 1:
            before.update_arg(3, "relu")  # in the same pass over the values
        elif node.target is _ATEN.t.default and before.target is node.target:
            before = before.args[0]
        elif node.target is not _ATEN.alias.default:
            continue
        node.replace_all_uses_with(before)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    _save_memory(graph)
    for node in graph.nodes:
        node.target = _FUNCTIONS.get(node.target, node.target)
    recorded.recompile()
    # A module would look for each of its tensors in three dictionaries.
    tensors = {node.target: getattr(recorded, node.target) for node in graph.nodes if node.op == "get_attr"}
    return partial(type(recorded).forward, SimpleNamespace(**tensors))


def _save_memory(graph: Graph) -> None:
    """Make elementwise operations write over their input where nothing needs it afterwards.

    Memory that is in the cache already is written to faster.
    """
    found = list(graph.nodes)
    # ReLU's derivative asks which values are above 0. The output of a dropout after it answers that as well.
    for node in found:
        if node.target is not _THRESHOLD or node.args[0].target is not _MUL or node.args[2] != 0:
            continue
        mask, relu = node.args[0].args[1], node.args[1]
        if getattr(mask, "target", None) is _THRESHOLD and str(mask.args[1].target) == _RANDOM_BITS:
            left = [user for user in relu.users if user.target is _MUL and user.args == (relu, mask)]
            node.update_arg(1, [*left, relu][0])
    number = {node: place for place, node in enumerate(found)}
    own = {node for node in found if not _is_view(node)}
    for node in found:
        if node.target not in (_MUL, _THRESHOLD):
            continue
        first = node.args[0]
        ends = own.issuperset([first, *first.users]) and number[node] == max(number[user] for user in first.users)
        if ends and _layout(first) == _layout(node):
            if node.target is _THRESHOLD:
                node.target, node.kwargs = _ATEN.threshold_backward.grad_input, {"grad_input": first}
            else:
                node.target = Tensor.mul_


def _is_view(node: Node) -> bool:
    """Return whether a node's output may share its memory with another value."""
    if not isinstance(node.target, OpOverload):
        return True
    return any(returned.alias_info is not None for returned in node.target._schema.returns)


def _layout(node: Node) -> Any:
    meta = node.meta["tensor_meta"]
    return meta.shape, meta.stride, meta.dtype


def _as_laid_out(gradient: Tensor | None, weight: Tensor) -> Tensor | None:
    """Return the gradient with its weight's strides: fused optimisers go through both side by side."""
    if gradient is None or gradient.stride() == weight.stride():
        return gradient
    return torch.empty_like(weight).copy_(gradient)


def _hooks_after(parameter: nn.Parameter) -> Any:
    return parameter._post_accumulate_grad_hooks


def _unchanged(before: Any, now: Any) -> bool:
    return before is now or (not isinstance(before, Tensor) and bool(before == now))


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return torch.equal(one, other) if one is not None and other is not None else one is other
