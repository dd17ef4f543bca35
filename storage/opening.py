"""How a launch opens an experiment's folder: checks what is there and mends it."""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..replay import ReplayBuffer
from ..replay_file import DATA_NAME
from ..settings.interface import EnvSpec
from ..settings.loading import changed_keys
from ..settings.request import Request, Start
from ..settings.roles import VALUERL, WORLDMODEL, learners
from ..settings.schema import AgentConfig, Config
from ..util import RunError, UserError, atomic_write, fsync_folder, one_line, unused
from . import checkpoint
from .checkpoint import CheckpointError
from .datasets import check_dataset, import_dataset
from .digests import TEXTS, Digest
from .disk import network_filesystem
from .fitting import check_fits
from .folders import ASIDE, Folders, Run
from .locks import claimed, held, in_use, unwritable
from .record import (
    is_finished,
    read_json,
    read_run,
    reasons_of,
    record_end,
    record_nondeterminism,
    record_start,
    was_killed,
    write_json,
)
from .rewind import finish_rewind, numbered_checkpoints, put_aside, rewind
from .salvage import salvage
from .scores import COLUMNS
from .tables import read_table

# What this program writes before it gets its name.
TEMPORARY = re.compile(
    r"\.(.+\.(json|csv|log|bin|safetensors|steve)|replay\.lock)(\.previous)?(\.\d+)?\.tmp"
)


def has_output(folders: Folders) -> bool:
    """Whether there is any file of an earlier run.

    One that was killed while it wrote its first file has left no more than a
    temporary one (`atomic_write`).
    """
    return any(
        path.is_file()
        for path in _contents(folders)
        if not (path.name.startswith(".") and path.suffix == ".tmp")
    )


def _contents(folders: Folders) -> set[Path]:
    """All that is in an experiment's folder, or behind links in it to its folders."""
    places = (folders.root, folders.log, folders.checkpoints)
    return {path for place in places for path in place.rglob("*")}


class Measured(NamedTuple):
    """What a process says that imports the user's modules, as the launcher does not.

    Attributes:
        env: the environment's sizes.
        weighting: as of `ValueExpansion.description`.
    """

    env: EnvSpec
    weighting: Mapping[str, Any] | None = None


@contextmanager
def opened(
    request: Request,
    measure: Callable[[Config], Measured],
    gpus: Mapping[str, str],
    note: Callable[[str], None],
) -> Iterator[Run | None]:
    """Holds an experiment's folder, checked, mended and ready for a run.

    Args:
        request: what the launch was asked for.
        measure: asks the environment and the other modules of the user.
        gpus: as `Run.gpus`; empty for learners on the CPU.
        note: takes lines for the user.

    Yields:
        the run, to be run while the folder is held; None where it is finished.

    Raises:
        UserError: a mistake. Nothing has been written where it is one in the
            configuration, in `start`, or in the environment.
    """
    config, merged = request.loaded.config, request.loaded.merged
    folders = Folders.of(config, request.experiment)
    finish_rewind(folders)
    if request.start is Start.FRESH and has_output(folders) and in_use(folders):
        raise UserError(
            f"{folders.root} is in use by another launch; --name NAME starts one more"
        )
    # Checked before anything is written; and again when no other launch can interfere.
    check_mode(folders, merged, request.start)
    measured, weighting = measure(config)
    config = config.with_weighting(weighting)
    notes = check_fits(config, measured, folders, on_gpus=bool(gpus))
    is_new = request.start is Start.OVERWRITE or not _has_replay(folders)
    if config.initial_dataset and is_new:
        assert measured.interface is not None  # the environment was asked
        check_dataset(config, measured.interface)
    with claimed(folders):
        resumes = check_mode(folders, merged, request.start)
        if (
            resumes
            and request.rewind_to is None
            and is_finished(folders, config.total_frames, config.total_hours)
        ):
            note(
                f"{folders.root} is finished: nothing is left to do (a larger --frames "
                "or --hours moves its end)"
            )
            yield None
            return
        notes += request.loaded.notes
        if measured.interface is not None and (
            reach := measured.interface.reach_note()
        ):
            notes.append(f"{config.env.name}: {reach}")
        if config.env.entry_point and config.env.inertia:
            notes.append("env.inertia has no effect on an env.entry_point")
        if request.start is Start.OVERWRITE and has_output(folders):
            notes.append(f"the earlier output is now {put_aside(folders)}")
        if request.rewind_to is not None:
            aside = rewind(folders, config, request.rewind_to)
            notes.append(
                f"resuming from {request.rewind_to} updates; what came later is in "
                f"{aside}"
            )
        run = Run(
            config=config,
            folders=folders,
            obs_dim=measured.obs_dim,
            action_dim=measured.action_dim,
            launch=len(read_run(folders)["starts"]),
            cpu_learners=not gpus,
            gpus=gpus,
            interface=measured.interface,
        )
        with ExitStack() as ends:
            try:
                known = len(reasons_of(read_run(folders)))
                with removed_if_it_fails(folders):
                    notes += open_output(run, merged)
                    with ReplayBuffer.open(folders.replay) as replay:
                        record_start(run, resumes, replay.frames, weighting)
                    ends.enter_context(end_recorded(folders))
                    notes += reasons_of(read_run(folders))[known:]
                    if resumes:
                        notes.append(what_is_resumed(run))
            finally:
                for line in notes:
                    note(line)
            ends.enter_context(held(folders))
            yield run


