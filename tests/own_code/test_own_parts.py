"""A module anywhere on the Python path and a YAML file in any --config-dir are enough."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
import yaml
from conftest import Command, result_in
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from mnist_lab import load_run
from mnist_lab.data import ImageDataModule, ImageSet, from_datasets
from mnist_lab.errors import UserError

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

class Focal(nn.Module):
    def __init__(self, gamma):
        super().__init__()
        self.gamma = gamma

    def forward(self, logits, labels):
        of_label = logits.softmax(1).gather(1, labels[:, None])
        return (-(1 - of_label) ** self.gamma * of_label.log()).mean()

class Flip(nn.Module):
    """A training image in two is mirrored."""
    def forward(self, images, generator):
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        return torch.where(mirrored[:, None, None, None], images.flip(3), images)

def load(root, download, count):
    labels = torch.arange(count) % 2
    images = (labels * 200).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    return ImageSet("stripes", images, labels, images, labels, ("dark", "light"), {})

class Scaled(nn.CrossEntropyLoss):
    def __init__(self, label_smoothing):
        super().__init__(label_smoothing=label_smoothing)
        self.scale = nn.Parameter(torch.ones(()))


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
    "loss/focal.yaml": {"_target_": "own.Focal", "gamma": 2.0},
    "schedule/halving.yaml": {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "_partial_": True, "gamma": 0.5},
    "optimizer/lbfgs.yaml": {"_target_": "torch.optim.LBFGS", "_partial_": True, "lr": 1.0},
    "schedule/mine.yaml": {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "_partial_": True},
    "augment/flip.yaml": {"augment": {"_target_": "own.Flip"}},
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
        package = "# @package data\n" if name.startswith("augment") else ""
        path.write_text(package + yaml.safe_dump(content))
    return tmp_path


@pytest.mark.slow
def test_a_network_an_optimizer_and_data_of_ones_own_train_and_are_recorded(mine: Path, lab: Command) -> None:
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


@pytest.mark.slow
def test_a_loss_a_schedule_and_an_augmentation_of_ones_own_train_and_are_recorded(mine: Path, lab: Command) -> None:
    words = ["--config-dir", "my_conf", "model=mine", "data=stripes", "loss=focal", "schedule=halving", "augment=flip"]
    done = lab(*words, "optimizer.lr=0.1", "trainer.max_epochs=3", PYTHONPATH=str(mine / "lib"))
    assert done.returncode == 0, done.stderr
    result = result_in(mine / "outputs")
    assert result.config["loss"] == {"_target_": "own.Focal", "gamma": 2.0}
    assert result.config["data"]["augment"] == {"_target_": "own.Flip"}
    assert [row["lr"] for row in result.history] == pytest.approx([0.1, 0.05, 0.025]), "by epoch, as Lightning steps it"


@pytest.mark.slow
def test_a_part_of_the_wrong_kind_is_refused_in_one_line(mine: Path, lab: Command) -> None:
    words = ["--config-dir", "my_conf", "model=mine", "data=stripes"]
    (mine / "my_conf/augment/bare.yaml").write_text("_target_: own.Flip\n")
    for more, said in {
        "data.augment={_target_: torch.nn.Identity}": "data.augment: augment(images float32 (B, C, H, W), 0 to 255",
        "augment=bare": "augment: a file of this group begins with the line `# @package data`",
        "optimizer=lbfgs": "LBFGS computes the loss several times a step",
        "schedule=mine": "add +schedule.monitor=val/loss",
        "+callbacks.x._target_=lightning.pytorch.callbacks.BatchSizeFinder": "-m data.batch_size=",
        "+callbacks.x._target_=lightning.pytorch.callbacks.EarlyStopping +callbacks.x.monitor=val_loss": "`val/loss`",
        "loss._target_=own.Scaled": "only those of the network are trained",
        "+loss.reduction=sum": "a loss is the mean over a batch's images",
        "+logger.color=red": "error: logger",
        "+trainer.callbacks=[]": "trainer.callbacks is not allowed, it is callbacks.NAME here",
    }.items():
        done = lab(*words, *(more.split() if "callbacks.x" in more else [more]), PYTHONPATH=str(mine / "lib"))
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


IMAGES, LABELS = np.zeros((6, 1, 4, 4), np.uint8), np.array([0, 1, 0, 1, 0, 1])


def test_arrays_and_lists_are_as_good_as_tensors() -> None:
    found = ImageSet("own", IMAGES, LABELS, torch.from_numpy(IMAGES), list(LABELS), ["a", "b"])  # type: ignore[arg-type]
    assert found.train_images.dtype == torch.uint8 and found.test_labels.dtype == torch.int64  # type: ignore[union-attr]
    assert found.classes == ("a", "b") and found.files == {}


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("train_images", IMAGES / 255, "train_images are float64, and must be uint8, 0 to 255"),
        ("test_images", IMAGES.astype(np.float32), "test_images are float32"),
        ("train_images", IMAGES[:, 0], r"have the shape \[6, 4, 4\], and must be \(N, channels, height, width\)"),
        ("train_images", list(IMAGES), "train_images are list"),
        ("test_labels", LABELS[:5], "test_images are 6, and their labels 5"),
        ("train_labels", LABELS / 1, "train_labels are not whole numbers"),
        ("test_labels", list("ababab"), "test_labels are not whole numbers"),
    ],
)
def test_images_and_labels_of_a_wrong_type_or_shape_are_refused(part: str, value: Any, said: str) -> None:
    parts = {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES, "test_labels": LABELS}
    with pytest.raises(UserError, match=said):
        ImageSet("own", classes=("a", "b"), **(parts | {part: value}))


@pytest.mark.slow
def test_a_network_for_another_shape_is_refused_in_a_line(mine: Path, lab: Command) -> None:
    done = lab("--config-dir", "my_conf", "model=mine", "data=mnist_5k", PYTHONPATH=str(mine / "lib"))
    assert done.returncode == 2
    assert "own.Net can't be used with data=mnist_5k: it doesn't take images of the shape [1, 28, 28]" in done.stderr


def test_a_misspelt_option_of_ones_own_gets_a_suggestion(mine: Path, lab: Command) -> None:
    done = lab("--config-dir", "my_conf", "model=mien", PYTHONPATH=str(mine / "lib"))
    assert done.returncode == 2
    assert "Did you mean mine?" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["uint8", "pil", "float32"])
def test_workers_read_a_dataset_when_a_batch_is_due(mine: Path, lab: Command, kind: str) -> None:
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


@pytest.mark.slow
def test_a_dataset_that_fits_is_read_into_memory_once(mine: Path, lab: Command) -> None:
    record = mine / "record"
    words = ["--config-dir", "my_conf", "model=mine", "data=photos", f"+data.source.train.record={record}"]
    assert lab(*words, PYTHONPATH=str(mine / "lib")).returncode == 0
    assert len(set(record.read_text().split())) == 1 and len(record.read_text().split()) < 2 * 200 + 10
    done = lab(*words, "+data.source.train.kind=float32", PYTHONPATH=str(mine / "lib"))
    assert done.returncode == 2 and "memory holds uint8: add data.loader=workers" in done.stderr


@pytest.mark.slow
def test_a_source_that_is_no_dataset_is_refused_in_one_line(mine: Path, lab: Command) -> None:
    words = ["--config-dir", "my_conf", "model=mine", "data=photos", "data.loader=workers"]
    done = lab(*words, "data.source.train._target_=own.Net", PYTHONPATH=str(mine / "lib"))
    assert done.returncode == 2 and "data" in done.stderr and "Traceback" not in done.stderr
    done = lab(*words, "data.scale=standard", PYTHONPATH=str(mine / "lib"))
    assert done.returncode == 2 and "needs all images at once" in done.stderr


@pytest.mark.slow
def test_predict_and_export_refuse_a_run_on_float_images(
    mine: Path, lab: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"+data.source.{part}.kind=float32" for part in ("train", "test")]
    words += ["data.loader=workers", "data.workers=0", "trainer.max_epochs=1", "report=false", "hydra.run.dir=r"]
    path = str(mine / "lib")
    assert lab("--config-dir", "my_conf", "model=mine", "data=photos", *words, PYTHONPATH=path).returncode == 0
    (mine / "a.png").write_bytes(b"")
    for verb in (["predict", "r", "images=a.png"], ["export", "r", "format=torch_export"]):
        done = lab(*verb, PYTHONPATH=path)
        assert done.returncode == 2 and "float32 images that its own dataset finished" in done.stderr, done.stderr
    monkeypatch.syspath_prepend(path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    run, images = load_run(mine / "r"), torch.rand(2, 1, 4, 4)
    assert run.predict(images).equal(run.net(images).softmax(1))
    assert str(run).endswith("/r, last: Net, 154 parameters)")


def test_an_exception_in_a_data_source_names_file_and_line(mine: Path, lab: Command) -> None:
    own = (mine / "lib/own.py").read_text()
    (mine / "lib/own.py").write_text(
        own.replace("    labels = torch.arange", "    open('not.there')\n    labels = torch.arange")
    )
    done = lab("--config-dir", "my_conf", "model=mine", "data=stripes", PYTHONPATH=str(mine / "lib"))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "data.source: FileNotFoundError" in done.stderr and "(own.py, line 37)" in done.stderr, done.stderr


@pytest.mark.slow
def test_a_softmax_at_the_end_of_a_network_is_noted(mine: Path, lab: Command) -> None:
    own = (mine / "lib/own.py").read_text()
    (mine / "lib/own.py").write_text(own.replace("return self.layers(images)", "return self.layers(images).softmax(1)"))
    done = lab("--config-dir", "my_conf", "model=mine", "data=stripes", PYTHONPATH=str(mine / "lib"))
    assert done.returncode == 0 and "gives probabilities, and cross entropy takes logits" in done.stdout.replace(
        "\n│ ", ""
    )
    assert any("a network here ends without one" in note for note in result_in(mine / "outputs").notes)


def test_data_without_files_has_a_digest_of_its_images() -> None:
    labels = torch.tensor([0, 1])
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    sets = [ImageSet("own", images + n, labels, images, labels, ("a", "b")) for n in (0, 0, 1)]
    assert sets[0].digest == sets[1].digest != sets[2].digest


def test_a_dataset_in_memory_has_a_digest_of_its_images() -> None:
    digests = []
    for pixel in (0, 0, 1):
        pairs = [(torch.full((1, 4, 4), pixel, dtype=torch.uint8), n % 2) for n in range(4)]
        parts: dict[str, Any] = {"train": pairs, "test": pairs}
        data = ImageDataModule("own", partial(from_datasets, **parts, classes=2), "/", (1, 4, 4), 2, val="none")
        data.setup()
        assert data.images is not None
        digests.append(data.images.digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_dataset_is_indexed_by_position() -> None:
    """Not the labels that it had before its own transform, nor a picture's numbers of colours."""
    colours = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).convert(
        "P", palette=Image.Palette.ADAPTIVE
    )

    class Pairs:
        targets, target_transform = (0, 0, 1), staticmethod(lambda label: 1 - label)

        def __len__(self) -> int:
            return 3

        def __getitem__(self, position: int) -> tuple[Image.Image, int]:
            return colours, self.target_transform(self.targets[position])

    found = from_datasets(Path(), False, Pairs(), Pairs(), 2)  # type: ignore[arg-type]
    assert found.train_labels.tolist() == found.test_labels.tolist() == [1, 1, 0]
    assert torch.equal(found.train_images[0], pil_to_tensor(colours.convert("RGB")))


