"""Parts that exist only for speed: drop-ins for parts of PyTorch, which compute the same in less time.

A config without the `fast.` parts gives the same results, only slower. All private names of torch are in this package.
`models` imports its layers; `training` and `data`, which it builds on, import nothing from here.
"""

from mnist_lab.fast.classifier import FastClassifier
from mnist_lab.fast.layers import ConvPool2d, Dropout, Layers, Linear
from mnist_lab.fast.optimizers import SGD, Adam, AdamW, RMSprop
from mnist_lab.fast.replay import Replay

__all__ = ["SGD", "Adam", "AdamW", "ConvPool2d", "Dropout", "FastClassifier", "Layers", "Linear", "RMSprop", "Replay"]
