"""A run is used from any folder, after its data or its own folder have moved; no other data takes their place."""

import shutil
from pathlib import Path

import pytest
import warm
from conftest import Command, in_memory
from omegaconf import OmegaConf
from PIL import Image

from mnist_lab.data import ImageDataModule, image_folder, mnist_5k
from mnist_lab.data.moved import read_recorded
from mnist_lab.errors import UserError
from mnist_lab.result import Result

FOLDERS = ["data=image_folder", "data.root=pictures", "data.shape=[1,8,8]", "data.val=none", "model=mlp_784_32"]
SHORT = ["report=false", "trainer.accelerator=cpu", "trainer.max_epochs=1", "logger=none", "hydra.run.dir=run"]


def draw(root: Path, value: int = 200) -> None:
    for name, light in (("dark", 20), ("light", value)):
        (root / name).mkdir(parents=True)
        for n in range(10):
            Image.new("L", (8, 8), light + n).save(root / name / f"{n}.png")


@pytest.fixture
def trained(lab: Command, tmp_path: Path) -> Path:
    """A folder with a run on pictures beside it, whose data.root was given relative to it."""
    draw(tmp_path / "pictures")
    assert (done := lab(*FOLDERS, *SHORT)).returncode == 0, done.stderr
    return tmp_path


VERBS = {
    "test": ["test", "RUN"],
    "report": ["report", "RUN"],
    "export": ["export", "RUN", "format=torch_export"],
    "resume": ["resume", "RUN", "trainer.max_epochs=2"],
    "rerun": ["rerun", "RUN", "dir=again"],
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_works_from_any_folder_on_a_run_that_has_moved(verb: str, trained: Path) -> None:
    """The folder of the data stays where it was, and was given relative to the folder of the command."""
    elsewhere = trained / "else/where"
    elsewhere.mkdir(parents=True)
    (trained / "run").rename(elsewhere / "copy")
    done = warm.lab([word.replace("RUN", "copy") for word in VERBS[verb]], elsewhere, 600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "digest differs" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_the_place_of_moved_data_is_given_with_data_root(verb: str, trained: Path, lab: Command) -> None:
    (trained / "pictures").rename(trained / "moved")
    words = [word.replace("RUN", "run") for word in VERBS[verb]]
    done = lab(*words)
    assert done.returncode == 2 and "the run's data is not in" in done.stderr, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (trained / "again").exists(), done.stderr
    done = lab(*words, "data.root=moved")
    assert done.returncode == 0, done.stdout + done.stderr
    recorded = {"resume": "run", "rerun": "again"}.get(verb)
    if recorded:
        assert Result.load(trained / recorded).config["data"]["root"] == str(trained / "moved")
        (trained / "else").mkdir()
        done = warm.lab(["test", f"../{recorded}"], trained / "else", 600)
        assert done.returncode == 0, done.stdout + done.stderr


def module(root: Path, fallback: str | None = None) -> ImageDataModule:
    source = lambda folder, download: image_folder(folder, download, (1, 8, 8), 0.2)  # noqa: E731
    return ImageDataModule("image_folder", source, str(root), (1, 8, 8), 2, val="none", fallback=fallback)


def test_moved_data_is_found_by_its_digest_in_the_current_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "same")
    draw(tmp_path / "other", 150)
    data = module(tmp_path / "same")
    data.read(download=False)
    assert data.images is not None
    recorded = {"digest": data.images.digest, "fallback": None}
    monkeypatch.setenv("MNIST_LAB_DATA", str(tmp_path / "same"))
    found = module(tmp_path / "gone")
    read_recorded(found, recorded)
    assert found.root == tmp_path / "same" and found.images is not None
    assert in_memory(found.images.train_images).equal(in_memory(data.images.train_images))
    monkeypatch.setenv("MNIST_LAB_DATA", str(tmp_path / "other"))
    with pytest.raises(
        UserError, match=f"is not in {tmp_path}/gone, nor the same in {tmp_path}/other: .* data.root=DIR"
    ) as e:
        read_recorded(module(tmp_path / "gone"), recorded)
    assert "\n" not in str(e.value)


def test_nothing_replaces_the_data_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnist_lab.data import mnist

    def gone() -> ImageDataModule:
        return ImageDataModule("mnist", mnist, str(tmp_path / "gone"), (1, 28, 28), 10, fallback="mnist_5k")

    monkeypatch.setenv("MNIST_LAB_DATA", str(tmp_path))
    monkeypatch.setenv("MNIST_LAB_MIRROR", f"file://{tmp_path}/mirror")
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", [f"file://{tmp_path}/nothing/"])
    with pytest.raises(UserError, match="the run's data is not in"):
        read_recorded(gone(), {"digest": "0" * 64, "fallback": None})
    data = gone()
    read_recorded(data, {"digest": "0" * 64, "fallback": "there was no network"})
    assert data.images is not None and data.images.digest == mnist_5k().digest, "what stood in then does now"
    assert data.fallback_reason == "there was no network"


@pytest.mark.slow
def test_rerun_refuses_other_data(lab: Command, tmp_path: Path) -> None:
    words = ["data=mnist_5k", "model=mlp_784_32", "data.train_size=200", "data.val=none"]
    assert (done := lab(*words, *SHORT)).returncode == 0, done.stderr
    path = tmp_path / "run/config.yaml"
    cfg = OmegaConf.load(path)
    cfg.data.root, cfg.data.fallback = str(tmp_path / "gone"), "mnist_5k"  # as a run on the real ones recorded it
    cfg.data.source._target_, cfg.data.name = "mnist_lab.data.kmnist", "kmnist"
    path.write_text(OmegaConf.to_yaml(cfg))
    (tmp_path / "mirror").mkdir()
    done = lab("rerun", "run", "dir=again", MNIST_LAB_DATA=str(tmp_path), MNIST_LAB_MIRROR=f"file://{tmp_path}/mirror",
               http_proxy="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9")  # fmt: skip
    assert done.returncode == 2 and "the run's data is not in" in done.stderr, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "again").exists()


@pytest.mark.slow
def test_a_trial_of_a_copied_sweep_is_a_run(lab: Command, tmp_path: Path) -> None:
    draw(tmp_path / "pictures")
    words = ["-m", *FOLDERS, *SHORT[:-1], "seed=0,1", "hydra.sweep.dir=sweep"]
    assert (done := lab(*words)).returncode == 0, done.stderr
    (tmp_path / "deep/er").mkdir(parents=True)
    shutil.copytree(tmp_path / "sweep", tmp_path / "deep/er/sweep")
    done = warm.lab(["ensemble", "sweep"], tmp_path / "deep/er", 600)
    assert done.returncode == 0 and "all together" in done.stdout, done.stdout + done.stderr
    (tmp_path / "pictures").rename(tmp_path / "moved")
    done = warm.lab(["ensemble", "sweep", "data.root=../../moved"], tmp_path / "deep/er", 600)
    assert done.returncode == 0 and "digest differs" not in done.stdout, done.stdout + done.stderr
