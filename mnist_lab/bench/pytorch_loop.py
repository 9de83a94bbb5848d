"""A hand-written PyTorch loop as in its tutorials, but with all images in memory and fused optimisers."""

import sys

import torch
from torch import nn

from mnist_lab.bench.work import BATCH_SIZES, Clock, arrays

network, epochs = sys.argv[1], int(sys.argv[2])
x_train, y_train, x_test, y_test = map(torch.from_numpy, arrays())
x_train, x_test = x_train.permute(0, 3, 1, 2).contiguous(), x_test.permute(0, 3, 1, 2).contiguous()

model = nn.Sequential(
    *{
        "A3": [
            nn.Flatten(),
            nn.Linear(784, 512),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(512, 10),
        ],
        "B": [
            nn.Conv2d(1, 30, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(4320, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        ],
        "C": [nn.Flatten(), nn.Linear(784, 784), nn.ReLU(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10)],
        "D": [nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10)],
    }[network]
)
optimizer: torch.optim.Optimizer = {
    "A3": lambda: torch.optim.RMSprop(model.parameters(), lr=0.001, alpha=0.9, eps=1e-7),
    "B": lambda: torch.optim.Adam(model.parameters(), lr=0.001, eps=1e-7, fused=True),
    "C": lambda: torch.optim.SGD(model.parameters(), lr=0.01, fused=True),
    "D": lambda: torch.optim.Adam(model.parameters(), lr=0.001, eps=1e-7, fused=True),
}[network]()  # type: ignore[no-untyped-call]
loss_fn = nn.CrossEntropyLoss()


def test() -> tuple[float, float]:
    """Mean loss and accuracy on the test set."""
    model.eval()
    loss, correct = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for images, labels in zip(x_test.split(1000), y_test.split(1000), strict=True):
            logits = model(images)
            loss += loss_fn(logits, labels) * len(labels)
            correct += (logits.argmax(1) == labels).sum()
    return loss.item() / len(y_test), correct.item() / len(y_test)


clock = Clock()
for epoch in range(epochs):
    clock.tick()
    model.train()
    total, correct = torch.zeros(()), torch.zeros(())
    for index in torch.randperm(len(x_train)).split(BATCH_SIZES[network]):
        images, labels = x_train[index], y_train[index]
        logits = model(images)
        loss = loss_fn(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(labels)
        correct += (logits.argmax(1) == labels).sum()
    print(epoch, total.item() / len(x_train), correct.item() / len(x_train), *test())
clock.tick()
clock.report(lambda: test()[1])
