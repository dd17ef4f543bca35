"""How a launch opens an experiment's folder: checks what is there and mends it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..replay import ReplayBuffer
from ..settings.interface import EnvSizes
from ..settings.loading import changes
from ..settings.request import Request, Start
from ..settings.roles import learners
from ..settings.schema import AgentConfig, Config
from ..util import RunError, UserError, one_line
from . import checkpoint, mending
from .datasets import check_dataset
from .disk import network_filesystem
from .fitting import check_fits
from .folders import ASIDE, Folders, Run
from .locks import claimed, in_use, unwritable
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
from .rewind import finish_rewind, put_aside, rewind


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
    """What a child process measured; it imports the user's modules.

    Attributes:
        env: the environment's sizes.
        weighting: as of `ValueExpansion.description`.
        env_modules: as of `Run`.
    """

    env: EnvSizes
    weighting: Mapping[str, Any] | None = None
    env_modules: tuple[str, ...] = ()


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
    measured, weighting, env_modules = measure(config)
    config = config.with_weighting(weighting)
    notes = check_fits(config, measured, folders, on_gpus=bool(gpus))
    is_new = request.start is Start.OVERWRITE or not ReplayBuffer.exists(folders.replay)
    if config.initial_dataset and is_new:
        assert measured.interface is not None  # the environment was asked
        check_dataset(config, measured.interface)
    with claimed(folders) as hold:
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
        if resumes:
            notes += _changes(folders, merged)
        notes += _notes_on_environment(config, measured)
        notes += _moved_aside(request, folders)
        run = Run(
            config=config,
            folders=folders,
            obs_dim=measured.obs_dim,
            action_dim=measured.action_dim,
            launch=len(read_run(folders)["starts"]),
            cpu_learners=not gpus,
            gpus=gpus,
            interface=measured.interface,
            env_modules=env_modules,
        )
        with ExitStack() as ends:
            try:
                known = len(reasons_of(read_run(folders)))
                with removed_if_it_fails(folders):
                    hold()
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
            yield run


def _changes(folders: Folders, merged: dict[str, Any]) -> list[str]:
    """A line that names what this launch has otherwise than the one before."""
    found = changes(read_json(folders.hyperparameters), merged, on_resume=True)
    return [f"changed since the last launch: {', '.join(found)}"] if found else []


def _notes_on_environment(config: Config, measured: EnvSizes) -> list[str]:
    """Lines about what may be a mistake in how the environment is configured."""
    notes = []
    reach = measured.interface.reach_note() if measured.interface else None
    if reach:
        notes.append(f"{config.env.name}: {reach}")
    if config.env.entry_point and config.env.inertia:
        notes.append("env.inertia has no effect on an env.entry_point")
    return notes


def _moved_aside(request: Request, folders: Folders) -> list[str]:
    """Puts aside what --overwrite and --resume-from ask to; lines about it.

    Raises:
        UserError: there is no state of that number of updates.
    """
    if request.start is Start.OVERWRITE and has_output(folders):
        return [f"the earlier output is now {put_aside(folders)}"]
    if request.rewind_to is None:
        return []
    aside = rewind(folders, request.loaded.config, request.rewind_to)
    return [f"resuming from {request.rewind_to} updates; what came later is in {aside}"]


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

    The corrected call then starts as if nothing had been tried. What anybody else has
    put there stays, also meanwhile, and so does output: it can be resumed.
    """
    if has_output(folders):
        yield
        return
    made = [path for path in _made_folders(folders) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in (folders.run, folders.hyperparameters):
            with suppress(OSError):
                path.unlink()
        mending.remove_new_replay(folders)
        for path in made:
            with suppress(OSError):  # something else is in it
                path.rmdir()
        raise


def _made_folders(folders: Folders) -> list[Path]:
    """The folders of an experiment, each before the one that it is in."""
    found = {folders.root}
    for folder in (folders.checkpoints, folders.log / "processes"):
        inside = [p for p in folder.parents if p.is_relative_to(folders.root)]
        found |= {folder, folder.parent, *inside}
    return sorted(found, reverse=True)


def check_mode(folders: Folders, merged: dict[str, Any], start: Start) -> bool:
    """Refuses a start that does not say what is meant with what is there.

    Args:
        folders: the experiment's.
        merged: the configuration of this launch.
        start: what is to become of earlier output.

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
    if changed := changes(earlier, merged):
        raise UserError(
            f"the configuration differs from that of the run in {folders.root}: "
            f"{', '.join(changed)}; give the run's values, or choose another name (of "
            "the file, or --name) or output_root"
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
        for folder in reversed(_made_folders(folders)):
            folder.mkdir(parents=True, exist_ok=True)
        if kind := network_filesystem(folders.root):
            notes.append(
                f"{folders.root} is on a network filesystem ({kind}): a run of one "
                "host is safe there; that a launch on another host is refused, or "
                "leaves this run unharmed, is not promised"
            )
        before = _interactors_before(folders)
        mending.remove_temporary_files(folders)
        notes += mending.rename_scores(folders)
        mending.check_whole(run)
        write_json(folders.hyperparameters, merged)
        notes += mending.mend_tables(run)
        notes += mending.mend_replay(run)
        notes += mending.check_states(run)
        notes += mending.put_aside_published(run)
        mending.adopt_files(run)
        _record_changes(run, before)
    except OSError as error:
        raise unwritable(error, folders) from None
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
