"""Each data set in its true format, made small; damage of every kind is found and named."""

import gzip
import hashlib
import http.server
import re
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import in_memory, needs_mnist
from data_files import write_cifar, write_idx, write_mnist_like
from PIL import Image
from torchvision import datasets

from mnist_lab.composing import compose_config
from mnist_lab.data import DataUnavailableError, ImageDataModule, sources
from mnist_lab.data.idx import DIGESTS
from mnist_lab.errors import UserError
from mnist_lab.pictures import read_image
from mnist_lab.show.prepare import Preparation, prepare


def test_kmnist_is_read(tmp_path: Path) -> None:
    write_mnist_like(tmp_path / "KMNIST/raw")
    found = sources.kmnist(tmp_path, False)
    assert found.train_images.shape == (30, 1, 28, 28) and in_memory(found.train_images).dtype == torch.uint8
    assert found.test_labels.tolist() == [i % 10 for i in range(20)]
    assert len(found.files) == 4 and len(found.classes) == 10


@pytest.mark.parametrize("split", ["balanced", "byclass", "bymerge", "letters", "digits", "mnist"])
def test_emnist_is_upright_and_counts_labels_from_zero(split: str, tmp_path: Path) -> None:
    first, images = int(split == "letters"), np.zeros((6, 28, 28), np.uint8)
    images[:, 2, 20] = 200  # as stored: transposed
    for part in ("train", "test"):
        prefix = tmp_path / f"EMNIST/raw/emnist-{split}-{part}"
        write_idx(Path(f"{prefix}-images-idx3-ubyte"), images)
        write_idx(Path(f"{prefix}-labels-idx1-ubyte"), np.arange(6, dtype=np.uint8) + first)
    found = sources.emnist(tmp_path, False, split)
    assert found.train_labels.tolist() == found.test_labels.tolist() == list(range(6))
    assert in_memory(found.train_images)[0, 0, 20, 2] == in_memory(found.test_images)[0, 0, 20, 2] == 200
    cfg: Any = compose_config(["data=emnist", f"data.source.split={split}"])
    assert len(found.classes) == cfg.data.num_classes


def test_qmnist_is_read(tmp_path: Path) -> None:
    for part, n in (("train", 12), ("test", 8)):
        labels = np.zeros((n, 8), ">i4")
        labels[:, 0] = np.arange(n) % 10
        labels[:, 1] = 99
        write_idx(tmp_path / f"QMNIST/raw/qmnist-{part}-images-idx3-ubyte", np.zeros((n, 28, 28), np.uint8))
        write_idx(tmp_path / f"QMNIST/raw/qmnist-{part}-labels-idx2-int", labels)
    found = sources.qmnist(tmp_path, False)
    assert found.train_labels.tolist() == [i % 10 for i in range(12)]
    assert found.test_images.shape == (8, 1, 28, 28)


def test_cifar10_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch)
    found = sources.cifar10(tmp_path, False)
    assert found.train_images.shape == (10, 3, 32, 32) and found.test_images.shape == (2, 3, 32, 32)
    assert in_memory(found.train_images)[0, 1, 0, 5] == (1024 + 5) % 256  # the file holds channel after channel
    assert found.train_labels.tolist() == [0, 3, 1, 3, 2, 3, 3, 3, 4, 3]


def test_a_damaged_cifar_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py/data_batch_3").write_bytes(b"not it")
    with pytest.raises(UserError, match="data_batch_3 is damaged"):
        sources.cifar10(tmp_path, False)


def test_mnist_5k_is_real_mnist_with_the_classes_taking_turns() -> None:
    found = sources.mnist_5k(Path(), False)
    assert found.train_images.shape == (4000, 1, 28, 28)
    assert torch.bincount(found.train_labels).tolist() == [400] * 10
    assert torch.bincount(found.test_labels).tolist() == [100] * 10
    assert torch.bincount(found.train_labels[-400:]).tolist() == [40] * 10


@needs_mnist
def test_mnist_5k_are_images_of_mnists_training_set() -> None:
    import os

    mnist = sources.mnist(Path(os.environ["MNIST_LAB_DATA"]), False)
    known = {image.numpy().tobytes() for image in in_memory(mnist.train_images)}
    few = sources.mnist_5k(Path(), False)
    assert all(image.numpy().tobytes() in known for image in in_memory(few.test_images))


