"""A hand-written loop around our own parts: the difference to our command's time is the Trainer's overhead."""

import os
import sys
from functools import partial

import torch
import torch.nn.functional as F

from mnist_lab.bench.work import Clock, overrides
from mnist_lab.build import build
from mnist_lab.composing import compose_config, run_config
from mnist_lab.fast import Replay
from mnist_lab.fast.chunks import Chunks
from mnist_lab.fast.process import flush_denormals, keep_memory

network, epochs = sys.argv[1], int(sys.argv[2])
cfg = run_config(compose_config(overrides(network)))
keep_memory()
flush_denormals()
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"  # as our command does, see mnist_lab/build.py
torch.manual_seed(cfg.seeds.weights)
data, net = build(cfg, "data"), build(cfg, "model")
data.make_batches = partial(Chunks, images_at_once=2048 if network == "B" else 4096)  # as our command does
data.prepare_data()
data.setup()
optimizer = build(cfg, "optimizer")(net.parameters())
replay = Replay(net, torch.nn.CrossEntropyLoss())
train, test = data.train_dataloader(), data.test_dataloader()


@torch.inference_mode()
def evaluate() -> tuple[float, float]:
    """Mean loss and accuracy on the test set."""
    net.eval()
    loss, correct = torch.zeros(()), torch.zeros(())
    for batch in test:
        for images, labels in batch.mini_batches():
            logits = net(images)
            loss += F.cross_entropy(logits, labels) * len(labels)
            correct += (logits.argmax(1) == labels).sum()
    return loss.item() / 10_000, correct.item() / 10_000


clock = Clock()
for epoch in range(epochs):
    clock.tick()
    net.train()
    train.sampler.set_epoch(epoch)
    total, correct = torch.zeros(()), torch.zeros(())
    for batch in train:
        for images, labels in batch.mini_batches():
            found = replay(images, labels)
            if found is None:
                optimizer.zero_grad()
                logits = net(images)
                loss = F.cross_entropy(logits, labels)
                loss.backward()
            else:
                logits, loss = found
            optimizer.step()
            total += loss.detach() * len(labels)
            correct += (logits.argmax(1) == labels).sum()
    print(epoch, total.item() / 60_000, correct.item() / 60_000, *evaluate())
clock.tick()
clock.report(lambda: evaluate()[1])
