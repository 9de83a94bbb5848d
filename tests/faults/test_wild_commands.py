"""Whatever is typed, half right or wild: an answer in plain words, and nothing half-written is left behind."""

import os
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from conftest import Command, Tally
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from warm import Done, lab, start

from mnist_lab.__main__ import VERBS
from mnist_lab.composing import compose_config
from mnist_lab.keys import keys_of

SMALL = ["data=mnist_5k", "data.train_size=200", "trainer.max_epochs=1", "trainer.accelerator=cpu", "report=false"]
SMALL += ["model=mlp", "model.hidden=[8]"]
GROUPS = ["model", "data", "augment", "optimizer", "schedule", "callbacks", "trainer", "logger", "sweep", "space"]
KEYS = [
    *GROUPS, *GROUPS, "experiment", "hydra/launcher", "hydra/sweeper", "hydra.run.dir", "hydra.sweep.dir",
    "hydra.sweep.subdir", "hydra.job.chdir", "hydra.job.name", "hydra.mode", "hydra.verbose", "hydra.output_subdir",
    *(key for key in keys_of(compose_config([*SMALL, "callbacks=dashboard", "augment=full"])) if "hydra" not in key),
    "callbacks.early_stopping.patience", "schedule.warmup", "optimizer.momentum", "trainer.max_steps", "model.filters",
]  # fmt: skip
VALUES = [
    *["", "null", "true", "-1", "0", "1", "2", "3", "0.5", "1e-3", "1e400", "nan", "inf", "-inf", "1e30", "9" * 21],
    *["[]", "[1,2]", "[1,32,32]", "{}", "{a: 1}", "[1,[2]]", "[[]]", "[,]", "{", "}", "[", "]", "(", "1,2", "a,b"],
    *["${seed}", "${x}", "${", "${}", "${oc.env:NOPE}", "${now:%Y}", "${hydra:job.num}", "${data}", "${.x}", "$"],
    *["'", '"', "''", "'a b'", "a b", "é", "数字", "\U0001f600", "\\", "\\'", "\n", "\t", "a=b", "=", "???", "*", "%s"],
    *["choice(1,2)", "range(1,3)", "interval(0,1)", "glob(*)", "tag(log,interval(1,2))", "range(3,1)", "sort(2,1)"],
    *["0x10", "1_000", "1:30", "yes", "~", "torch.nn.ReLU", "mlp", "cnn", "neuron", "none", "adam", "sgd", "cosine"],
    *["mnist_5k", "affine", "full", "early_stopping", "dashboard", "tpe", "random", "median", "mnist_lab.models.MLP"],
    *[
        "x" * 300,
        "x" * 3000,
        "#",
        "@",
        ":",
        "-",
        "--",
        "a.b",
        ".",
        "1.",
        "+1",
        "last",
        "best",
        "test",
        "ddp",
        "workers",
    ],
    *["5 steps", "1 minute", "val/acc", "[val/acc,parameters]", "!!python/object/apply:os.getcwd []", "1e-400", "-0.0"],
]
WORDS = [
    "run=run",
    "run=nowhere",
    "run=",
    "run",
    "nowhere",
    ".",
    "images=a.png",
    "images=",
    "metric=test/acc",
    "show=terminal",
]
WORDS += ["checkpoint=best", "format=onnx", "format=x", "index=1", "index=-1", "seeds=0", "experiments=x", "rounds=0"]
WORDS += ["dir=new", "dir=run", "port=x", "open=false", "networks=x", "--json", "--help", "-h", "save=run", "save=s"]

ENDLESS = {"articles": ["experiments=x"], "bench": ["rounds=x"], "dashboard": ["port=x"], "draw": ["port=x"]}
"""What keeps a verb from working for minutes, or until Ctrl-C, where all else is right by chance."""

plain = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=8).filter(
    lambda text: not text.startswith("..")
)
values = st.sampled_from(VALUES) | plain


@st.composite
def misspelt(draw: st.DrawFn) -> str:
    key, place = draw(st.sampled_from(KEYS)), draw(st.integers(0, 30))
    place = min(place, len(key))
    how = draw(st.integers(0, 4))
    return [
        key[:place] + key[place + 1 :],
        key[:place] + draw(plain) + key[place:],
        key.upper(),
        key.rpartition(".")[2],
        f"{key}.{draw(plain)}",
    ][how]


