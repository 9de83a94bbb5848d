"""A user's mistake: one or two lines, exit status 2, no traceback, nothing left behind, torch not even imported."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from subprocess import PIPE

import pytest
from conftest import Command
from hypothesis import given, settings
from hypothesis import strategies as st
from some import some
from warm import Done

from mnist_lab import train
from mnist_lab.__main__ import VERBS, divide
from mnist_lab.composing import compose_config
from mnist_lab.errors import UserError
from mnist_lab.hydra_adapter import Hydra
from mnist_lab.processes import fail

MISTAKES = {
    "model=mlpp": "Did you mean mlp?",
    "data=mnits": "Did you mean mnist?",
    "experiment=d_mlp": "The options of experiment are",
    "optimizer.lrr=1": "Did you mean optimizer.lr?",
    "lr=0.1": "Did you mean optimizer.lr?",
    "modle=mlp": "Did you mean model?",
    "optimizer.lr=0": "a number above 0",
    "optimizer.lr=-0.1": "a number above 0",
    "optimizer.lr=fast": "a number above 0",
    "data.batch_size=0": "a whole number, 1 or more",
    "data.batch_size=many": "a whole number, 1 or more",
    "model.dropout=1": "from 0 to below 1",
    "model.dropout=-0.1": "from 0 to below 1",
    "model.activation=rleu": "Did you mean relu?",
    "model.hidden=[512,x]": "a whole number",
    "trainer.max_epochs=0": "a whole number, 1 or more",
    "trainer.precision=8": "one of 32-true",
    "trainer.precision=16": "Did you mean 16-mixed?",
    "trainer.precision=bf16": "Did you mean bf16-mixed?",
    "seed=-1": "from 0 to 4294967295",
    "data.val=lst": "Did you mean last?",
    "data.val_size=1.5": "a fraction",
    "data=image_folder": "data.root must be given",
    "data=image_folder data.root=/nowhere": "there is no such folder",
    "model=neuron model.digit=10": "classes 0 to 9",
    "data.val=none test_checkpoint=best": "needs validation data",
    "data.val=none callbacks=early_stopping": "watches validation data",
    "data.val=none schedule=plateau": "the schedule watches validation data",
    "schedule=plateau schedule.monitor=val/ac": "Did you mean val/acc?",
    "optimizer=sgd optimizer.nesterov=true": "needs momentum",
    "model=mlp,cnn": "--multirun",
    "model=[mlp": "not understood",
    "-m model=mlp,mlpp": "Did you mean mlp?",
    "-m optimizer.lr=0.1,0": "a number above 0",
    "-m seed=range(3,3)": "empty range",
    "-m optimizer=adam,admw": "Did you mean adamw?",
    "-m seed=0,1 trainer.check_val_every_n_epoch=2 trainer.max_epochs=3": "a sweep judges: trainer.max_epochs=4",
    "loss=mse": "there is no such loss",
    "checkpoint=best": "test_checkpoint=best says which is tested",
    "~schedule": "without schedule is not allowed",
    "callbacks={x:1}": "To add one: +callbacks.NAME=VALUE",
    "+experiment=fast99": "experiment=OPTION replaces",
    "++optimiser.lr=3": "optimiser: nothing reads this. Did you mean optimizer?",
    "++seeds.ordr=3": "seeds.ordr: nothing reads this. Did you mean order?",
    "++checkpoint.evry=3": "Did you mean every?",
    "-m ++sweep.trails=3 seed=0,1": "Did you mean trials?",
    "++hydra.mode=MULTIRUN": "-m makes a command a multirun",
    "epochs=3": "Did you mean trainer.max_epochs?",
    "+epochs=3": "nothing reads this. Did you mean trainer.max_epochs?",
    "data.root=é": """quoted twice: 'data.root="é"'""",
    "name=../../evil": "the name of a folder below outputs/",
    "optimizer.lr='0.003'": "As it stands it is a text: ${oc.decode:...}",
    "model=mlp explore": "the verb comes first, python -m mnist_lab explore",
    "trainer.max_steps=0": "1 or more, or -1",
    "trainer.gradient_clip_val=999999999999999999999": "a number of more than 64 bits",
    "model.hidden=[8,999999999999999999999]": "a number of more than 64 bits",
    "trainer.speed=1": "trainer.speed: there is no such option",
    "~test_checkpoint": "test_checkpoint can't be left out: set it, test_checkpoint=VALUE",
    "~model.dropuot": "model.dropuot: there is no such option. Did you mean model.dropout?",
    "~trainer.strategy": "trainer.strategy can't be left out",
    "~seeds.dropout": "seeds.dropout can't be left out",
    "-m ~sweep.pruner seed=0,1": "sweep.pruner can't be left out",
    "-m ~sweep seed=0,1": "sweep.sampler can't be left out",
    "-m sweep.objective=val/ac seed=0,1": "Did you mean val/acc?",
    "hydra.run.dir=": "a new or an empty folder",
    "++hydra.verbose=null": "Hydra can't do that: assert isinstance(verbose_config",
    "trainer.limit_val_batches=0": "data.val=none",
    "callbacks=early_stopping callbacks.early_stopping.mode=max": "mode=max is wrong for val/loss: it must be min",
    "data.shape=null data._target_=own.Pairs": "add data.shape=[CHANNELS,HEIGHT,WIDTH]",
    "monitor=val/ac": "Did you mean val/acc?",
    "mode=min": "mode=min is wrong for val/acc: it must be max",
    "mode=up": "one of min, max, or null",
    "model._target_=own.Net monitor=val/elbo": "val/elbo: its name doesn't say whether it is to be small or large",
    "-m model._target_=own.Net sweep.objective=val/elbo seed=0,1": "monitor=val/elbo mode=max",
    "optimizer=adam trainer.precision=bf16-mixed trainer.gradient_clip_val=1": "optimizer.fused=false",
    "optimizer=adam trainer.precision=auto trainer.gradient_clip_val=1": "optimizer.fused=false",
    "test_checkpoint=best trainer.check_val_every_n_epoch=9": "is past the last",
    "articles seed=3": "use seeds=",
    "articles seeds=²": "a whole number, 1 or more",
    "--config-path /nowhere": "there is no such folder",
    "tset": "Did you mean test?",
    "--config-dir /nowhere": "there is no such folder",
    "--cfgg job": "unrecognized arguments",
    "hydra.run.dir=/dev/null/run": "/dev/null is a file",
    "test": "which run?",
    "test nowhere": "there is no such folder",
    "resume run=nowhere": "there is no such folder",
    "test run=nowhere": "there is no such folder",
    "predict": "which run?",
    "predict run=nowhere images=a.png": "there is no such folder",
    "predict run=x images=a.png prepare=cut": "one of auto, digit, resize",
    "draw": "which run?",
    "draw run=x port=many": "a whole number from 0 to 65535",
    "articles experiments=e": "there is no such experiment",
    "articles seeds=0": "a whole number, 1 or more",
    "export": "which run?",
    "export run=x format=onx": "Did you mean onnx?",
    "export run=nowhere format=onnx": "there is no such folder",
    "dashboard": "there is no such folder",
    "compare . dir=/dev/null": "/dev/null is a file",
    "explore dir=/dev/null/new": "/dev/null is a file",
    "compare . a=" + 300 * "x": "a=xxx",
    "resume a=" + 300 * "x": "use: python -m mnist_lab resume",
}

# What every command imports is here when the process is forked that does as `python -m mnist_lab` does, and then says
# on stdout whether torch was imported on the way.
PROBE = """
import atexit, json, os, runpy, sys
import mnist_lab.cli, mnist_lab.command