@pytest.mark.slow
def test_rerun_names_a_module_that_has_changed(mine: Path, lab: Command) -> None:
    own, path = mine / "lib/own.py", str(mine / "lib")
    words = ["--config-dir", "my_conf", "model=mine", "data=stripes", "trainer.max_epochs=1", "report=false"]
    assert lab(*words, "hydra.run.dir=run", PYTHONPATH=path).returncode == 0
    own.write_text(own.read_text().replace("ReLU()", "Tanh()"))
    done = lab("rerun", "run", PYTHONPATH=path)
    assert done.returncode == 1 and "code.own.own.py: " in done.stdout, done.stdout
    assert "can't be repeated exactly" not in done.stdout


@pytest.mark.slow
def test_a_lock_link_of_an_editor_is_no_code(mine: Path, lab: Command) -> None:
    (mine / "lib/package").mkdir()
    (mine / "lib/own.py").rename(mine / "lib/package/__init__.py")
    (mine / "lib/package/.#__init__.py").symlink_to("me@host.123:1")
    words = ["data=mnist_5k", "data.train_size=100", "trainer.max_epochs=1", "model=mlp_784_32", "report=false"]
    done = lab(
        *words, "loss._target_=package.Focal", "+loss.gamma=2.0", "~loss.label_smoothing", PYTHONPATH=str(mine / "lib")
    )
    assert done.returncode == 0, done.stderr
    own = result_in(mine / "outputs").code["own"]
    assert "package/__init__.py" in own and not any("#" in name for name in own)


