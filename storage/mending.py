"""What is mended, adopted or refused of an experiment's folder before it is resumed.

`opening` calls these while it holds the folder. A line for the user is returned for
each thing that was mended or passed over.
"""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from ..replay import LOCK_NAME, ReplayBuffer
from ..replay_file import DATA_NAME
from ..settings.roles import VALUERL, WORLDMODEL, learners
from ..util import UserError, atomic_write, fsync_folder, put_damaged_aside
from . import checkpoint
from .checkpoint import CheckpointError
from .datasets import import_dataset
from .digests import TEXTS, Digest
from .folders import Folders, Run
from .record import record_nondeterminism
from .rewind import numbered_checkpoints
from .salvage import salvage
from .scores import COLUMNS
from .tables import read_table

# What this program writes before it gets its name, by the folder that it is in.
TEMPORARY_EVENTS = re.compile(r"\.events\.out\.tfevents\..+\.steve\.\d+\.tmp")
TEMPORARY_IN_LOG = re.compile(
    r"\.(hps\.json|run\.json|loggers\.json|status\.bin|.+\.csv|.+\.log)\.\d+\.tmp"
)
TEMPORARY_STATE = re.compile(
    r"\.(policy|valuerl|worldmodel)(-\d+)?\.safetensors(\.previous|\.\d+)?\.tmp"
)
TEMPORARY_REPLAY = re.compile(r"\.replay\.bin\.\d+\.tmp")
IMPORTING = "importing"  # in the replay buffer's folder, while a dataset comes in


def remove_temporary_files(folders: Folders) -> None:
    """Removes what writers that were killed have left."""
    places = [
        (folders.root, TEMPORARY_EVENTS),
        (folders.log, TEMPORARY_IN_LOG),
        (folders.checkpoints, TEMPORARY_STATE),
        (folders.policies.folder, TEMPORARY_STATE),
        *((path, TEMPORARY_REPLAY) for path in folders.checkpoints.glob("replay*")),
    ]
    for folder, name in places:
        for leftover in folder.glob(".*.tmp"):
            if name.fullmatch(leftover.name) and leftover.is_file():
                leftover.unlink()


def remove_new_replay(folders: Folders) -> None:
    """Removes the replay buffer of an opening that has failed, and its folder."""
    for folder in (folders.replay / IMPORTING, folders.replay):
        for name in (DATA_NAME, LOCK_NAME):
            with suppress(OSError):
                (folder / name).unlink()
        with suppress(OSError):  # something else is in it
            folder.rmdir()


def check_whole(run: Run) -> None:
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
    has_state = any(map(checkpoint.is_there, states))
    if has_state and not ReplayBuffer.exists(folders.replay):
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


def rename_scores(folders: Folders) -> list[str]:
    """Names the scores after the folder, where that has got another name."""
    notes = []
    for path in (folders.scores, folders.final_scores):
        ending = path.name.removeprefix(folders.experiment)
        others = [p for p in folders.log.iterdir() if p.name.endswith(ending)]
        if len(others) == 1 and others[0] != path:
            others[0].rename(path)
            notes.append(f"{others[0]} is now {path.name}, as the folder's name says")
    return notes


def mend_tables(run: Run) -> list[str]:
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
            aside = put_damaged_aside(path)
            notes.append(f"{path}: its first line is damaged; it is now {aside.name}")
        elif table.damaged:
            notes.append(f"{path}: {table.damaged} damaged lines are passed over")
    return notes


def mend_replay(run: Run) -> list[str]:
    """Creates the replay buffer, or mends what is damaged of it; lines as above.

    Raises:
        UserError: it cannot be opened and has no good row, or is another environment's.
    """
    folder, sizes = run.folders.replay, (run.obs_dim, run.action_dim)
    if not ReplayBuffer.exists(folder):
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
    workplace = folder / IMPORTING
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


def check_states(run: Run) -> list[str]:
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


def put_aside_published(run: Run) -> list[str]:
    """Lines about policies and world models that are damaged, and renamed.

    The value learner publishes its own policy again. All others are passed over.
    """
    folders, notes = run.folders, []
    paths = [folders.policy]
    for published in (folders.policies, folders.models):
        paths += map(published.path, published.numbers())
    for path in paths:
        try:
            checkpoint.load(path)
        except CheckpointError as error:
            if path.exists():
                aside = put_damaged_aside(path)
                notes.append(f"{error}; it is now {aside.name}")
    return notes


def adopt_files(run: Run) -> None:
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
