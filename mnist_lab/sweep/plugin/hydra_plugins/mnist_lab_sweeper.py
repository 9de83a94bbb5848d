"""The sweeper, which Hydra calls for `-m`: it plans trials, and has Hydra's launcher run them until none is left.

Hydra instantiates sweepers only from the namespace package `hydra_plugins`, to which the build maps this folder.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterable, Sequence
from math import nan, prod
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from mnist_lab.environment import cores
from mnist_lab.errors import UserError, closest
from mnist_lab.files import CONF_DIR, disk_fault, folder_lock, is_locked, is_sweep
from mnist_lab.hydra_adapter import read_configs_once
from mnist_lab.metrics import MONITOR, mode_of
from mnist_lab.processes import fail
from mnist_lab.rules import check
from mnist_lab.sweep.optuna_adapter import set_attr, set_state
from mnist_lab.sweep.planning import complete, plan
from mnist_lab.sweep.space import Axis, axis
from mnist_lab.sweep.study import code_digests, differences, is_own, load_asked, open_study, save_asked, trials_of
from mnist_lab.targets import with_current_names
from mnist_lab.terminal import to_go_on

AT_ONCE = 50
"""Most jobs in one launch of Hydra's basic launcher, which keeps 0.3 MB of each until the launch ends."""

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

# Makes `hydra/sweeper=study` an option of any Hydra application.
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="study",
    node={"_target_": f"{__name__}.StudySweeper", "_convert_": "all"},
    provider="mnist_lab",
)


