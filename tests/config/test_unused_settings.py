"""A setting has an effect, or is refused in one line, at any depth."""

from pathlib import Path

import pytest
from conftest import Command
from some import some

import mnist_lab
from mnist_lab.command import check_kind
from mnist_lab.composing import compose_config
from mnist_lab.errors import UserError


@pytest.mark.parametrize(
    ("words", "said"),
    some(
        [
            ("+measures.f1._target_=torchmetrics.F1Score", r"\+measures.f1._target_: nothing reads this"),
            ("+measures={f1:{_target_:torchmetrics.F1Score}}", r"\+measures: nothing reads this"),
            ("+x.sweep.sampler=tpe", r"\+x.sweep.sampler: nothing reads this. Did you mean sweep.sampler\?"),
            ("++x.optimizer.lr=1", r"Did you mean optimizer.lr\?"),
            ("+x=1", r"\+x: nothing reads this"),
            ("+x.y.z=1", r"\+x.y.z: nothing reads this"),
            ("+own.b=1 +own.c=${own.b}", r"\+own.c: nothing reads this"),
            ("+checkpoint.a.b=1", "checkpoint.a: nothing reads this"),
            ("+trainer.limit_predict_batches=1", "doesn't predict"),
            ("+trainer.use_distributed_sampler=true", "without a sampler"),
            ("+trainer.model_registry=a/b", "uploads checkpoints"),
            ("+logger.csv.version=one", r"logger.csv names no class of a logger: \+logger.csv._target_=CLASS"),
            ("logger=none +logger.csv=true", "logger.csv names no class of a logger"),
            ("logger=${oc.select:seed}", "logger=.*: not understood"),
            ("hydra.mode=${oc.env:HOME}", "hydra.mode: "),
            ("hydra.run=${seed}", "hydra.run is a section"),
            ("hydra.launcher=x", "hydra/launcher=OPTION"),
            ("hydra.output_subdir=", "or null"),
            ("sweep.space=on", "sweep.space=on is not allowed"),
            ("sweep.objective=[]", "sweep.objective=.* is not allowed"),
            ("sweep.direction=[]", "sweep.direction=.* is not allowed"),
        ],
        9,
    ),
)
def test_a_setting_without_effect_is_refused(words: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        compose_config(["model=mlp", *words.split(" ")])
    assert len(str(raised.value).splitlines()) <= 2


@pytest.mark.parametrize(
    "words",
    [
        ["+width=8", "model.hidden=[${width}]"],
        ["+my.width=8", "model.hidden=${my.width}"],
        ["+trainer.log_every_n_steps=1"],
        ["+trainer.use_distributed_sampler=false", "+trainer.enable_checkpointing=true"],
    ],
)
def test_a_setting_with_an_effect_or_lightnings_default_is_allowed(words: list[str]) -> None:
    compose_config(["model=mlp", *words])


@pytest.mark.parametrize("word", ["sweep.dry_run=true", "sweep=tpe", "space=mlp", "+sweep.x=1", "~sweep.trials",
                                  "hydra.sweep.dir=x", "hydra/launcher=basic", "hydra.sweeper.n=3"])  # fmt: skip
def test_sweep_options_are_refused_without_m(word: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"only a multirun reads this\. Add -m"):
        check_kind(["seed=0", word], multirun=False)
    check_kind(["seed=0", word], multirun=True)
    with pytest.raises(UserError, match="only a multirun reads this"):
        mnist_lab.train(word, run_dir=tmp_path / "run")


def test_the_folder_of_a_single_run_is_refused_with_m() -> None:
    with pytest.raises(UserError, match=r"hydra\.sweep\.dir"):
        check_kind(["hydra.run.dir=x"], multirun=True)
    check_kind(["hydra.run.dir=x", "name=sweep", "data.root=space"], multirun=False)


def test_a_dry_run_without_m_trains_nothing(lab: Command, tmp_path: Path) -> None:
    done = lab("model=mlp", "data=mnist_5k", "sweep.dry_run=true")
    assert done.returncode == 2 and done.stderr.splitlines() == [
        "error: sweep.dry_run=true: only a multirun reads this. Add -m"
    ]
    assert list(tmp_path.iterdir()) == []
    assert lab("sweep=tpe", "--cfg", "job").returncode == 0, "a question is answered"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("measures: {f1: {_target_: torchmetrics.F1Score}}", "measures: nothing reads this, nor the _target_ in it"),
        ("mine: {optimizer: {lr: 0.5}}", "nor the optimizer in it"),
        ("mine: [{model: {hidden: 3}}]", "nor the model in it"),
        ("notes: {by: me, model: ours, loss: 0.3}", None),
        ("parts: {optimizer: {lr: 0.5}}\noptimizer: {lr: '${parts.optimizer.lr}'}", None),
        ("sweep: {trials: 3}", None),
    ],
)
def test_a_section_in_a_file_that_nothing_reads_is_refused(
    lines: str, said: str | None, lab: Command, tmp_path: Path
) -> None:
    (tmp_path / "my_conf/experiment").mkdir(parents=True)
    (tmp_path / "my_conf/experiment/mine.yaml").write_text(f"# @package _global_\n{lines}\n")
    done = lab("--config-dir", "my_conf", "experiment=mine", "--cfg", "job")
    assert (done.returncode, said is None or said in done.stderr) == (0 if said is None else 2, True), done.stderr


def test_a_group_of_ones_own_without_its_package_line_is_refused(lab: Command, tmp_path: Path) -> None:
    (tmp_path / "my_conf/recipe").mkdir(parents=True)
    (tmp_path / "my_conf/recipe/fast.yaml").write_text("optimizer: {lr: 0.5}\n")
    done = lab("--config-dir", "my_conf", "+recipe=fast", "--cfg", "job")
    assert done.returncode == 2 and "+recipe: nothing reads this" in done.stderr, done.stderr
