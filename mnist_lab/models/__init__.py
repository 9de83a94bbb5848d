"""The articles' networks and those of the recipes: plain `torch.nn` modules."""

from mnist_lab.fast.layers import ConvPool2d, Dropout, Linear
from mnist_lab.models.cnn import CNN
from mnist_lab.models.conv_stack import ConvStack
from mnist_lab.models.mlp import MLP
from mnist_lab.models.neuron import Neuron, NeuronForwardPass

__all__ = ["CNN", "MLP", "ConvPool2d", "ConvStack", "Dropout", "Linear", "Neuron", "NeuronForwardPass"]
