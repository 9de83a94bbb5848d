"""A training step written out once and then repeated, without Python and autograd finding it anew each time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx

from mnist_lab.models.layers import OPERATIONS

_KNOWN_LAYERS = ("torch.nn.modules.", "mnist_lab.models.")
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
"""What computes an operation: where PyTorch has to find it by its name, a step of A3 or D takes 2 % longer."""
_LINEAR = "mkldnn._linear_pointwise.default"  # which not every PyTorch has
_RANDOM_BITS = "mnist_lab.random_bits.default"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Replay:
    """Computes a network's logits, loss and gradients from the flat list of operations that its first step was.

    Calling modules, building the graph of derivatives and walking it back takes a sixth of a small network's step, and
    comes to the same operations each time. They are kept in the order in which they were computed, and only they are
    repeated, on new images, current weights and new random numbers.

    Only layers that do the same at each step are repeated: PyTorch's own and ours, without hooks, for as long as nobody
    changes them. And only once they have given what the ordinary way gives, bit for bit.

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
        """Sees whether network and loss are what they were at the first step; to be called when others may change them.

        Args:
            net: what is trained now.
            loss: by which loss.
        """
        self._holds = net is self._net and loss is self._loss
        if self._holds and self._shape is not None:
            facts = self._facts_now()
            self._holds = len(facts) == len(self._facts) and all(map(_unchanged, self._facts, facts))

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor] | None:
        """Leaves in each parameter the gradient of the loss, in place of the one it has.

        Args:
            images: float32 (B, C, H, W).
            labels: int64 (B,).

        Returns:
            The logits and their loss; None where the ordinary way has to be taken, and nothing was done.
        """
        if self._shape is None:  # the first shape is that of all mini-batches but an epoch's last
            self._shape, self._facts = images.shape, self._facts_now()
            self._parameters = list(self._net.parameters())
            self._step = self._write_out(images, labels)
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
        """All that the layers hold: settings, weights, which of them learn, hooks, layers within."""
        facts: list[Any] = []
        for parameter in self._net.parameters():
            facts += [parameter.requires_grad, bool(parameter._backward_hooks), bool(_hooks_after(parameter))]
        for layer in self._layers():
            for value in vars(layer).values() if isinstance(layer, nn.Module) else ():
                facts += [*value, *value.values()] if isinstance(value, dict) else [value]
        return facts

    def _write_out(self, images: Tensor, labels: Tensor) -> Callable[[Tensor, Tensor], Any] | None:
        """The step as a list of operations; None if it can't be one."""
        layers = self._layers()
        if not all(type(layer).__module__.startswith(_KNOWN_LAYERS) for layer in layers):
            return None
        if any(getattr(layer, hooks) for layer in layers for hooks in _HOOKS):
            return None
        parameters, buffers = self._parameters, list(self._net.buffers())
        if any(parameter._backward_hooks or _hooks_after(parameter) for parameter in parameters):
            return None
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        one = torch.ones((), dtype=images.dtype)

        def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, list[Tensor | None]]:
            logits = self._net(images)
            loss = self._loss(logits, labels)
            found = iter(torch.autograd.grad(loss, learning, one, allow_unused=True))
            gradients = [next(found) if parameter.requires_grad else None for parameter in parameters]
            return logits, loss, [*map(_as_laid_out, gradients, parameters)]

        random, values = torch.get_rng_state(), [buffer.clone() for buffer in buffers]

        def as_before() -> None:
            torch.set_rng_state(random)
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value)

        outcomes = []

        def take(way: Callable[[Tensor, Tensor], Any]) -> None:
            as_before()
            logits, loss, gradients = way(images, labels)
            outcomes.append([logits, loss, *gradients, *(buffer.clone() for buffer in buffers)])
            as_before()

        take(step)  # before it is written out, so that what layers keep from then on is a constant there
        try:
            written = make_fx(step)(images, labels)
        except Exception:  # tracing meets whatever a layer does, and has no error of its own for what it can't follow
            as_before()
            return None
        for node in written.graph.nodes:
            before: Any = node.args[0] if node.args else None
            if node.target is _ATEN.relu.default and str(before.target) == _LINEAR and len(before.users) == 1:
                before.update_arg(3, "relu")  # in the same pass over the values
            elif node.target is _ATEN.t.default and before.target is node.target:
                before = before.args[0]
            elif node.target is not _ATEN.alias.default:
                continue
            node.replace_all_uses_with(before)
            written.graph.erase_node(node)
        written.graph.eliminate_dead_code()
        _save_memory(written.graph)
        for node in written.graph.nodes:
            node.target = _FUNCTIONS.get(node.target, node.target)
        written.recompile()
        # A module would look for each of its tensors in three dictionaries.
        tensors = {n.target: getattr(written, n.target) for n in written.graph.nodes if n.op == "get_attr"}
        repeated = partial(type(written).forward, SimpleNamespace(**tensors))
        with torch.no_grad():
            take(repeated)
        return repeated if all(map(_same, *outcomes)) else None


def _save_memory(graph: Graph) -> None:
    """Has operations on each value write over what they change, if nobody needs that afterwards.

    What is in the cache already is written to faster.
    """
    found = list(graph.nodes)
    # ReLU's derivative asks which values are above 0, and what a dropout has left of them can answer as well.
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
    """Whether what a node of the graph gives may share its memory with something else."""
    if not isinstance(node.target, OpOverload):
        return True
    return any(returned.alias_info is not None for returned in node.target._schema.returns)


def _layout(node: Node) -> Any:
    meta = node.meta["tensor_meta"]
    return meta.shape, meta.stride, meta.dtype


def _as_laid_out(gradient: Tensor | None, weight: Tensor) -> Tensor | None:
    """The gradient in the order in which the weight lies in memory: fused optimisers go through both side by side."""
    if gradient is None or gradient.stride() == weight.stride():
        return gradient
    return torch.empty_like(weight).copy_(gradient)


def _hooks_after(parameter: nn.Parameter) -> Any:
    return parameter._post_accumulate_grad_hooks


def _unchanged(before: Any, now: Any) -> bool:
    return before is now or (not isinstance(before, Tensor) and bool(before == now))


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return torch.equal(one, other) if one is not None and other is not None else one is other