@st.composite
def overrides(draw: st.DrawFn) -> str:
    key = draw(st.sampled_from(KEYS) | st.sampled_from(KEYS) | misspelt())
    how = draw(st.integers(0, 15))
    mark = {0: "+", 1: "++", 2: "~"}.get(how, "")
    if how == 3:
        return key
    if how == 4:
        return draw(values)
    if how == 5:
        return f"~{key}"
    if how == 6:
        return f"{key}@{draw(values)}={draw(values)}"
    return f"{mark}{key}={draw(values)}"


@st.composite
def commands(draw: st.DrawFn) -> list[str]:
    how = draw(st.integers(0, 19))
    if how < 4:
        own = st.sampled_from(WORDS) | overrides()
        verb = draw(st.sampled_from(sorted(VERBS)))
        return [verb, *draw(st.lists(own, max_size=3)), *ENDLESS.get(verb, [])]
    more = draw(st.lists(overrides(), min_size=1, max_size=3))
    if how < 7:
        return ["-m", *SMALL, "data.val=random", *more]
    if how == 7:
        flag = draw(
            st.sampled_from(["--cfg", "--info", "--help", "--package", "--config-name", "-sc", "--resolve", "-x"])
        )
        return [*SMALL, flag, *more]
    return [*SMALL, *more]


def answers(words: list[str], run: Path) -> str | None:
    """Types a command in a folder with a finished run in it. What is wrong with the answer, if anything."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        if words[0] in VERBS:
            shutil.copytree(run, folder / "run")
        before = {path.name for path in folder.iterdir()}
        done = lab(words, folder, seconds=40)
        new = [path for path in folder.iterdir() if path.name not in before]
        return fault_of(done, words, new)


def fault_of(done: Done, words: list[str], new: list[Path]) -> str | None:
    shown = done.stdout + done.stderr
    if done.returncode == -9:
        return None  # it is still at work
    if "Traceback" in shown or done.returncode not in (0, 1, 2):
        return f"status {done.returncode}: {shown[-3000:]}"
    if done.returncode == 0:
        return None
    if not shown.strip() or (done.returncode == 2 and "error: " not in done.stderr):
        return f"status {done.returncode}, and no word why: {shown[-300:]}"
    begun = [path for folder in new for name in ("history.csv", "sweep.json") for path in folder.rglob(name)]
    if new and not begun:
        return f"left {[str(path) for folder in new for path in folder.rglob('*')][:9]}: {shown[-500:]}"
    return None


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    done = lab([*SMALL, "hydra.run.dir=run"], folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("words", ["compare run dir=.", "--help", "test run=run", "predict run=run images=a.png"])
def test_a_closed_pipe_ends_the_command_quietly(words: str, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    Image.linear_gradient("L").save(tmp_path / "a.png")
    out, err = (tmp_path / f"shown.{kind}" for kind in ("out", "err"))
    os.mkfifo(out)
    reader = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
    process = start(words.split(), tmp_path, out.with_suffix(""))
    while not err.exists():  # which is opened after the pipe, and before anything is shown
        time.sleep(0.001)
    os.close(reader)
    process.join(300)
    assert (process.exitcode, err.read_text()) == (1, "")


@pytest.mark.parametrize(
    "words",
    [
        "resume ~nosuch/x",
        "rerun ~nosuch/x",
        "report run=~nosuch/x",
        "compare ~nosuch/x",
        "ensemble ~nosuch/x",
        "test run=~nosuch/x",
        "export run=~nosuch/x",
        "predict run=run images=~nosuch/x",
        "data=image_folder data.root=~nosuch/x model=mlp",
    ],
)
def test_a_home_folder_of_an_unknown_user_is_an_error_in_one_line(words: str, run: Path) -> None:
    assert (fault := answers(words.split(), run)) is None, fault


ANYHOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


@pytest.mark.slow
@seed(0)
@settings(max_examples=100, database=None, suppress_health_check=ANYHOW)
@given(words=commands())
def test_a_hundred_random_commands_end_without_a_traceback(words: list[str], run: Path) -> None:
    assert (fault := answers(words, run)) is None, fault


@pytest.mark.faults
def test_many_random_commands_end_without_a_traceback(run: Path, tally: Tally) -> None:
    @seed(tally.seed)
    @settings(max_examples=100 * tally.size, database=None, suppress_health_check=ANYHOW)
    @given(words=commands())
    def many(words: list[str]) -> None:
        assert (fault := answers(words, run)) is None, fault
        tally.count("commands typed")

    many()


@pytest.mark.slow
def test_output_in_ascii_ends_without_a_traceback(lab: Command, tmp_path: Path) -> None:
    done = lab("data=mnist_5k", "trainer=debug", "hydra.run.dir=run", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "gap, train \\u2212 test" in done.stdout, done.stderr
    assert (tmp_path / "run/report.html").exists()