@needs_mnist
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_published_data_sets_have_their_sizes_and_digests(name: str) -> None:
    import os

    found = getattr(sources, name)(Path(os.environ["MNIST_LAB_DATA"]), False)
    assert found.train_images.shape == (60_000, 1, 28, 28) and found.test_images.shape == (10_000, 1, 28, 28)


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut": (lambda b: b[:-100], "its header promises 23,536 bytes .30×28×28., it has 23,436"),
    "longer": (lambda b: b + b"x", "its header promises"),
    "lying header": (lambda b: b[:4] + struct.pack(">I", 31) + b[8:], "its header promises 24,320 bytes"),
    "no header": (lambda b: b"\x1f\x8b" + b[2:], "does not begin as an IDX file"),
    "only a header": (lambda b: b[:9], "ends in its header"),
    "empty": (lambda _: b"", "does not begin as an IDX file"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_idx_file_is_named_and_never_a_reason_to_fall_back(kind: str, tmp_path: Path) -> None:
    write_mnist_like(tmp_path / "MNIST/raw")
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    damage, message = DAMAGE[kind]
    path.write_bytes(damage(path.read_bytes()))
    data = ImageDataModule("mnist", sources.mnist, str(tmp_path), (1, 28, 28), 10, fallback="mnist_5k")
    with pytest.raises(UserError, match=f"train-images-idx3-ubyte is damaged: .*{message}"):
        data.prepare_data()


def test_mnist_with_other_content_is_refused_by_its_digest(tmp_path: Path) -> None:
    write_mnist_like(tmp_path / "MNIST/raw")
    with pytest.raises(UserError, match="its digest is not the published one"):
        sources.mnist(tmp_path, False)


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_each_file_has_a_published_digest(name: str) -> None:
    files = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    assert [len(DIGESTS[f"{name}/raw/{file}"]) for file in files] == [64] * 4


def test_a_data_set_with_fewer_labels_than_images_is_refused(tmp_path: Path) -> None:
    write_mnist_like(tmp_path / "KMNIST/raw")
    write_idx(tmp_path / "KMNIST/raw/train-labels-idx1-ubyte", np.zeros(29, np.uint8))
    with pytest.raises(UserError, match="has 30 images, train-labels-idx1-ubyte 29 labels"):
        sources.kmnist(tmp_path, False)


def test_a_digest_is_computed_once_and_again_when_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnist_lab import files

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "file"
    path.write_bytes(b"one")
    assert files.digests([path]) == [hashlib.sha256(b"one").hexdigest()]
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
        assert files.digests([path]) == [hashlib.sha256(b"one").hexdigest()]
    path.write_bytes(b"two")
    assert files.digests([path]) == [hashlib.sha256(b"two").hexdigest()]


@contextmanager
def mirror(folder: Path) -> Iterator[str]:
    """Serves a folder on this machine alone."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A mirror with a small KMNIST, as its authors would serve it."""
    folder = tmp_path / "mirror"
    write_mnist_like(folder)
    resources = []
    for path in sorted(folder.iterdir()):
        packed = path.with_name(path.name + ".gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
        resources.append((packed.name, hashlib.md5(packed.read_bytes()).hexdigest()))
    monkeypatch.setattr(datasets.KMNIST, "resources", resources)
    for variable in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with mirror(folder) as address:
        monkeypatch.setattr(datasets.KMNIST, "mirrors", [address])
        yield folder


@pytest.mark.usefixtures("served")
def test_missing_files_are_downloaded(tmp_path: Path) -> None:
    assert sources.kmnist(tmp_path / "data", True).train_images.shape == (30, 1, 28, 28)
    assert sources.kmnist(tmp_path / "data", False).test_images.shape == (20, 1, 28, 28)


def test_a_damaged_download_is_never_used_and_what_stands_in_says_why(served: Path, tmp_path: Path) -> None:
    path = served / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-50])
    data = ImageDataModule("kmnist", sources.kmnist, str(tmp_path / "data"), (1, 28, 28), 10, fallback="mnist_5k")
    data.prepare_data()
    data.setup()
    assert re.search(r"NOT KMNIST: .*train-images-idx3-ubyte\.gz from .*: its MD5 is", data.stand_in or "")
    assert not (tmp_path / "data").exists()