@pytest.mark.slow
def test_a_sweep_names_the_folder_of_its_configs(mine: Path, lab: Command) -> None:
    path = str(mine / "lib")
    words = ["-m", "--config-dir", "my_conf", "model=mine", "data=stripes", "trainer.max_epochs=1", "seed=0"]
    assert lab(*words, "hydra.sweep.dir=sweep", PYTHONPATH=path).returncode == 0
    (mine / "elsewhere").mkdir()
    done = warm.lab(["resume", "../sweep"], mine / "elsewhere", environment={"PYTHONPATH": path})
    assert done.returncode == 2 and f"Resume the sweep from {mine}\n" in done.stderr, done.stderr


@pytest.mark.slow
def test_a_sweep_is_not_resumed_when_ones_own_modules_changed(mine: Path, lab: Command) -> None:
    (mine / "my_conf/model/wide.yaml").write_text("_target_: own.Net\nwidth: 9\n")
    words = ["--config-dir", "my_conf", "-m", "model=mine,wide", "data=stripes", "trainer.max_epochs=1"]
    path = str(mine / "lib")
    assert lab(*words, "report=false", "hydra.sweep.dir=s", "sweep.trials=1", PYTHONPATH=path).returncode == 0
    (mine / "my_conf/model/wide.yaml").write_text("_target_: own.Net\nwidth: 10\n")
    (mine / "lib/own.py").write_text((mine / "lib/own.py").read_text().replace("nn.ReLU()", "nn.Tanh()"))
    done = lab("resume", "s", "sweep.trials=2", PYTHONPATH=path)
    assert done.returncode == 2, done.stdout
    assert "others.model=wide.model.width: 9 → 10" in done.stderr and "code.own.py: " in done.stderr