@contextmanager
def end_recorded(folders: Folders) -> Iterator[None]:
    """Records in run.json why a launch ended, where that is not recorded yet."""
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        is_mistake = isinstance(error, UserError) and not isinstance(error, RunError)
        code, why = (0, None) if stopped else (1 + is_mistake, one_line(error))
        with suppress(OSError, UserError):
            starts = read_run(folders)["starts"]
            if starts and was_killed(starts[-1]):
                record_end(folders, code, why)
        raise


@contextmanager
def removed_if_it_fails(folders: Folders) -> Iterator[None]:
    """Removes what an opening that fails has made, where there was no output before.

    The corrected call then starts as if nothing had been tried. What else lies there
    stays, and so does output: it can be resumed.
    """
    if has_output(folders):
        yield
        return
    root = folders.root
    before = {root, *_contents(folders)} if root.exists() else set()
    try:
        yield
    except BaseException:
        made = {root, *_contents(folders)} - before
        for path in sorted(made, reverse=True):  # what is in a folder, then the folder
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        raise


def check_mode(folders: Folders, merged: dict[str, Any], start: str) -> bool:
    """Refuses a start that does not say what is meant with what is there.

    Args:
        folders: the experiment's.
        merged: the configuration of this launch.
        start: a `Start`: what is to become of earlier output.

    Returns:
        whether the run resumes an earlier one.

    Raises:
        UserError: output without --resume / --overwrite, --resume without output, or
            a resume with another configuration, whose keys are named.
    """
    there = has_output(folders)
    if start == Start.FRESH and there:
        raise UserError(
            f"{folders.root} holds output of an earlier run: --resume continues it, "
            "--overwrite renames it and starts again, --name NAME keeps both"
        )
    if not (there or start == Start.RESUME) and ASIDE.fullmatch(folders.experiment):
        raise UserError(
            f"{folders.experiment}: names that end in .old and a number are those of "
            "output that was put aside; give another --name"
        )
    if start in (Start.FRESH, Start.OVERWRITE):
        return False
    if start == Start.RESUME_OR_START and not there:
        return False
    if not there:
        raise UserError(
            f"{folders.root} holds nothing to resume; start it without --resume"
        )
    earlier = read_json(folders.hyperparameters)
    changed = changed_keys(earlier, merged)
    if changed:
        raise UserError(
            f"the configuration differs from that of the run in {folders.root}: "
            f"{', '.join(changed)}; give the run's values, or another --name"
        )
    return True


def open_output(run: Run, merged: dict[str, Any]) -> list[str]:
    """Creates what is missing, checks and mends what is there; needs `claimed`.

    Args:
        run: whose folder it is.
        merged: its configuration, for hps.json: written before all that is new, since
            without it nothing else could be resumed.

    Returns:
        Lines for the user: damaged transitions or states that were passed over, and
        a filesystem that promises less.

    Raises:
        UserError: a folder cannot be created, the replay buffer cannot be read, or a
            learner has no good state left.
    """
    notes = []
    folders = run.folders
    try:
        folders.root.mkdir(parents=True, exist_ok=True)
        if kind := network_filesystem(folders.root):
            notes.append(
                f"{folders.root} is on a network filesystem ({kind}): a run of one "
                "host is safe there; that a launch on another host is refused, or "
                "leaves this run unharmed, is not promised"
            )
        for folder in (folders.checkpoints, folders.log / "processes"):
            folder.mkdir(parents=True, exist_ok=True)
        before = _interactors_before(folders)
        for leftover in folders.root.rglob(".*.tmp"):  # of writers that were killed
            if TEMPORARY.fullmatch(leftover.name) and leftover.is_file():
                leftover.unlink()
        notes += _renamed_scores(folders)
        _check_whole(run)
        write_json(folders.hyperparameters, merged)
        notes += _mended_tables(run)
        notes += _mended_replay(run)
        notes += _checked_states(run)
        _adopt_files(run)
        _record_changes(run, before)
    except OSError as error:
        raise unwritable(error, folders) from None
    return notes


