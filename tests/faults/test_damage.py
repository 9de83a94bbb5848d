"""Bits that flipped, files cut short, pages of zeros: the right numbers are found, or a line says what is damaged."""

import random
import re
import shutil
from pathlib import Path

import pytest
from conftest import Tally, outcome
from PIL import Image
from recorded import timeless
from warm import Done, lab

from mnist_lab.result import Result

RUN = ["data=mnist_5k", "data.train_size=500", "data.val=random", "trainer.accelerator=cpu", "trainer.max_epochs=3"]
RUN += ["model=mlp", "model.hidden=[8]", "report=false"]
VERBS = {
    "resume": "resume run",
    "resume longer": "resume run trainer.max_epochs=4",
    "test": "test run=run",
    "test best": "test run=run checkpoint=best",
    "predict": "predict run=run images=four.png",
    "compare": "compare run metric=val/loss",
    "report": "report run=run",
    "rerun": "rerun run dir=new",
    "sweep": "resume sweep",
    "sweep longer": "resume sweep sweep.trials=2",
    "compare sweep": "compare sweep",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, the same stopped before its end, a sweep, and a picture; and what each verb finds in them."""
    folder = tmp_path_factory.mktemp("whole")
    for words in ([*RUN, "hydra.run.dir=run"], ["-m", *RUN, "seed=0,1", "hydra.sweep.dir=sweep"]):
        done = lab(words, folder)
        assert done.returncode == 0, done.stderr
    shutil.copytree(folder / "run", folder / "longer")
    done = lab(["resume", "longer", "trainer.max_epochs=4"], folder)
    assert done.returncode == 0, done.stderr
    Image.linear_gradient("L").save(folder / "four.png")
    return folder


def damage(path: Path, chance: random.Random) -> str:
    """Damages a file, and says how."""
    content = bytearray(path.read_bytes())
    how = chance.choice(["bit", "bit", "bytes", "zeros", "cut", "empty"])
    place = chance.randrange(len(content))
    if how == "bit":
        content[place] ^= 1 << chance.randrange(8)
    elif how == "bytes":
        for _ in range(10):
            content[chance.randrange(len(content))] = chance.randrange(256)
    elif how == "zeros":
        content[place : place + 4096] = bytes(len(content[place : place + 4096]))
    else:
        del content[place if how == "cut" else 0 :]
    path.write_bytes(content)
    return f"{path.parent.name}/{path.name}: {how} at {place}"


def numbers(verb: str, folder: Path, done: Done) -> object:
    """What a verb has found."""
    if verb.startswith("resume"):
        return outcome(folder / "run")
    if verb == "report":
        return re.findall(r"<b>([^<]*)</b><span>", (folder / "run/report.html").read_text())[:4]
    if verb == "rerun":
        return "reproduced: " in done.stdout
    if verb.startswith("sweep"):
        # The checkpoints of finished trials are not read, so that damage to them is not noticed.
        found = [Result.load(folder / "sweep" / number) for number in "01"]
        return [(result.test, timeless(result.history)) for result in found]
    return [line for line in done.stdout.splitlines() if re.search(r"\d", line) and "damaged" not in line]


def expected(verb: str, whole: Path, known: dict[str, object], tmp_path: Path) -> object:
    if verb == "resume longer":
        return outcome(whole / "longer")
    if verb not in known:
        folder = copied(whole, tmp_path / "undamaged", verb)
        known[verb] = numbers(verb, folder, lab(VERBS[verb].split(), folder))
        shutil.rmtree(folder)
    return known[verb]


def copied(whole: Path, folder: Path, verb: str) -> Path:
    shutil.copytree(
        whole, folder, ignore=shutil.ignore_patterns("longer", "figures", "sweep" if "sweep" not in verb else "")
    )
    if verb == "resume":
        (folder / "run/result.json").unlink()  # stopped at the last moment
        if (folder / "run/checkpoints/last.ckpt").exists():  # or an epoch before
            (folder / "run/checkpoints/previous.ckpt").replace(folder / "run/checkpoints/last.ckpt")
    return folder


def damaged(whole: Path, tmp_path: Path, chance: random.Random, known: dict[str, object]) -> bool:
    """Damages a file, asks a verb, and looks at its answer. Whether it found the right numbers in spite of it."""
    verb = chance.choice(list(VERBS))
    right = expected(verb, whole, known, tmp_path)
    folder = copied(whole, tmp_path / "damaged", verb)
    try:
        own = folder / ("sweep" if "sweep" in verb else "run")
        files = [path for path in sorted(own.rglob("*")) if path.is_file() and path.stat().st_size and worth(path)]
        what = f"{VERBS[verb]}, {damage(chance.choice(files), chance)}"
        done = lab(VERBS[verb].split(), folder)
        assert "Traceback" not in done.stdout + done.stderr, (what, done)
        if re.search("^left out: .* is damaged", done.stderr, re.M):  # one trial of several
            assert done.returncode in (0, 2), (what, done)
            return False
        if done.returncode == 0:
            assert numbers(verb, folder, done) == right, (what, done)
            return True
        assert done.returncode in (1, 2), (what, done)
        said = "error: " in done.stderr or "NOT reproduced" in done.stdout or "failed" in done.stdout
        assert said and len(done.stderr.splitlines()) <= 4, (what, done)
        return False
    finally:
        shutil.rmtree(folder)


def worth(path: Path) -> bool:
    return path.suffix in (".ckpt", ".yaml", ".json", ".csv", ".journal") or "events" in path.name


@pytest.mark.slow
def test_a_damaged_file_is_noticed_or_harmless(whole: Path, tmp_path: Path) -> None:
    chance, known = random.Random(1), {}  # type: ignore[var-annotated]
    for _ in range(10):
        damaged(whole, tmp_path, chance, known)


@pytest.mark.faults
def test_many_damaged_files_are_noticed_or_harmless(whole: Path, tmp_path: Path, tally: Tally) -> None:
    chance, known = random.Random(tally.seed), {}  # type: ignore[var-annotated]
    for _ in range(10 * tally.size):
        right = damaged(whole, tmp_path, chance, known)
        tally.count("files damaged: the right numbers all the same" if right else "files damaged: told in a line")
