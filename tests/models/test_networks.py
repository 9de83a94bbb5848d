"""Layers, parameter counts and first weights are the articles' and Keras'."""

import math

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import binary_cross_entropy, cross_entropy

from mnist_lab.composing import compose_config, run_config
from mnist_lab.models import CNN, MLP, ConvStack, Neuron, NeuronForwardPass
from mnist_lab.models.layers import ACTIVATIONS

PARAMETERS = {
    "neuron": 785,
    "mlp": 669_706,
    "mlp_784_32": 640_890,
    "mlp_512": 407_050,
    "mlp_1000": 795_010,
    "cnn": 555_158,
    "conv_stack": 197_802,
}


@pytest.mark.parametrize("model", PARAMETERS)
def test_a_network_has_as_many_parameters_as_its_article_counts(model: str) -> None:
    net = instantiate(run_config(compose_config([f"model={model}"])).model, _convert_="all")
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[model]


def test_the_cnn_has_the_layers_of_its_article() -> None:
    net = instantiate(run_config(compose_config(["model=cnn"])).model, _convert_="all")
    names = [type(layer).__name__ for layer in net.layers]
    assert names == ["ConvPool2d", "ReLU", "Dropout", "Flatten", "Linear", "ReLU", "Linear"]
    net = instantiate(run_config(compose_config(["model=cnn", "model.activation=gelu"])).model, _convert_="all")
    names = [type(layer).__name__ for layer in net.layers]
    assert names[:3] == ["Conv2d", "GELU", "MaxPool2d"], "the pool may come first only where it changes nothing"


def test_a_cnn_has_a_block_per_filter_count_and_a_dense_layer_per_hidden_size() -> None:
    net = CNN([1, 28, 28], 10, filters=[24, 32], kernel_size=[5, 3], dropout=0.0, hidden=[256])
    plain_net = nn.Sequential(
        *(nn.Conv2d(1, 24, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(800, 256), nn.ReLU(), nn.Linear(256, 10)),
    )
    for layer, other in zip(net.parameters(), plain_net.parameters(), strict=True):
        other.data.copy_(layer)
    images = torch.rand(8, 1, 28, 28)
    torch.testing.assert_close(net(images), plain_net(images))
    assert len(list(CNN([3, 32, 32], 10, filters=[8, 16, 32], kernel_size=3, hidden=[]).parameters())) == 8
    with pytest.raises(ValueError, match="kernel_size has 3 entries, and filters 2"):
        CNN([1, 28, 28], 10, filters=[8, 16], kernel_size=[3, 3, 3])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_cnn_pools_after_its_activation(activation: str) -> None:
    net = CNN([1, 12, 12], 5, filters=4, kernel_size=3, dropout=0.0, hidden=[], activation=activation).double()
    kernels, biases, *outputs = net.parameters()
    images = 3 * torch.randn(8, 1, 12, 12, dtype=torch.double)
    maps = F.max_pool2d(getattr(F, activation)(F.conv2d(images, kernels, biases)), 2)
    torch.testing.assert_close(net(images), F.linear(maps.flatten(1), *outputs))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_conv_stack_has_the_layers_of_its_list(activation: str) -> None:
    acts = {"relu": nn.ReLU, "gelu": nn.GELU}[activation]
    net = ConvStack([3, 28, 28], 10, [8, 16, "pool", 24], kernel_size=5, hidden=32, activation=activation)
    plain_net = nn.Sequential(
        *(nn.Conv2d(3, 8, 5, bias=False), nn.BatchNorm2d(8), acts()),
        *(nn.Conv2d(8, 16, 5, bias=False), nn.BatchNorm2d(16), acts(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 24, 5, bias=False), nn.BatchNorm2d(24), acts()),
        *(nn.Flatten(), nn.Linear(24 * 36, 32, bias=False), nn.BatchNorm1d(32), acts(), nn.Linear(32, 10)),
    )
    for layer, other in zip(net.parameters(), plain_net.parameters(), strict=True):
        other.data.copy_(layer)
    net, plain_net = net.double(), plain_net.double()  # normalising 16 images magnifies what float32 rounds off
    for training in (True, True, False):
        images = torch.rand(16, 3, 28, 28, dtype=torch.double)
        torch.testing.assert_close(net.train(training)(images), plain_net.train(training)(images))
    only_outputs = ConvStack([1, 28, 28], 10, ["pool", 8], hidden=[])
    assert [type(layer).__name__ for layer in only_outputs.layers][-2:] == ["Flatten", "Linear"]
    with pytest.raises(ValueError, match="'pol', which is neither a number of filters nor pool"):
        ConvStack([1, 28, 28], 10, [8, "pol"])  # type: ignore[list-item]


def test_the_neuron_of_the_article_gives_all_its_digits() -> None:
    assert repr(NeuronForwardPass([1.0, 2.0], 0.0, [1.0, 1.0]).output) == "0.9525741268224334"


def test_a_neuron_refuses_another_number_of_inputs() -> None:
    with pytest.raises(ValueError, match="2 weights can't take 1 inputs"):
        NeuronForwardPass([1.0, 2.0], 0.0, [1.0])


@given(st.integers(0, 2**31))
def test_the_neurons_two_logits_are_equivalent_to_a_sigmoid_with_binary_cross_entropy(seed: int) -> None:
    torch.manual_seed(seed)
    neuron = Neuron([1, 3, 3]).double()
    images, labels = torch.randn(5, 1, 3, 3, dtype=torch.double), torch.randint(2, (5,))
    output = torch.sigmoid(neuron.linear(images.flatten(1))[:, 0])
    torch.testing.assert_close(neuron.probability(images), output)
    torch.testing.assert_close(cross_entropy(neuron(images), labels), binary_cross_entropy(output, labels.double()))


@pytest.mark.parametrize("net", [MLP([1, 28, 28], 10, [512]), CNN([1, 28, 28], 10), Neuron([1, 28, 28])])
def test_weights_are_initialized_as_in_keras(net: nn.Module) -> None:
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert layers
    for layer in layers:
        area = layer.weight[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1
        bound = math.sqrt(6 / (area * (layer.weight.shape[0] + layer.weight.shape[1])))
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert layer.bias is not None and not layer.bias.any()


def test_weights_can_be_initialized_as_in_pytorch() -> None:
    torch.manual_seed(0)
    ours = MLP([1, 28, 28], 10, [32], init="pytorch")
    torch.manual_seed(0)
    theirs = [nn.Linear(784, 32), nn.Linear(32, 10)]
    for layer, other in zip([m for m in ours.modules() if isinstance(m, nn.Linear)], theirs, strict=True):
        assert torch.equal(layer.weight, other.weight) and torch.equal(layer.bias, other.bias)


def test_an_unknown_initialization_is_refused() -> None:
    with pytest.raises(ValueError, match="glorot_uniform or pytorch"):
        MLP([1, 28, 28], 10, [32], init="zeros")


@given(
    hidden=st.lists(st.integers(1, 40), max_size=3),
    dropout=st.sampled_from([0.0, 0.5]),
    activation=st.sampled_from(["relu", "tanh", "gelu"]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
)
def test_every_size_activation_and_dropout_is_an_option(
    hidden: list[int], dropout: float, activation: str, shape: tuple[int, int, int]
) -> None:
    net = MLP(shape, 7, hidden, activation, dropout)
    assert net(torch.zeros(3, *shape)).shape == (3, 7)
    assert sum(isinstance(m, nn.Dropout) for m in net.modules()) == (len(hidden) if dropout else 0)
