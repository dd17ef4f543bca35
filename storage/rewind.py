"""Goes back to a numbered checkpoint, and puts earlier output aside."""

import os
import re
import shutil
from pathlib import Path

from ..replay import ReplayBuffer
from ..settings.roles import VALUERL, learners
from ..settings.schema import VECTOR_STEPS_AHEAD, Config
from ..util import UserError, first_free, fsync_folder
from . import checkpoint
from .digests import copy_digests
from .folders import Folders, hide_events
from .locks import claimed
from .record import read_run, write_json
from .tables import copy_rows


def put_aside(folders: Folders) -> Path:
    """Renames the experiment's folder, so that nothing in it is lost.

    TensorBoard does not show it any more.

    Returns:
        its new name, the same as `aside_of` gave before.
    """
    aside = aside_of(folders)
    folders.root.rename(aside)
    hide_events(aside)
    return aside


def aside_of(folders: Folders) -> Path:
    """What the folder will be called when it is put aside."""
    return first_free(folders.root, ".old")


def rewind(folders: Folders, config: Config, updates: int) -> Path:
    """Goes back to a numbered checkpoint; returns where the present state now is.

    A new folder is built next to the present one and takes its place when it is
    complete: the learners' states, the replay as far as it went then, the scores and
    logs up to that point.

    Raises:
        UserError: no such checkpoint, or its replay has been overwritten; nothing has
            been changed then.
        OSError: the disk is full, say; as above.
    """
    available = numbered_checkpoints(folders, config)
    if updates not in available:
        listed = ", ".join(map(str, available)) or "none"
        raise UserError(
            f"{folders.checkpoints} has no checkpoint of {updates} updates of all "
            f"learners; there are: {listed}"
        )
    # Its name says which renaming it belongs to; see `finish_rewind`.
    aside = aside_of(folders)
    root = aside.with_name(f".{aside.name}.rewound")
    staging = Folders.at(
        root, config.log_path, config.save_model_path, folders.experiment
    )
    if root.exists():
        shutil.rmtree(root)  # of a rewind that was interrupted
    try:
        _build(folders, staging, config, updates)
    except Exception:
        shutil.rmtree(root, ignore_errors=True)
        raise
    renamed = put_aside(folders)
    assert renamed == aside, "nobody else may rename here: the folder is claimed"
    root.rename(folders.root)
    fsync_folder(root.parent)
    return aside


def _build(folders: Folders, staging: Folders, config: Config, updates: int) -> None:
    """Builds the folder of the run as it was; it is complete on the disk then."""
    staging.checkpoints.mkdir(parents=True)
    staging.log.mkdir(parents=True)
    frames = 0
    for name in learners(config):
        numbered = folders.numbered_state(name, updates)
        state = checkpoint.load(numbered)
        frames = max(frames, int(state.metadata["frames"]))
        for target in (staging.state(name), staging.numbered_state(name, updates)):
            _copy(numbered, target)
        copy_rows(
            folders.learner_log(name), staging.learner_log(name), "updates", updates
        )
        if name == VALUERL:
            # Its own policy is published, and evaluated, again.
            last = int(state.metadata["epoch"]) - 1
            copy_rows(folders.scores, staging.scores, "epochs", last)
    copy_digests(folders.digests, staging.digests, updates)
    ahead = VECTOR_STEPS_AHEAD * config.agent_config.batch_size
    _copy_replay(folders, staging, updates, frames, ahead if config.is_paced else 0)
    # Its reasons stay: what is kept may have been computed under a later one.
    write_json(staging.run, {**read_run(folders), "finished": None})
    _copy(folders.hyperparameters, staging.hyperparameters)
    for folder in (staging.checkpoints, staging.log, staging.root):
        fsync_folder(folder)


def _copy(source: Path, target: Path) -> None:
    """Copies a file; it is on the disk then, its name with its folder's fsync."""
    shutil.copy2(source, target)
    with open(target, "rb") as file:
        os.fsync(file.fileno())


def finish_rewind(folders: Folders) -> None:
    """Ends a rewind that was killed.

    A complete rewound folder takes its place where the kill came between the two
    renamings: then there is the folder that was put aside for it. Any other is the
    copy of a run that went on, or that its user has removed since, and is removed.

    Raises:
        UserError: another launch has the folder, and is perhaps just going back.
    """
    if not _rewound(folders):
        return
    with claimed(folders):
        for staging, aside in _rewound(folders):
            complete = staging / folders.hyperparameters.relative_to(folders.root)
            if aside.exists() and complete.exists() and not folders.root.exists():
                staging.rename(folders.root)
                fsync_folder(staging.parent)
            else:
                shutil.rmtree(staging, ignore_errors=True)


def _rewound(folders: Folders) -> list[tuple[Path, Path]]:
    """Folders of rewinds, each with the one that is or was to be put aside for it."""
    name = re.compile(rf"\.({re.escape(folders.root.name)}\.old[0-9]+)\.rewound")
    there = folders.root.parent
    found = map(name.fullmatch, os.listdir(there) if there.is_dir() else ())
    return [(there / match[0], there / match[1]) for match in found if match]


def _copy_replay(
    folders: Folders, staging: Folders, updates: int, frames: int, ahead: int
) -> None:
    """The prefix of the present replay, or the copy made at that checkpoint.

    Args:
        folders: of the run as it is.
        staging: of the run as it was.
        updates: of the checkpoint.
        frames: that its learners have learned from.
        ahead: so many more are kept where they are there: interactors may have been
            that far, and then act with the checkpoint's own policy.
    """
    copy = folders.numbered_replay(updates)
    with ReplayBuffer.open(folders.replay) as replay:
        is_whole = replay.oldest <= max(0, frames - replay.capacity)
        if is_whole and frames <= replay.frames:
            end = replay.step_boundary(min(frames + ahead, replay.frames))
            replay.copy_to(staging.replay, max(end, replay.imported))
            return
        lost = frames - replay.frames
    if ReplayBuffer.exists(copy):
        with ReplayBuffer.open(copy) as replay:
            replay.copy_to(staging.replay)
        return
    if not is_whole:
        raise UserError(
            f"{folders.replay}: the transitions of {updates} updates have been "
            "overwritten since (keep_all_replay_buffers would have kept a copy)"
        )
    raise UserError(
        f"{folders.replay}: {lost} of the transitions of {updates} updates are lost; "
        "an earlier checkpoint may be complete"
    )


def numbered_checkpoints(folders: Folders, config: Config) -> list[int]:
    """The update counts of which all learners have a numbered checkpoint."""
    complete: set[int] | None = None
    for name in learners(config):
        found = {
            int(number)
            for path in folders.checkpoints.glob(f"{name}-*.safetensors")
            if (number := path.stem.removeprefix(f"{name}-")).isdecimal()
        }
        complete = found if complete is None else complete & found
    return sorted(complete or ())