mnist_lab.compose("model=mlp")
assert "torch" not in sys.modules
for line in sys.stdin:
    words, folder, shown = json.loads(line)
    if (process := os.fork()) == 0:
        os.chdir(folder)
        for number, kind in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{shown}.{kind}", os.O_WRONLY), number)
        sys.argv[1:] = words
        atexit.register(lambda: print("torch" if "torch" in sys.modules else "light"))
        runpy.run_module("mnist_lab", run_name="__main__", alter_sys=True)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, Path], Done]]:
    """Types words in a folder."""
    shown = tmp_path_factory.mktemp("shown") / "shown"
    texts = [Path(f"{shown}.{kind}") for kind in ("out", "err")]
    with subprocess.Popen([sys.executable, "-c", PROBE], stdin=PIPE, stdout=PIPE, text=True) as server:
        assert server.stdin is not None and server.stdout is not None

        def answer(words: str, folder: Path) -> Done:
            for text in texts:
                text.write_text("")
            print(json.dumps([words.split(), str(folder), str(shown)]), file=server.stdin, flush=True)
            status = int(server.stdout.readline())  # type: ignore[union-attr]
            return Done(status, *(text.read_text() for text in texts))

        yield answer


FIRST = {answer: words for words, answer in reversed(MISTAKES.items())}
"""For each answer the first command that gets it. The default test run includes only these."""