class StudySweeper(Sweeper):
    """Keep a sweep as an Optuna study in its folder: stopped at any moment, it goes on where it was.

    In other applications than this package's, trials are judged by the number that a job returns, and a job that was
    stopped starts again.

    Args:
        options: `hydra.sweeper.KEY`, those of conf/sweep/grid.yaml that are not to have the values they have there or
            in the config's section `sweep`.
    """

    def __init__(self, **options: Any) -> None:
        self.given = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`."""
        self.loader, self.base = hydra_context.config_loader, config
        read_configs_once(self.loader)
        self.engine: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[list[JobReturn]]:
        """Run the sweep, or what is left of it.

        Returns:
            What the launcher gave back, launch by launch; nothing of this package's own trials.

        Ends the program with status 1 if a trial failed, with 2 if what is asked for can't be done, with 130 on
        Ctrl-C, with 143 on SIGTERM.
        """
        try:
            return self._sweep(arguments)
        except UserError as error:  # here, because Hydra would add its traceback
            fail(error)

    def _sweep(self, arguments: list[str]) -> list[list[JobReturn]]:
        from mnist_lab.sweep.live import Live

        self.folder = folder = Path(self.base.hydra.sweep.dir).absolute()
        self.ours = "sweep" in self.base
        defaults: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "sweep" / "grid.yaml"))
        section: Any = OmegaConf.to_container(self.base.sweep, resolve=True) if self.ours else {}
        params = self.given.pop("params", None) or {}  # what Hydra's own sweeper calls its space
        for key in self.given:
            if key not in defaults:
                raise UserError(f"hydra.sweeper.{key}: there is no such option.{closest(key, defaults)}")
        self.options: dict[str, Any] = defaults | section | self.given  # ~sweep.trials leaves the default
        self.options["space"] = params | (self.options["space"] or {})
        self.parts = self._divide(arguments)
        self.axes = [part for part in self.parts if not isinstance(part, str)]
        self.configs: dict[tuple[str, ...], DictConfig] = {}
        if self.options["objective"] is None:
            self.options["objective"] = self._default_objective() if self.ours else "returned"
        if self.options["direction"] is None:
            self.options["direction"] = self._directions()
        combinations = prod(len(one.words) for one in self.axes)
        asked = self.options["trials"] or combinations
        self.options["trials"] = min(asked, combinations or asked) if self.options["sampler"] == "grid" else asked
        if self.options["dry_run"]:
            self._dry_run()
            return []
        with folder_lock(folder, str(folder)):
            self._record(folder)
            self.study = open_study(folder)
            stopped, live = 0, Live(self.study, self.options, folder)
            found: list[list[JobReturn]] = []
            before = signal.signal(signal.SIGTERM, _stop)  # while trials run in other processes, or between them
            try:
                with live:
                    self._run_all(found)
            except KeyboardInterrupt as stop:
                stopped = next(iter(stop.args), 130)
            finally:
                signal.signal(signal.SIGTERM, before)
            trials = trials_of(self.study)
            states = [trial.state.name for trial in trials]
            total = max(self.options["trials"], len(trials))
            left = total - sum(trial.state.is_finished() for trial in trials)
        live.end()
        if "COMPLETE" in states and not stopped and self.ours:
            from mnist_lab.sweep.compare import compare

            compare([str(live.folder), f"metric={live.objective}"])
        if stopped or left:
            again = to_go_on(folder) if self.ours else "the same command and hydra.sweep.dir"
            if self._too_many_failures():
                again += " sweep.max_failures=null"
            print(f"\n{left} of {total} trials are left. To go on: {again}")
        if stopped:
            sys.exit(stopped)
        if "FAIL" in states:
            sys.exit(1)
        return found

    def _divide(self, arguments: list[str]) -> list[str | Axis]:
        """Return the overrides that all trials share and the axes along which they differ, in their order."""
        parser = OverridesParser.create(config_loader=self.loader)
        space = [f"{key}={value}" for key, value in self.options["space"].items()]
        overrides = {o.get_key_element(): o for o in parser.parse_overrides([*space, *arguments])}
        return [axis(o) if o.is_sweep_override() else str(o.input_line) for o in overrides.values()]

    def _words(self, of_axes: Sequence[str]) -> list[str]:
        """Return a job's overrides, in the order of the command, from those of the axes."""
        rest = iter(of_axes)
        return [part if isinstance(part, str) else next(rest) for part in self.parts]

    def _directions(self) -> str | list[str]:
        """Return "minimize" or "maximize" for each objective, as a list if there are several.

        Raises:
            UserError: neither an objective's name nor the run's `mode` says.
        """
        objectives = self._list("objective")
        if not self.ours:
            found = ["minimize" for _ in objectives]
        else:
            config = self._config(one.extremes()[0] for one in self.axes)
            found = [f"{mode_of(name, config.get('mode'), config.get('monitor'))}imize" for name in objectives]
        return found if len(found) > 1 else found[0]

    def _default_objective(self) -> str:
        """Return the run's `monitor`; for a grid of runs without validation data, the same metric of the test.

        Raises:
            UserError: a search would choose by the test set.
        """
        first = [one.extremes()[0] for one in self.axes]
        asked = [first]
        for n, one in enumerate(self.axes):
            if self.loader.get_group_options(one.name) or one.name == "data.val":
                asked += [[*first[:n], word, *first[n + 1 :]] for word in one.extremes()[1:]]
        configs = [self._config(words) for words in asked]
        monitor = str(configs[0].get("monitor", MONITOR))
        if not monitor.startswith("val/") or all(config.data.get("val") != "none" for config in configs):
            return monitor
        if self.options["sampler"] != "grid":
            raise UserError("a search needs validation data, and data.val=none gives none: use data.val=random")
        return monitor.replace("val/", "test/", 1)

    def _side_by_side(self) -> int:
        """Return how many trials the launcher runs at a time, on this machine."""
        jobs = int(self.base.hydra.launcher.get("n_jobs", 1) or 1)
        return jobs if jobs > 0 else max(1, cores() + 1 + jobs)  # as joblib counts: -1 is all cores

    def _run_all(self, found: list[list[JobReturn]]) -> None:
        """Add what the launcher gives back to `found`, launch by launch."""

        def at_work(trial: FrozenTrial) -> bool:
            return is_locked(self.folder / str(trial.number))

        complete(self.study, self.axes, self.options)
        # Trials whose process ended without a word, and how often it was at work on that trial alone: when one of its
        # processes is killed, joblib ends the others too.
        deaths: dict[int, int] = {}
        while True:
            todo = [trial for trial in trials_of(self.study) if not trial.state.is_finished()]
            if not todo:
                plan(self.study, self.axes, self.options, self._side_by_side())
                todo = [trial for trial in trials_of(self.study) if not trial.state.is_finished()]
            if not todo or self._too_many_failures():
                return
            todo = [trial for trial in todo if not at_work(trial)]
            if not todo:  # processes that outlive a sweep which was killed end their trials, and are waited for
                time.sleep(1)
                continue
            for trial in list(todo):
                if deaths.get(trial.number, 0) > self.options["retries"]:
                    set_attr(self.study, trial, "error", "its process was killed")
                    set_state(self.study, trial, "FAIL")
                    todo.remove(trial)
            todo = [trial for trial in todo if trial.number not in deaths] or todo[:1]
            todo.sort(key=lambda trial: trial.state.name == "RUNNING")  # if it ends this process, the others came first
            if type(self.engine).__name__ == "BasicLauncher":
                todo = todo[:AT_ONCE]
            before = self._states()
            stopped: Exception | None = None
            jobs = [self._job(trial) for trial in todo]
            try:
                if todo:
                    returned = list(self.engine.launch(jobs, initial_job_idx=todo[0].number))
                    if not self.ours:
                        found.append(returned)
                        self._record_returned(todo, returned)
            except Exception as error:  # a launcher's own: one of its processes was killed, say
                if disk_fault(error) is not None:
                    raise
                stopped = error
                print(f"the launcher stopped: {type(error).__name__}: {error}", file=sys.stderr)
            after = self._states()
            for trial in todo:
                if after[trial.number] == "RUNNING" and not at_work(trial):
                    deaths[trial.number] = deaths.get(trial.number, 0) + (len(todo) == 1)
            if todo and before == after and "RUNNING" not in after.values():
                raise UserError(f"{self.base.hydra.launcher._target_} runs none of the trials: {stopped}")

    def _record_returned(self, trials: list[FrozenTrial], returned: list[JobReturn]) -> None:
        """Record trials that don't do so themselves: a number that a job returned is what it is judged by."""
        for trial, job in zip(trials, returned, strict=True):
            try:
                value = job.return_value
            except Exception as error:  # the job's own
                set_attr(self.study, trial, "error", f"{type(error).__name__}: {error}")
                set_state(self.study, trial, "FAIL")
                continue
            numbers = value if isinstance(value, list | tuple) else [value]
            judged = [float(n) if isinstance(n, int | float) else nan for n in numbers]
            set_state(self.study, trial, "COMPLETE", judged)

    def _states(self) -> dict[int, str]:
        return {trial.number: trial.state.name for trial in trials_of(self.study)}

    def _too_many_failures(self) -> bool:
        limit = self.options["max_failures"]
        return limit is not None and sum(t.state.name == "FAIL" for t in trials_of(self.study)) >= limit

    def _job(self, trial: FrozenTrial) -> list[str]:
        """Return the overrides of a trial, whose folder is the same whenever it is launched."""
        words = self._words([one.override(trial.params[one.name]) for one in self.axes])
        if self.ours:
            return [*words, f"hydra.sweep.subdir='{trial.number}'", "hydra/job_logging=mnist_lab_file"]
        pattern = OmegaConf.to_container(self.base.hydra.sweep)["subdir"]  # type: ignore[call-overload,index]
        subdir = str(pattern).replace("${hydra.job.num}", str(trial.number)).replace("'", r"\'")
        return [*words, f"hydra.sweep.subdir='{subdir}'"]

    def _config(self, words: Iterable[str]) -> DictConfig:
        """Return the config of the trial with these overrides of the axes, composed once: that takes 0.2 s."""
        if (of_axes := tuple(words)) not in self.configs:
            self.configs[of_axes] = self.loader.load_sweep_config(self.base, self._words(of_axes))
        return self.configs[of_axes]

    def _composed(self, words: list[str]) -> dict[str, Any]:
        """Return the config of the trial with these overrides of the axes, without what a sweep may change."""
        config: Any = OmegaConf.to_container(self._config(words), resolve=False)
        kept: dict[str, Any] = with_current_names({k: v for k, v in config.items() if k not in ("hydra", "sweep")})
        return kept

    def _record(self, folder: Path) -> None:
        """Keep what was asked for; of a sweep that is there already, make sure that it still means the same.

        Raises:
            UserError: it doesn't.
        """
        config, options = self._composed([one.extremes()[0] for one in self.axes]), {}
        for n, one in enumerate(self.axes):
            for word in one.extremes()[1:] if self.loader.get_group_options(one.name) else ():
                words = [other.extremes()[0] for other in self.axes]
                words[n] = word
                options[word] = self._composed(words)
        now = {
            "argv": _to_keep(sys.argv[1:]),
            "cwd": str(Path.cwd()),
            "storage": self.options["storage"],
            # A database may hold sweeps of the same name from other folders.
            "study": folder.name if self.options["storage"] is None else f"{folder.name}-{uuid4().hex[:8]}",
            "objectives": self._list("objective"),
            "directions": self._list("direction"),
            "options": {k: v for k, v in self.options.items() if k not in ("accept_changes", "dry_run")},
            "axes": [[a.key, list(a.words), a.low, a.high, a.log, a.whole] for a in self.axes],
            "fixed": [part for part in self.parts if isinstance(part, str)],
            "side_by_side": self._side_by_side(),
            "config": config,
            "others": options,
            "code": code_digests([config, *options.values()]),
        }
        own = True
        if is_sweep(folder):
            before = load_asked(folder)
            own = is_own(before)
            danger = None
            if self.options["sampler"] == "cmaes":
                danger = "its study could run code of whoever did: with sweep=cmaes it is unpickled"
            elif self.options["storage"] is not None:
                danger = f"its study lies elsewhere, sweep.storage={self.options['storage']}"
            if danger and not own:
                raise UserError(f"{folder} was not started here, and {danger}. If you trust it: MNIST_LAB_TRUST=sweep")
            changed = [
                line
                for part in ("config", "others", "code", "objectives", "directions", "axes", "storage")
                for line in differences(before.get(part, {}), now[part], part)
            ]
            if changed and not self.options["accept_changes"]:
                raise UserError(
                    "what this sweep's trials are made of has changed, and those to come would not be comparable:\n  "
                    + "\n  ".join(changed[:20])
                    + "\nTo go on all the same: add sweep.accept_changes=true"
                )
            now["study"] = before["study"]
        save_asked(folder, now, own)
        OmegaConf.save(self.base, folder / "multirun.yaml")

    def _dry_run(self) -> None:
        """List what would run, each job composed and checked. End the program with status 2 if one can't run.

        Of a search that learns from results only the first trials are known.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(directions=self._list("direction"))
        plan(self.study, self.axes, self.options, self._side_by_side())
        mistakes = 0
        for trial in trials_of(self.study):
            job = self._job(trial)
            config = self.loader.load_sweep_config(self.base, job)
            HydraConfig.instance().set_config(config)
            words = " ".join(one.override(trial.params[one.name]) for one in self.axes)
            try:
                if self.ours:
                    check(config)
                print(f"trial {trial.number}   {words}")
            except UserError as error:
                mistakes += 1
                print(f"trial {trial.number}   {words}   can't run: {error}")
        planned = len(trials_of(self.study))
        later = "" if planned == self.options["trials"] else f", the rest of {self.options['trials']} by their results"
        print(f"{planned} trials would run{later}; {mistakes} of them can't")
        if mistakes:
            sys.exit(2)

    def _list(self, key: str) -> list[Any]:
        value = self.options[key]
        return value if isinstance(value, list) else [value]


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(128 + number)


def _to_keep(argv: list[str]) -> list[str]:
    """Return the words that resume a sweep; of an option that was changed, `sweep.trials=30`, the last."""
    kept: list[str] = []
    for word in argv:
        key = word.partition("=")[0]
        if key.startswith("sweep."):
            kept = [other for other in kept if other.partition("=")[0] != key]
        if key not in ("hydra.sweep.dir", "sweep.accept_changes"):  # each of one time alone
            kept.append(word)
    return kept
