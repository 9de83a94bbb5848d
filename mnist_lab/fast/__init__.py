"""What exists only for speed: drop-ins for parts of PyTorch, which compute the same in less time.

A config without the `fast.` parts gives the same results, only slower. All private names of torch are in this package.
What is imported here needs nothing but torch, so that `models` and `training` may import it.
"""

from mnist_lab.fast.layers import ConvPool2d, Dropout, Layers, Linear
from mnist_lab.fast.optimizers import SGD, Adam, AdamW, RMSprop
from mnist_lab.fast.replay import Replay

__all__ = ["SGD", "Adam", "AdamW", "ConvPool2d", "Dropout", "Layers", "Linear", "RMSprop", "Replay"]