def test_a_file_that_no_mirror_has_is_missing(served: Path, tmp_path: Path) -> None:
    for path in served.iterdir():
        path.unlink()
    with pytest.raises(DataUnavailableError, match="404"):
        sources.kmnist(tmp_path / "data", True)
    assert not (tmp_path / "data").exists()


def save_images(folder: Path, count: int, color: tuple[int, int, int]) -> None:
    folder.mkdir(parents=True)
    for n in range(count):
        Image.new("RGB", (40, 30), color).save(folder / f"{n}.png")


def test_class_folders_are_a_data_set(tmp_path: Path) -> None:
    save_images(tmp_path / "red", 10, (255, 0, 0))
    save_images(tmp_path / "blue", 20, (0, 0, 255))
    found = sources.image_folder(tmp_path, False, (3, 16, 16), 0.2)
    assert found.classes == ("blue", "red")
    assert torch.bincount(found.test_labels).tolist() == [4, 2]
    assert torch.bincount(found.train_labels).tolist() == [16, 8]
    red = in_memory(found.train_images)[found.train_labels == 1]
    assert red.shape == (8, 3, 16, 16) and (red[:, 0] == 255).all() and (red[:, 1:] == 0).all()
    grey = sources.image_folder(tmp_path, False, (1, 16, 16), 0.2)
    assert grey.train_images.shape == (24, 1, 16, 16)


def test_train_and_test_folders_are_used_as_they_are(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("test", 2)):
        save_images(tmp_path / part / "a", count, (0, 0, 0))
        save_images(tmp_path / part / "b", count, (9, 9, 9))
    found = sources.image_folder(tmp_path, False, (1, 8, 8), 0.5)
    assert (len(found.train_labels), len(found.test_labels)) == (6, 4)


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "TEST"), ("training", "testing")])
def test_train_and_test_folders_may_have_their_usual_names(names: tuple[str, str], tmp_path: Path) -> None:
    for part, count in zip(names, (3, 2), strict=True):
        for name in "ab":
            save_images(tmp_path / part / name, count, (0, 0, 0))
    found = sources.image_folder(tmp_path, False, (1, 8, 8), 0.5)
    assert (found.classes, len(found.train_labels), len(found.test_labels)) == (("a", "b"), 6, 4)


@pytest.mark.parametrize("names", [("Bus", "Train"), ("running", "training")])
def test_a_class_may_be_called_train(names: tuple[str, str], tmp_path: Path) -> None:
    for name in names:
        save_images(tmp_path / name, 5, (0, 0, 0))
    assert sources.image_folder(tmp_path, False, (1, 8, 8), 0.2).classes == names


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ("train val", "to test on it, call it"),
        ("train val test", "data.val"),
        ("train validation more", "to test on it"),
    ],
)
def test_a_validation_folder_that_is_not_read_is_an_error(
    parts: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for part in parts.split():
        for name in "ab":
            save_images(tmp_path / part / name, 5, (0, 0, 0))
    sources.image_folder(tmp_path, False, (1, 8, 8), 0.2)
    assert len(caplog.messages) == 1 and f"{tmp_path / parts.split()[1]} is not read" in caplog.messages[0]
    assert said in caplog.messages[0]


def test_training_prepares_pictures_as_predict_does(tmp_path: Path) -> None:
    """Upright as a camera has noted, with paper behind what is transparent, in any format, and nothing hidden."""
    left = Image.new("RGB", (16, 16))
    left.paste((250, 0, 0), (0, 0, 4, 16))
    turned = Image.Exif()
    turned[274] = 6
    ink = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    ink.paste((0, 0, 0, 255), (2, 2, 6, 9))
    pictures: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "turned.jpg": (left, {"exif": turned}), "ink.png": (ink, {}), "palette.gif": (left.convert("P"), {}),
    }  # fmt: skip
    for name in "ab":
        (tmp_path / name / ".hidden").mkdir(parents=True)
        for file, (image, options) in pictures.items():
            image.save(tmp_path / name / file, **options)
        left.save(tmp_path / name / ".hidden/copy.png")
        (tmp_path / name / "._0.png").write_bytes(b"what macOS keeps beside a file")
        (tmp_path / name / "features.h5").write_bytes(b"a format that Pillow only recognises")
    for shape in ((1, 8, 8), (3, 8, 8)):
        found = sources.image_folder(tmp_path, False, shape, 0.5)
        learned = torch.cat([in_memory(found.train_images), in_memory(found.test_images)])
        how = Preparation("resize", shape, squeeze=True)
        seen = [prepare(read_image(tmp_path / "a" / file), how)[0] for file in pictures]
        assert learned.unique(dim=0).equal(torch.from_numpy(np.stack(seen)).unique(dim=0)) and len(learned) == 6
    assert (learned[:, :, 0].float().std(-1).amax(-1) == 0).any(), "the stripe on the left is on top"
    assert learned.flatten(1).float().std(1).min() > 0, "none is of one colour"


