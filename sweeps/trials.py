"""The runs of a search: which values they get, and what they were worth."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from ..util import UserError
from . import pool, record, status
from .engines import Engine, left_to_do, say
from .record import MAIN, PlannedRun
from .runs import Request, WrongConfiguration, expand
from .search import METRICS, Space, Study, Trial
from .status import FAILED, FINISHED

PROGRAM = "sweep.py"  # what an element of a search's array calls
LABEL = "-search"  # behind the experiment's name: the study of a search


@dataclass(frozen=True)
class Search:
    """What a call searches, and how.

    Attributes:
        request: the one configuration that is trained, without the values that are
            searched.
        spaces: those values.
        metric: what is raised, of METRICS.
        total: how many trials there are to be.
        engine: which runs them.
        words: of the call; an element of a Slurm array repeats them.
    """

    request: Request
    spaces: Sequence[Space]
    metric: str
    total: int
    engine: Engine
    words: tuple[str, ...]

    @property
    def asked(self) -> str:
        """What makes it this search and no other, but for its spaces."""
        request = self.request
        limits = [e for e in (request.frames, request.hours) if e is not None]
        words = [list(request.paths), list(request.settings), self.metric, *limits]
        return json.dumps(words)

    def run(self, trial: Trial) -> PlannedRun:
        """The run of a trial.

        Raises:
            WrongConfiguration: its values contradict each other.
            UserError: its output is that of another configuration.
        """
        request = self._with(trial.settings, _label(trial.number))
        (run,) = expand(request)[1]
        return run

    def ends(self) -> tuple[Path, list[PlannedRun]]:
        """The output root, and a run for each end of the spaces: all lie between them.

        Raises:
            UserError: a run cannot have such values, or they decide on its folder.
        """
        found = []
        for values in zip_longest(*(space.ends for space in self.spaces)):
            pairs = zip(values, self.spaces, strict=True)
            chosen = [value or space.ends[0] for value, space in pairs]
            output_root, (first, *others) = expand(self._with(chosen, LABEL))
            if others:
                raise UserError(
                    "--optuna: give one configuration and one value for each key"
                )
            found.append(first)
        places = {(run.environment, run.log_path, run.save_model_path) for run in found}
        if len(places) > 1 and self.engine.on_slurm:
            raise UserError("--search with Slurm: the values must not name folders")
        return output_root, found

    def _with(self, settings: Sequence[str], label: str) -> Request:
        settings = [*self.request.settings, *settings]
        return replace(self.request, settings=settings, label=label)

    def worth(self, trial: Trial, value: float | None) -> str:
        """What a trial has come to, on one line."""
        shown = "failed" if value is None else f"{self.metric} {value:,.4g}"
        return f"trial {trial.number}, {' '.join(trial.settings)}: {shown}"


def _label(number: int) -> str:
    """What a trial adds to the name of its run."""
    return f"-trial{number}"


def _study(search: Search, output_root: Path, run: PlannedRun) -> Study:
    path = output_root / record.FOLDER / f"{run.experiment}.optuna"
    return Study(path, search.spaces, search.asked)


def find_best(search: Search) -> int:
    """Runs trials until there are as many as asked for; the exit code.

    Raises:
        UserError: a mistake; nothing has been started.
    """
    output_root, ends = search.ends()
    slots = search.engine.slots()
    with record.claimed(output_root):
        study = _study(search, output_root, ends[0])
        if search.engine.on_slurm:
            _submit(search, output_root, study, ends)
        elif not _run_here(search, output_root, study, slots):
            say("stopped; the same call continues the search")
            return 0
    best, left = study.best(), study.open_numbers(search.total)
    if best is not None:
        so_far = " so far" if left else ""
        say(f"the best{so_far}: {search.worth(*best)}")
    if left:
        say("the same call says more once trials have ended")
    elif best is None:
        say("no trial has finished")
        return 1
    return 0


def become(search: Search, number: int) -> int:
    """Begins or continues a trial: this process becomes main.py.

    Returns:
        the exit code where it does not.
    """
    output_root, ends = search.ends()
    study = _study(search, output_root, ends[0])
    _collect(search, output_root, study)
    trial = study.begin(number)
    if trial is None:
        say(f"trial {number} has ended already")
        return 0
    say(f"trial {trial.number}: {' '.join(trial.settings)}")
    run = _valid_run(search, study, trial)
    if run is None:
        return 2
    os.execv(sys.executable, [sys.executable, str(MAIN), *run.arguments])


def _run_here(
    search: Search, output_root: Path, study: Study, slots: list[dict[str, str]]
) -> bool:
    """Runs trials in a local pool; whether all have ended."""
    metric = METRICS[search.metric]
    while numbers := study.open_numbers(search.total)[: len(slots)]:
        trials, runs = [], []
        for trial in filter(None, map(study.begin, numbers)):
            run = _valid_run(search, study, trial)
            if run is not None:
                trials.append(trial)
                runs.append(run)
        if not runs:
            continue
        sweep = search.engine.sweep(output_root, runs)
        record.save(sweep)
        places = [(sweep, index) for index in range(len(runs))]
        at_work = pool.Pool(places, slots, say)
        at_work.run()
        # What a second Ctrl-C has ended did not fail by itself.
        ends = (FINISHED,) if at_work.stopped else (FINISHED, FAILED)
        found = status.states(places, {})
        for trial, state, (_, index) in zip(trials, found, places, strict=True):
            if state.state in ends:
                ended = state.state == FINISHED
                value = metric(sweep.folders(index).scores) if ended else None
                study.tell(trial, value)
                say(f"{state.run.name}: {search.worth(trial, value)}")
        if at_work.stopped or any(state.state not in ends for state in found):
            return False
    return True


def _submit(
    search: Search, output_root: Path, study: Study, ends: Sequence[PlannedRun]
) -> None:
    """Submits an element for each trial that has neither ended nor is under way.

    Its values are chosen when it starts, by what the trials before were worth.
    """
    _collect(search, output_root, study)
    name = ends[0].experiment.removesuffix(LABEL)
    runs = [
        replace(
            ends[0],
            arguments=("--trial", str(number), *search.words),
            experiment=f"{name}{_label(number)}",
            processes=max(run.processes for run in ends),
        )
        for number in study.open_numbers(search.total)
    ]
    if left := left_to_do(output_root, runs):
        arrays = search.engine.arrays(output_root, left)
        search.engine.submit([replace(each, program=PROGRAM) for each in arrays])


def _valid_run(search: Search, study: Study, trial: Trial) -> PlannedRun | None:
    """The run of a trial; None where its values contradict each other: it has failed.

    `Search.ends` tries the ends of all spaces together, not each combination.

    Raises:
        UserError: its output is that of another configuration, and stays so.
    """
    try:
        return search.run(trial)
    except WrongConfiguration as error:
        say(f"trial {trial.number}: {error}")
        study.tell(trial, None)
        return None


def _collect(search: Search, output_root: Path, study: Study) -> None:
    """Tells the study what the trials are worth whose runs have finished."""
    for trial in study.begun():
        with suppress(UserError):  # its output is damaged: its launch says that
            run = search.run(trial)
            if status.already(run, output_root, {}) == FINISHED:
                scores = run.folders(output_root).scores
                study.tell(trial, METRICS[search.metric](scores))