def _check_whole(run: Run) -> None:
    """Refuses a run of which a part is gone that it had: the rest would not fit.

    A learner saves its state before it publishes anything, and the replay buffer is
    made before any state.

    Raises:
        UserError: names what is missing.
    """
    folders = run.folders
    states = [folders.state(name) for name in learners(run.config)]
    needed = []
    if (
        folders.policy.exists()
        or _has_rows(folders.scores)
        or _has_rows(folders.digests)
    ):
        needed += [path for path in states if not checkpoint.is_there(path)]
    if any(map(checkpoint.is_there, states)) and not _has_replay(folders):
        needed.append(folders.replay / DATA_NAME)
    if needed:
        numbered = numbered_checkpoints(folders, run.config)
        rewind_to = f", --resume-from {numbered[-1]}" if numbered else ""
        raise UserError(
            f"{' and '.join(map(str, needed))}: missing, so that this run cannot be "
            f"resumed. Put back what was removed{rewind_to}, or start again: "
            "--overwrite renames what is left"
        )


def _has_rows(path: Path) -> bool:
    table = read_table(path, TEXTS)
    return table is not None and bool(table.rows)


def _renamed_scores(folders: Folders) -> list[str]:
    """Names the scores after the folder, where that has got another name."""
    notes = []
    for path in (folders.scores, folders.final_scores):
        ending = path.name.removeprefix(folders.experiment)
        others = [p for p in folders.log.iterdir() if p.name.endswith(ending)]
        if len(others) == 1 and others[0] != path:
            others[0].rename(path)
            notes.append(f"{others[0]} is now {path.name}, as the folder's name says")
    return notes


def _mended_tables(run: Run) -> list[str]:
    """Lines about damage of csv files; without its columns' names none can be read.

    Scores and digests get theirs again. A log's are not known: it is put aside.
    """
    folders, notes = run.folders, []
    known: dict[Path, tuple[str, ...]] = {
        folders.scores: COLUMNS,
        folders.final_scores: COLUMNS,
        folders.digests: Digest._fields,
    }
    for path in (*known, *map(folders.learner_log, learners(run.config))):
        table = read_table(path, TEXTS)
        if table is None:
            continue
        columns = known.get(path)
        if columns and table.columns != list(columns):
            atomic_write(path, table.under(columns))
            notes.append(f"{path}: its first line was damaged and is written again")
        elif not columns and "updates" not in table.columns:
            aside = unused(path.with_name(f"{path.name}.damaged"))
            path.rename(aside)
            notes.append(f"{path}: its first line is damaged; it is now {aside.name}")
        elif table.damaged:
            notes.append(f"{path}: {table.damaged} damaged lines are passed over")
    return notes


def _interactors_before(folders: Folders) -> int | None:
    """`agent_config.count` of the launch before; None where there was none."""
    if not folders.hyperparameters.exists():
        return None
    agent = read_json(folders.hyperparameters).get("agent_config", {})
    return agent.get("count", AgentConfig().count)


def _record_changes(run: Run, before: int | None) -> None:
    """Says in run.json why a resumed run is not what an uninterrupted one would be."""
    count = run.config.agent_config.count
    with ReplayBuffer.open(run.folders.replay) as replay:
        if not replay.has_origins:
            why = "the run was begun by version 1.0"
            record_nondeterminism(run.folders, replay.frames, why)
        if before not in (None, count):
            why = f"agent_config.count was {before} and is {count}"
            record_nondeterminism(run.folders, replay.frames, why)


def _mended_replay(run: Run) -> list[str]:
    """Creates the replay buffer, or mends what is damaged of it; lines as above.

    Raises:
        UserError: it cannot be opened and has no good row, or is another environment's.
    """
    folder, sizes = run.folders.replay, (run.obs_dim, run.action_dim)
    if not _has_replay(run.folders):
        return _new_replay(run)
    notes = []
    try:
        replay, lost = _recovered(folder)
    except UserError as error:
        kept = salvage(folder, *sizes, run.config.replay_capacity)
        if kept is None:
            raise
        notes.append(
            f"{error}; its {kept[0]} good transitions were taken over, and the damaged "
            f"file is now {kept[1].name}"
        )
        replay, lost = _recovered(folder)
    with replay:
        if (replay.obs_dim, replay.action_dim) != sizes:
            raise UserError(
                f"{folder} holds transitions of {replay.obs_dim} observations and "
                f"{replay.action_dim} actions, the environment has {run.obs_dim} and "
                f"{run.action_dim}"
            )
        if lost:
            notes.append(
                f"{folder}: {lost} damaged transitions were dropped; frames "
                f"{replay.oldest} to {replay.frames - 1} remain"
            )
    return notes


