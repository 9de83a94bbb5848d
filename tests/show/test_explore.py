"""`explore` prints what a data set is made of, and shows its images: in files, and in the terminal itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from conftest import OFFLINE, Command, in_memory
from PIL import Image
from rich.text import Text

from mnist_lab.data import ImageDataModule, ImageSet, mnist_5k
from mnist_lab.show.explore import SHADES, Parts, _one, explore

INDEX = 7


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return mnist_5k(Path(), False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explore")
    done = warm.lab(["explore", "data=mnist_5k", f"index={INDEX}", "show=terminal"], path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (path / "stdout").write_text(done.stdout)
    return path


def rows(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "stdout").read_text().splitlines()]


@pytest.mark.slow
def test_explore_shows_the_arrays_before_and_after_preparation(folder: Path) -> None:
    shown = rows(folder)
    for line in (
        "training images (4000, 1, 28, 28) uint8 0 255",
        "training labels (4000,) int64 0 9",
        "test images (1000, 1, 28, 28) uint8 0 255",
        "test labels (1000,) int64 0 9",
        "training images (4000, 784) float32 0 1",
        "training labels (4000, 10) float32 0 1",
        "test images (1000, 784) float32 0 1",
        "test labels (1000, 10) float32 0 1",
    ):
        assert line.split() in shown, line


def test_explore_counts_the_images_of_each_class(folder: Path) -> None:
    assert [[str(k), str(k), "400", "100"] for k in range(10)] == [
        row for row in rows(folder) if row[2:] == ["400", "100"]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["index=1234", "data.one_vs_rest=5"]])
def test_the_one_hot_label_is_that_of_the_shown_image(
    words: list[str], images: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    explore(["data=mnist_5k", f"dir={tmp_path}", *words])
    index = int(words[0].partition("=")[2]) if words else 0
    label = int(images.train_labels[index])
    if "data.one_vs_rest=5" in words:
        one_hot = ["0", "1"] if label == 5 else ["1", "0"]
    else:
        one_hot = ["1" if k == label else "0" for k in range(10)]
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "one-hot: " in line)
    assert line.endswith(f"label {one_hot.index('1')}, one-hot: [{' '.join(one_hot)}]")
    assert (tmp_path / f"image-{index}.png").exists()


def test_explore_shows_the_range_after_standard_scaling(images: ImageSet) -> None:
    data = ImageDataModule(
        "mnist_5k", lambda root, download: images, ".", (1, 28, 28), 10, val_size=500, scale="standard"
    )
    data.setup()
    scaled = (in_memory(images.train_images).float() - data.shift) / data.divisor
    assert Parts(data).scaled_range(in_memory(images.train_images)) == (float(scaled.min()), float(scaled.max()))


def test_the_pictures_are_there_and_the_digit_is_dark_on_white(folder: Path, images: ImageSet) -> None:
    pictures = folder / "outputs/explore/mnist_5k"
    names = {"grid", "classes", "means", f"image-{INDEX}", f"image-{INDEX}-values"}
    assert {path.stem for path in pictures.glob("*.png")} == names
    assert all(f"{name}.png" in (folder / "stdout").read_text() for name in names)

    shown = 255 - np.asarray(Image.open(pictures / f"image-{INDEX}.png").convert("L")).astype(float)[80:]  # no title
    digit = in_memory(images.train_images)[INDEX, 0].numpy().astype(float)
    cut = [array[np.ix_(array.max(1) > 60, array.max(0) > 60)] for array in (shown, digit)]
    small = Image.fromarray(cut[0]).resize(cut[1].shape[::-1], Image.Resampling.BOX)
    assert np.corrcoef(np.asarray(small).ravel(), cut[1].ravel())[0, 1] > 0.97


def test_each_pixel_is_labelled_with_its_value(images: ImageSet) -> None:
    data = ImageDataModule("mnist_5k", lambda root, download: images, ".", (1, 28, 28), 10, val_size=500)
    data.setup()
    (ax,) = _one(Parts(data), INDEX, values=True).axes
    label = int(images.train_labels[INDEX])
    assert ax.get_title() == f"Training data, index: {INDEX}, Label: {label}"
    values = [int(text.get_text()) for text in ax.texts]
    assert values == in_memory(images.train_images)[INDEX].flatten().tolist()


def test_without_colours_the_terminal_shows_the_digit_in_characters(folder: Path, images: ImageSet) -> None:
    lines = (folder / "stdout").read_text().splitlines()
    label = int(images.train_labels[INDEX])
    first = lines.index(f"Training data, index: {INDEX}, Label: {label}") + 1
    for line, values in zip(lines[first : first + 28], in_memory(images.train_images)[INDEX, 0].tolist(), strict=True):
        assert line.ljust(56)[::2] == line.ljust(56)[1::2] == "".join(SHADES[v * 9 // 255] for v in values)


@pytest.mark.slow
def test_in_colour_a_character_holds_two_pixels(lab: Command, images: ImageSet) -> None:
    done = lab("explore", "data=mnist_5k", f"index={INDEX}", "show=terminal", FORCE_COLOR="1", COLORTERM="truecolor")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "▀" in line]
    grey = 255 - in_memory(images.train_images)[INDEX, 0].int()
    assert len(lines) == 14
    for n, line in enumerate(lines):
        text = Text.from_ansi(line)
        assert text.plain == "▀" * 28
        for x in range(28):
            style = next(span.style for span in text.spans if span.start <= x < span.end)
            assert not isinstance(style, str) and style.color and style.bgcolor
            assert set(style.color.get_truecolor()) == {int(grey[2 * n, x])}
            assert set(style.bgcolor.get_truecolor()) == {int(grey[2 * n + 1, x])}


@pytest.mark.slow
def test_colours_and_names_of_classes_are_those_of_the_data(lab: Command, tmp_path: Path) -> None:
    for name, colour in (("$red$", (200, 30, 10)), ("sky blue", (20, 40, 220))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for n in range(12):
            Image.new("RGB", (40, 30), colour).save(tmp_path / "photos" / name / f"{n}.png")
    words = ("data=image_folder", "data.root=photos", "data.shape=[3,8,8]", "data.val_size=2", "dir=here")
    done = lab("explore", *words)
    assert done.returncode == 0, done.stderr
    assert "sky blue" in done.stdout and "192)" in done.stdout
    means = np.asarray(Image.open(tmp_path / "here/means.png").convert("RGB")).reshape(-1, 3).tolist()
    assert [200, 30, 10] in means and [20, 40, 220] in means


@pytest.mark.slow
def test_names_in_brackets_are_shown_as_they_are(lab: Command, tmp_path: Path) -> None:
    for n in range(24):
        folder = tmp_path / "photos[new]" / ("[cat]", "[dog]")[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 10 * n).save(folder / f"{n}.png")
    words = ["data=image_folder", "data.root='photos[new]'", "data.shape=[1,8,8]", "data.val=none"]
    done = lab("explore", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("photos[new]\n") and "[cat]" in done.stdout and "[dog]" in done.stdout
    done = lab(*words, "trainer.max_epochs=1", "report=false", "model=mlp_784_32", "name='[/a]'", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    shown = (tmp_path / "run/run.log").read_text()
    for text in (done.stdout, shown):
        assert "images of photos[new] " in text and "\n[/a]" in text


@pytest.mark.slow
def test_explore_warns_of_replaced_data(lab: Command, tmp_path: Path) -> None:
    done = lab("explore", "data=mnist", MNIST_LAB_DATA=str(tmp_path / "data"), **OFFLINE)
    assert done.returncode == 0, done.stderr
    assert "NOT MNIST: mnist_5k stands in for it" in done.stdout
    assert (tmp_path / "outputs/explore/mnist_5k/grid.png").exists()


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("data=mnst", "there is no such data. Did you mean mnist?"),
        ("data.rot=x", "there is no such option"),
        ("index=-1", "must be a whole number"),
        ("index=4000", "mnist_5k has the training images 0 to 3,999"),
        ("show=screen", "must be one of files, terminal"),
        ("model=cnn", "explore is about data alone"),
        ("data.train_size=100", "explore shows the whole set"),
        ("here", "not understood"),
    ],
)
def test_a_mistake_gets_one_clear_answer_and_leaves_nothing(
    word: str, answer: str, lab: Command, tmp_path: Path
) -> None:
    done = lab("explore", "data=mnist_5k", word)
    assert done.returncode == 2
    assert answer in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_seed_chooses_the_images_of_the_grid(images: ImageSet) -> None:
    from mnist_lab.show.explore import _figures

    data = ImageDataModule("mnist_5k", lambda root, download: images, ".", (1, 28, 28), 10, val_size=500)
    data.setup()
    pictures = [np.asarray(_figures(Parts(data), 0, seed)["grid"].axes[0].images[0].get_array()) for seed in (0, 0, 1)]
    assert np.array_equal(pictures[0], pictures[1], equal_nan=True)
    assert not np.array_equal(pictures[0], pictures[2], equal_nan=True)
    first = torch.randperm(4000, generator=torch.Generator().manual_seed(0))[0]
    assert np.array_equal(pictures[0][:28, :28], in_memory(images.train_images)[first, 0].numpy())
