"""A small run, and callbacks of one's own for it: one kills its process, others change weights."""

WORDS = ["model=mlp", "model.hidden=[32]", "data=mnist_5k", "data.train_size=1000", "data.batch_size=100"]
WORDS += ["data.val=random", "data.val_size=500", "report=false", "trainer.max_epochs=3", "trainer.accelerator=cpu"]
OWN = '''
import os
import random

import numpy as np
from lightning.pytorch.callbacks import Callback


class Killed(Callback):
    """Kills its process in the hook and the epoch that the environment names."""


def killed_in(name):
    def hook(self, trainer, *_):
        if os.environ.get("KILLED") == f"{name} {trainer.current_epoch}":
            os.kill(os.getpid(), 9)

    return hook


for name in dir(Callback):
    if name.startswith(("on_train_", "on_validation_", "on_test_")):
        setattr(Killed, name, killed_in(name))


class Average(Callback):
    """Averages the weights of all epochs, and puts them in when the training ends."""

    def __init__(self):
        self.epochs, self.mean = 0, {}

    def state_dict(self):
        return {"epochs": self.epochs, "mean": self.mean}

    def load_state_dict(self, state_dict):
        self.epochs, self.mean = state_dict["epochs"], state_dict["mean"]

    def on_train_epoch_end(self, trainer, module):
        now = {name: value.detach().clone() for name, value in module.net.state_dict().items()}
        old = self.mean or now
        self.mean = {name: (old[name] * self.epochs + now[name]) / (self.epochs + 1) for name in now}
        self.epochs += 1

    def on_train_end(self, trainer, module):
        module.net.load_state_dict(self.mean)


class Noise(Callback):
    """Multiplies the weights by random numbers of Python's and NumPy's, when epochs end and when training begins."""

    def on_train_start(self, trainer, module):
        self.on_train_epoch_end(trainer, module)

    def on_train_epoch_end(self, trainer, module):
        for weight in module.net.parameters():
            weight.data *= 1 + random.gauss(0, 0.01) + np.random.normal(0, 0.01)
'''