@pytest.mark.parametrize("words", some(MISTAKES, lambda words: FIRST[MISTAKES[words]] == words))
def test_a_mistake_is_answered_in_one_or_two_lines_and_leaves_nothing(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mnist_lab"])
    with pytest.raises(UserError) as raised:
        verb, rest = divide(words.split())
        getattr(import_module(VERBS.get(verb, "mnist_lab.cli")), verb)(rest)
    assert MISTAKES[words] in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


LONG = 300 * "x"
TYPED = {
    words: MISTAKES[words]
    for words in ("model=mlpp", "optimizer.lr=0", "-m seed=range(3,3)", "tset", "--cfgg job", "test nowhere", "predict")
} | {
    words + LONG: "File name too long"
    for words in ("resume ", "rerun ", "compare ", "ensemble ", "report run=", "hydra.run.dir=")
}


@pytest.mark.parametrize("words", TYPED)
def test_a_mistake_ends_the_command_with_status_2_before_torch_is_imported(
    words: str, probe: Callable[[str, Path], Done], tmp_path: Path
) -> None:
    done = probe(words, tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout.strip() == "light" and TYPED[words] in done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", ["--help", "test --help", "--cfg job", "--info defaults", "--cfg job --resolve"])
def test_help_and_cfg_are_answered_without_torch(
    words: str, probe: Callable[[str, Path], Done], tmp_path: Path
) -> None:
    done = probe(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "light"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_help_lists_verbs_groups_and_examples(lab: Command) -> None:
    shown = lab("--help").stdout
    for line in (
        "train ",
        "test ",
        "articles ",
        "model: cnn, conv_stack, mlp, mlp_1000, mlp_512, mlp_784_32, neuron",
        "optimizer: adam",
    ):
        assert line in shown
    assert shown.count("  python -m mnist_lab") == 3


NEEDS_TORCH = {
    "data=mnist_5k trainer=gpu": "use trainer=cpu",
    "data=mnist_5k data.val=last data.val_size=4000": "at least one must be left",
    "data=mnist_5k data.val=random data.train_size=3501": "there are 3,500 images after 500",
    "data=mnist_5k model.input_shape=[3,32,32]": "doesn't take images of the shape [1, 28, 28]",
    "data=mnist_5k model=cnn model.kernel_size=29": "Kernel size",
    "data=mnist_5k model=conv_stack data.val=none data.batch_size=3999": "leaves one image for the last of 4,000",
    "data=mnist_5k model=conv_stack data.batch_size=3999 data.val=none trainer.limit_train_batches=7": "leaves one",
    "data=mnist_5k data.shape=[1,32,32]": "images of the shape [1, 28, 28]",
    "data=mnist_5k model.num_classes=5": "[2, 10] is needed",
    "data=mnist_5k +optimizer.speed=1": "unexpected keyword argument 'speed'",
    "data=mnist_5k data.one_vs_rest=3": "add model.num_classes=2",
    "data=mnist_5k +callbacks.x=1": "callbacks.x is no Lightning callback",
    "data=mnist_5k +callbacks.x._target_=foo.Bar": "callbacks.x: foo.Bar can't be made: Error loading 'foo.Bar'",
    "data=mnist_5k +callbacks.x._target_=lightning.pytorch.callbacks.EarlyStopping": (
        "callbacks.x: lightning.pytorch.callbacks.EarlyStopping can't be made: EarlyStopping.__init__() missing 1 "
        "required positional argument: 'monitor'"
    ),
    "data=mnist_5k loss._target_=torch.nn.MSELoss ~loss.label_smoothing": "can't be used on logits and labels",
    "data=mnist_5k data.val=random trainer.limit_val_batches=0.1": "limit_val_batches",
    "data=mnist_5k model._target_=nowhere.Net": "No module named 'nowhere'",
}


@pytest.mark.parametrize("words", some(NEEDS_TORCH, 8))
def test_a_mistake_that_only_the_libraries_can_see_is_one_line_and_leaves_nothing(words: str, tmp_path: Path) -> None:
    if "gpu" in words:
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    with pytest.raises(UserError) as raised:
        train(*words.split(), run_dir=tmp_path / "run")
    assert NEEDS_TORCH[words] in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_folder_that_has_files_is_refused_and_keeps_them(lab: Command, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.yaml").write_text("keep: me")
    for words in (["hydra.run.dir=mine"], ["hydra.run.dir=."], ["-m", "hydra.sweep.dir=mine", "seed=0,1"]):
        done = lab(*words, "data=mnist_5k")
        assert done.returncode == 2
        assert "a run needs a new or an empty folder of its own" in done.stderr
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["config.yaml", "mine"]


@pytest.mark.slow
def test_a_failed_command_removes_nothing_that_it_did_not_make(lab: Command, tmp_path: Path) -> None:
    (tmp_path / "outputs/other").mkdir(parents=True)
    assert lab("data=mnist_5k", "model.num_classes=5").returncode == 2
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["other", "outputs"]


@pytest.mark.slow
@settings(max_examples=40)
@given(
    key=st.sampled_from(
        ["model", "optimizer.lr", "data.batch_size", "seed", "+x", "~trainer", "trainer.devices", "", "a.b"]
    ),
    value=st.text(max_size=12),
)
def test_no_override_ends_in_a_traceback(key: str, value: str) -> None:
    try:
        compose_config([f"{key}={value}"])
    except UserError as error:
        assert str(error)


def test_a_key_of_ones_own_is_allowed_where_an_option_refers_to_it() -> None:
    cfg = compose_config(["+width=64", "model.hidden=${width}"])
    assert cfg.model.hidden == 64


@pytest.mark.parametrize(
    ("lines", "said"),
    some(
        [
            ("optimiser: {lr: 0.5}", "optimiser: nothing reads this. Did you mean optimizer?"),
            ("test_chekpoint: best", "Did you mean test_checkpoint?"),
            ("seeds: {ordr: 3}", "seeds.ordr: nothing reads this."),
            ("hydra: {mode: MULTIRUN}", "-m makes a command a multirun"),
            (
                "notes: {by: me}\nrate: 0.5\nseeds: {mine: 3}\noptimizer: {lr: '${rate}', mine: '${seeds.mine}'}",
                "lr: 0.5",
            ),
        ],
        2,
    ),
)
def test_a_mistake_in_a_config_file_of_ones_own_is_told_as_well(
    lines: str, said: str, lab: Command, tmp_path: Path
) -> None:
    (tmp_path / "my_conf/experiment").mkdir(parents=True)
    (tmp_path / "my_conf/experiment/mine.yaml").write_text(f"# @package _global_\n{lines}\n")
    done = lab("--config-dir", "my_conf", "experiment=mine", "--cfg", "job", "--resolve")
    assert said in (done.stdout if said == "lr: 0.5" else done.stderr), done.stderr


def test_an_error_that_comes_of_ctrl_c_ends_the_command_as_ctrl_c_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut_off(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:  # as OmegaConf, which puts back a flag of a config that is not whole
            raise AttributeError("'NoneType' object has no attribute '_invalidate_flags_cache'")

    monkeypatch.setattr(Hydra, "compose_config", cut_off)
    with pytest.raises(UserError) as raised:
        compose_config(["model=mlp"])
    with pytest.raises(SystemExit) as end:
        fail(raised.value)
    assert end.value.code == 130 and capsys.readouterr().err == ""


def test_hydra_full_error_shows_the_traceback_of_a_mistake(lab: Command) -> None:
    done = lab("optimizer.lr=0", HYDRA_FULL_ERROR="1")
    assert "Traceback" in done.stderr and "a number above 0" in done.stderr


def test_tab_completion_offers_groups_and_keys(lab: Command) -> None:
    line = "mnist_lab model=mlp_"
    shown = lab("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line))).stdout.split()
    assert shown == ["model=mlp_1000", "model=mlp_512", "model=mlp_784_32"]
    assert "complete -o nospace" in lab("-sc", "install=bash").stdout