def _has_replay(folders: Folders) -> bool:
    return (folders.replay / DATA_NAME).exists()


def _new_replay(run: Run) -> list[str]:
    """Creates the replay buffer, with the initial dataset in it; lines as above.

    It appears under its name when the whole dataset is in it.

    Raises:
        UserError: the dataset cannot be used.
    """
    folder, sizes = run.folders.replay, (run.obs_dim, run.action_dim)
    name, capacity = run.config.initial_dataset, run.config.replay_capacity
    if name is None:
        ReplayBuffer.create(folder, *sizes, capacity).close()
        return []
    assert run.interface is not None  # the environment was asked
    workplace = folder / "importing"
    if workplace.exists():
        shutil.rmtree(workplace)  # of an import that was killed
    with ReplayBuffer.create(workplace, *sizes, capacity) as replay:
        note = import_dataset(name, run.interface, replay)
        replay.sync()
    os.replace(workplace / DATA_NAME, folder / DATA_NAME)
    shutil.rmtree(workplace)
    fsync_folder(folder)
    return [note]


def _recovered(folder: Path) -> tuple[ReplayBuffer, int]:
    """The buffer, open and verified, and how many of its rows were dropped."""
    replay = ReplayBuffer.open(folder, writable=True)
    try:
        return replay, replay.recover()
    except UserError:
        replay.close()
        raise


def _checked_states(run: Run) -> list[str]:
    """Lines about states of learners that are damaged.

    Raises:
        CheckpointError: a learner has no good state left.
    """
    notes = []
    for name in learners(run.config):
        if checkpoint.is_there(run.folders.state(name)):
            _, warning = checkpoint.load_newest(run.folders.state(name))
            notes += [warning] if warning else []
    return notes


def what_is_resumed(run: Run) -> str:
    """A line that says where an opened run continues.

    Raises:
        CheckpointError: a learner has no good state left.
    """
    with ReplayBuffer.open(run.folders.replay) as replay:
        parts = [f"{replay.frames:,} frames"]
    for name in learners(run.config):
        if checkpoint.is_there(run.folders.state(name)):
            state, _ = checkpoint.load_newest(run.folders.state(name))
            parts.append(f"{name} {_how_far(state.metadata)}")
    return f"resuming {run.folders.root}: {'; '.join(parts)}"


def _how_far(metadata: Mapping[str, checkpoint.Scalar]) -> str:
    """Up to where a learner's state is."""
    epoch, updates = metadata["epoch"], metadata["updates"]
    if not epoch and metadata.get("pretrained"):
        return f"after {metadata['pretrained']:,} updates of pretraining"
    return f"after {updates:,} updates, in epoch {epoch:,}"


def _adopt_files(run: Run) -> None:
    """Publishes under numbers what a run of version 1.0 has under one name only.

    Also after a rewind, which takes over nothing but the learners' states, and where
    the world model that the value learner had is damaged.
    """
    folders, config = run.folders, run.config
    if folders.policy.exists() and not folders.policies.numbers():
        with suppress(CheckpointError):  # a damaged policy is published again
            metadata = checkpoint.load(folders.policy).metadata
            folders.policies.add(int(metadata.get("updates", 0)), folders.policy)
    state = folders.state(VALUERL)
    states = map(folders.state, learners(config))
    if not config.has_model or not all(map(checkpoint.is_there, states)):
        return
    source = folders.state(WORLDMODEL)
    if not _is_good(source):
        source = checkpoint.previous_path(source)
    model = checkpoint.load(source).metadata
    found = int(model.get("updates", 0))
    wanted = int(checkpoint.load_newest(state)[0].metadata.get("model_updates", found))
    if wanted < 0 or not model["epoch"] or _is_good(folders.models.path(wanted)):
        return
    folders.models.add(wanted, source)
    if found != wanted:
        record_nondeterminism(
            folders,
            0,
            f"the world model of {wanted} updates is missing; that of {found} is used "
            "instead",
        )


def _is_good(path: Path) -> bool:
    try:
        checkpoint.load(path)
    except CheckpointError:
        return False
    return True
