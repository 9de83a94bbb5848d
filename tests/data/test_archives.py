"""Of an archive only what is expected is unpacked, into its folder alone."""

import gzip
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from mirrors import archive

from mnist_lab.data import cifar10, emnist, fetch
from mnist_lab.data.download import Limits
from mnist_lab.errors import UserError


def test_a_decompression_bomb_is_stopped_before_it_fills_the_disk(tmp_path: Path) -> None:
    packed = gzip.compress(bytes(50_000_000))
    (tmp_path / "server").mkdir()
    (tmp_path / "server/a.gz").write_bytes(packed)
    bomb = archive(tmp_path, (tmp_path / "server/a.gz").as_uri(), packed=packed)
    with pytest.raises(UserError, match=r"a of .*a\.gz unpacks to more than 10,000,000 bytes"):
        fetch("set", [bomb], tmp_path, True, Limits(largest=10_000_000))
    assert [p.name for p in (tmp_path / "Set/raw").iterdir()] == ["a.gz"]


def outside(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


def test_only_expected_files_of_a_zip_are_unpacked_and_none_outside_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    path = tmp_path / "server/gzip.zip"
    path.parent.mkdir()
    names = [f"emnist-digits-{p}-{k}" for p in ("train", "test") for k in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    contents = [b"\0\0\x08\x03" + bytes((0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28)) + bytes(784), b"\0\0\x08\x01\0\0\0\1\7"]
    with zipfile.ZipFile(path, "w") as zipped:
        for name in ("../../evil", "/tmp/evil", "gzip/../../../evil", "gzip/emnist-letters-test-images-idx3-ubyte.gz"):
            zipped.writestr(name, b"evil")
        for name, content in zip(names, contents * 2, strict=True):
            zipped.writestr(f"gzip/{name}.gz", gzip.compress(content))
    monkeypatch.setattr(datasets.EMNIST, "url", path.as_uri())
    monkeypatch.setattr(datasets.EMNIST, "md5", hashlib.md5(path.read_bytes()).hexdigest())
    found = emnist(tmp_path / "deep/data", True, "digits")
    assert found.test_labels.tolist() == [7]
    assert outside(tmp_path) == sorted(
        ["server/gzip.zip", *(f"deep/data/EMNIST/raw/{n}" for n in ["gzip.zip", *names])]
    )
    assert not Path("/tmp/evil").exists()
    with pytest.raises(UserError, match=r"gzip\.zip has no gzip/emnist-balanced-train-images-idx3-ubyte\.gz"):
        emnist(tmp_path / "deep/data", True, "balanced")


def test_only_expected_regular_files_of_a_tar_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_files import write_cifar
    from torchvision import datasets

    write_cifar(tmp_path / "real", monkeypatch)
    path = tmp_path / "server/cifar-10-python.tar.gz"
    path.parent.mkdir()

    def pack(link: str) -> None:
        with tarfile.open(path, "w:gz") as tar:
            for name in ("../../evil", "/tmp/evil", "cifar-10-batches-py/../../../evil"):
                info = tarfile.TarInfo(name)
                info.size = 4
                tar.addfile(info, io.BytesIO(b"evil"))
            for real in sorted((tmp_path / "real/cifar-10-batches-py").iterdir(), reverse=True):
                info = tarfile.TarInfo(f"cifar-10-batches-py/{real.name}")
                if real.name == link:
                    info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
                    tar.addfile(info)
                else:
                    info.size = real.stat().st_size
                    tar.addfile(info, io.BytesIO(real.read_bytes()))
        monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())

    monkeypatch.setattr(datasets.CIFAR10, "url", path.as_uri())
    pack(link="")
    assert len(cifar10(tmp_path / "deep/data", True).train_labels) == 10
    files = [f"cifar-10-batches-py/{p.name}" for p in (tmp_path / "real/cifar-10-batches-py").iterdir()]
    assert outside(tmp_path / "deep") == sorted(f"data/{n}" for n in ["cifar-10-python.tar.gz", *files])
    assert not Path("/tmp/evil").exists()
    pack(link="data_batch_2")
    with pytest.raises(UserError, match=r"tar\.gz has no cifar-10-batches-py/data_batch_2"):
        cifar10(tmp_path / "linked", True)
