"""A module anywhere on the Python path and a YAML file in any --config-dir are enough."""

import os
from pathlib import Path

import pytest
import yaml
from conftest import Command, result_in

PYTHON = '''
import os
import torch
from PIL import Image
from torch import nn
from mnist_lab.data import ImageSet

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, images):
        return self.layers(images)

class Nudge(torch.optim.SGD):
    """A user's own optimiser; its dropout option has nothing to do with ours."""
    def __init__(self, params, lr, dropout):
        super().__init__(params, lr)

def load(root, download, count):
    labels = torch.arange(count) % 2
    images = (labels * 200).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    return ImageSet("stripes", images, labels, images, labels, ("dark", "light"), {})


class Photos(torch.utils.data.Dataset):
    """Dark and light pictures, made when they are asked for, with a record of the process that made them."""

    def __init__(self, count, kind="uint8", record=None):
        self.count, self.kind, self.record = count, kind, record

    def __len__(self):
        return self.count

    def __getitem__(self, position):
        if position >= self.count:
            raise IndexError(position)
        if self.record:
            open(self.record, "a").write(f"{os.getpid()}\\n")
        label = position % 2
        pixels = torch.full((1, 4, 4), 200 * label, dtype=torch.uint8)
        if self.kind == "pil":
            return Image.new("L", (4, 4), 200 * label), label
        return (pixels / 255 if self.kind == "float32" else pixels), label
'''
CONFIGS = {
    "model/mine.yaml": {"_target_": "own.Net", "width": 8},
    "optimizer/nudge.yaml": {"_target_": "own.Nudge", "_partial_": True, "lr": 0.5, "dropout": 7},
    "data/stripes.yaml": {
        "name": "stripes",
        "source": {"_target_": "own.load", "_partial_": True, "count": 200},
        "shape": [1, 4, 4],
        "num_classes": 2,
        "val_size": 20,
    },
    "data/photos.yaml": {
        "name": "photos",
        "source": {
            "_target_": "mnist_lab.data.from_datasets",
            "_partial_": True,
            "classes": 2,
            "train": {"_target_": "own.Photos", "count": 200},
            "test": {"_target_": "own.Photos", "count": 50},
        },
        "shape": [1, 4, 4],
        "num_classes": 2,
        "val_size": 20,
    },
}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/own.py").write_text(PYTHON)
    for name, content in CONFIGS.items():
        path = tmp_path / "my_conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    return tmp_path


def test_all_three_train_and_are_recorded(mine: Path, lab: Command) -> None:
    path = os.pathsep.join([str(mine / "lib"), os.environ.get("PYTHONPATH", "")])
    done = lab("--config-dir", "my_conf", "model=mine", "optimizer=nudge", "data=stripes", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    result = result_in(mine / "outputs")
    assert result.name == "mine-stripes"
    assert result.model == {"target": "own.Net", "parameters": 154, "trainable_parameters": 154}
    assert result.test["acc"] == 1.0
    assert result.command.startswith("python -m mnist_lab --config-dir my_conf model=mine")
    (run,) = (mine / "outputs/mine-stripes").iterdir()
    assert lab("test", f"run={run}", PYTHONPATH=path).returncode == 0


def test_a_network_for_another_shape_is_refused_in_a_line(mine: Path, lab: Command) -> None:
    done = lab("--config-dir", "my_conf", "model=mine", "data=mnist_5k", PYTHONPATH=str(mine / "lib"))
    assert done.returncode == 2
    assert "own.Net can't be used with data=mnist_5k: it doesn't take images of the shape [1, 28, 28]" in done.stderr


def test_an_option_of_yours_that_is_misspelt_finds_its_neighbour(mine: Path, lab: Command) -> None:
    done = lab("--config-dir", "my_conf", "model=mien", PYTHONPATH=str(mine / "lib"))
    assert done.returncode == 2
    assert "Did you mean mine?" in done.stderr


@pytest.mark.parametrize("kind", ["uint8", "pil", "float32"])
def test_a_dataset_is_read_by_workers_whenever_a_batch_is_due(mine: Path, lab: Command, kind: str) -> None:
    record = mine / "record"
    words = [f"+data.source.{part}.kind={kind}" for part in ("train", "test")] + [
        f"+data.source.train.record={record}", "data.loader=workers", "data.workers=2", "trainer.max_epochs=2",
        "optimizer.lr=0.1", "data.val=test",
    ]  # fmt: skip
    done = lab("--config-dir", "my_conf", "model=mine", "data=photos", *words, PYTHONPATH=str(mine / "lib"))
    assert done.returncode == 0, done.stderr
    result = result_in(mine / "outputs")
    assert result.data["name"] == "Photos" and result.data["classes"] == ["0", "1"]
    assert [row["val/acc"] for row in result.history][-1] == result.test["acc"] == 1.0
    read = record.read_text().split()
    assert len(set(read)) == 5, "the command itself for the labels, and two workers an epoch"
    assert 2 * 200 < len(read) - 200 < 2 * 200 + 10, "each image once for its label, and once an epoch"


def test_a_dataset_that_fits_is_read_into_memory_once(mine: Path, lab: Command) -> None:
    record = mine / "record"
    words = ["--config-dir", "my_conf", "model=mine", "data=photos", f"+data.source.train.record={record}"]
    assert lab(*words, PYTHONPATH=str(mine / "lib")).returncode == 0
    assert len(set(record.read_text().split())) == 1 and len(record.read_text().split()) < 2 * 200 + 10
    done = lab(*words, "+data.source.train.kind=float32", PYTHONPATH=str(mine / "lib"))
    assert done.returncode == 2 and "memory holds uint8: add data.loader=workers" in done.stderr


def test_a_dataset_of_something_else_is_refused_in_a_line(mine: Path, lab: Command) -> None:
    words = ["--config-dir", "my_conf", "model=mine", "data=photos", "data.loader=workers"]
    done = lab(*words, "data.source.train._target_=own.Net", PYTHONPATH=str(mine / "lib"))
    assert done.returncode == 2 and "data" in done.stderr and "Traceback" not in done.stderr
    done = lab(*words, "data.scale=standard", PYTHONPATH=str(mine / "lib"))
    assert done.returncode == 2 and "needs all images at once" in done.stderr