def test_a_class_that_only_the_test_set_has_is_named(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "test/a", "test/b", "test/c"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / name / "1.png")
    (tmp_path / "test/.cache").mkdir()
    with pytest.raises(UserError, match="test/c: there is no class of this name in"):
        sources.image_folder(tmp_path, False, [1, 4, 4], 0.5)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    save_images(tmp_path / "a", 2, (0, 0, 0))
    save_images(tmp_path / "b", 2, (0, 0, 0))
    (tmp_path / "b/1.png").write_text("no image")
    with pytest.raises(UserError, match=r"1\.png: no image"):
        sources.image_folder(tmp_path, False, (1, 8, 8), 0.5)


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    save_images(tmp_path / "a", 2, (0, 0, 0))
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="b has no images"):
        sources.image_folder(tmp_path, False, (1, 8, 8), 0.5)


def test_qmnist_is_downloaded_with_its_test_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mirror"
    resources: dict[str, list[tuple[str, str]]] = {}
    monkeypatch.delenv("http_proxy", raising=False)
    with mirror(folder) as address:
        for part in ("train", "test"):
            arrays = {"images-idx3-ubyte": np.zeros((4, 28, 28), np.uint8), "labels-idx2-int": np.zeros((4, 8), ">i4")}
            for kind, array in arrays.items():
                path = folder / f"qmnist-{part}-{kind}"
                write_idx(path, array)
                packed = path.with_name(path.name + ".gz")
                packed.write_bytes(gzip.compress(path.read_bytes()))
                pair = (address + packed.name, hashlib.md5(packed.read_bytes()).hexdigest())
                resources.setdefault(part, []).append(pair)
        monkeypatch.setattr(datasets.QMNIST, "resources", resources)
        assert len(sources.qmnist(tmp_path / "data", True).test_labels) == 4


def test_files_in_torchvisions_old_format_are_refused(tmp_path: Path) -> None:
    write_mnist_like(tmp_path / "KMNIST/raw")
    (tmp_path / "KMNIST/processed").mkdir()
    (tmp_path / "KMNIST/processed/training.pt").write_bytes(b"")
    with pytest.raises(UserError, match="old format"):
        sources.kmnist(tmp_path, False)


@pytest.mark.parametrize("shape", [(30, 784), (0, 28, 28)])
def test_images_of_another_kind_than_the_files_name_says_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    write_mnist_like(tmp_path / "KMNIST/raw")
    write_idx(tmp_path / "KMNIST/raw/train-images-idx3-ubyte", np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match="train-images-idx3-ubyte is"):
        sources.kmnist(tmp_path, False)


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    write_mnist_like(tmp_path / "KMNIST/raw")
    write_idx(tmp_path / "KMNIST/raw/train-labels-idx1-ubyte", np.full(30, 200, np.uint8))
    data = ImageDataModule("kmnist", sources.kmnist, str(tmp_path), (1, 28, 28), 10)
    with pytest.raises(UserError, match="labels from 200 to 200, not 0 to 9"):
        data.setup()
