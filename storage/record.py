"""hps.json and run.json: how a run was configured and started."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import portalocker

from ..settings.roles import learners, process_names, process_seed
from ..settings.schema import Config, limit_reached
from ..util import UserError, atomic_write, regular_opener
from .conditions import are_conditions, changes, conditions, differences
from .folders import Folders, Run

MAX_JSON_BYTES = 64 << 20


def is_finished(folders: Folders, frames: int | None, hours: float | None) -> bool:
    """Whether the run ended at a limit and reached one of these, today's."""
    reached = read_run(folders)["finished"]
    return bool(reached) and limit_reached(
        frames, hours, reached["frames"], reached["hours"]
    )


def record_start(
    run: Run,
    resumed: bool,
    frames: int = 0,
    weighting: Mapping[str, Any] | None = None,
) -> None:
    """Adds a start to run.json, and why it cannot be repeated.

    Args:
        run: what is started.
        resumed: whether it continues an earlier launch.
        frames: that are there.
        weighting: as of `ValueExpansion.description`.
    """
    with _locked(run.folders) as content:
        if weighting is not None:
            content["weighting"] = dict(weighting)
        earlier = content["starts"][-1:] if frames else []
        _append_start(content, run, resumed)
        for start in earlier:
            for why in differences(start, content["starts"][-1]):
                _add_nondeterminism(content, frames, why)


def record_computing(
    folders: Folders, name: str, computing: Mapping[str, Any]
) -> list[str]:
    """Says in run.json how a learner computes in this launch.

    Returns:
        what was different in the last launch before it that says it of this learner.
    """
    with _locked(folders) as content:
        if not content["starts"]:
            return []
        *earlier, last = (start.get("computing", {}) for start in content["starts"])
        content["starts"][-1]["computing"] = {**last, name: dict(computing)}
        before = [each[name] for each in earlier if name in each]
        return changes(before[-1], computing) if before else []


def _append_start(content: dict[str, Any], run: Run, resumed: bool) -> None:
    content["finished"] = None
    devices = {
        name: "cpu" if run.cpu_learners else run.gpus[name]
        for name in learners(run.config)
    }
    content["starts"].append(describe_start(run.config, devices, resumed))
    for why in run.config.sources_of_nondeterminism:
        _add_nondeterminism(content, 0, why)
    if not (run.cpu_learners or run.config.deterministic):
        _add_nondeterminism(
            content, 0, "a GPU decides the order of sums (deterministic false)"
        )


def record_finish(
    folders: Folders, frames: int, hours: float, random_score: float | None
) -> None:
    """Says in run.json that the run reached its limit, and where."""
    finished = {
        "time": now(),
        "frames": frames,
        "hours": hours,
        "random_score": random_score,
    }
    with _locked(folders) as content:
        content["finished"] = finished


def record_end(folders: Folders, code: int, why: str | None) -> None:
    """Says in run.json how the last launch ended; before that, its "ended" is null.

    Args:
        folders: of the run.
        code: the launcher's exit code.
        why: the last line of its error; None where there was none.
    """
    with _locked(folders) as content:
        if not content["starts"]:  # its user has removed run.json
            return
        content["starts"][-1]["ended"] = {"time": now(), "code": code, "why": why}


def was_killed(start: Any) -> bool:
    """Whether a launch that is over did not say how, by its start in run.json."""
    return isinstance(start, dict) and start.get("ended", "unknown") is None


def record_nondeterminism(folders: Folders, frame: int, why: str) -> None:
    """Says in run.json that the run cannot be repeated from a frame on, and why."""
    with _locked(folders) as content:
        _add_nondeterminism(content, frame, why)


def _add_nondeterminism(content: dict[str, Any], frame: int, why: str) -> None:
    """A reason counts once, from the first frame at which it was met."""
    reasons = content.setdefault("not_reproducible", [])
    if all(each["why"] != why for each in reasons):
        reasons.append({"from_frame": frame, "why": why})


def reasons_of(content: Mapping[str, Any]) -> list[str]:
    """Why a run cannot be repeated, by its run.json: a line for the user each."""
    return [
        f"from frame {each['from_frame']:,} on this run cannot be repeated to the "
        f"bit: {each['why']}"
        for each in content.get("not_reproducible", [])
    ]


@contextmanager
def _locked(folders: Folders) -> Iterator[dict[str, Any]]:
    """The content of run.json, to be changed; all processes of a run may do that."""
    folder = os.open(folders.log, os.O_RDONLY | os.O_DIRECTORY)
    try:
        portalocker.lock(folder, portalocker.LockFlags.EXCLUSIVE)
        content = read_run(folders)
        yield content
        write_json(folders.run, content)
    finally:
        os.close(folder)


def describe_start(
    config: Config, devices: dict[str, str], resumed: bool
) -> dict[str, Any]:
    """What `run.json` says of one start."""
    return {
        "time": now(),
        "resumed": resumed,
        "ended": None,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "host": platform.node(),
        **conditions(),
        "commit": program_commit(),
        "devices": devices,
        "precision": config.precision,
        "seeds": {name: process_seed(config, name) for name in process_names(config)},
    }


def read_run(folders: Folders) -> dict[str, Any]:
    """run.json; for a run that has none yet, an empty one.

    Raises:
        UserError: it cannot be read, or is none of ours.
    """
    if not folders.run.exists():
        return {"experiment": folders.experiment, "starts": [], "finished": None}
    content = read_json(folders.run)
    if not _is_record(content):
        raise UserError(
            f"{folders.run} is no record of a run; rename it, and the run resumes "
            "with a new one"
        )
    return content


def _is_record(content: dict[str, Any]) -> bool:
    """Whether what is read of a run.json is there and has the right type."""
    try:
        reached = content["finished"]
        numbers = (reached["frames"], reached["hours"]) if reached else ()
        reasons = content.get("not_reproducible", [])
        return (
            isinstance(content["starts"], list)
            and isinstance(reasons, list)
            and all(map(are_conditions, content["starts"]))
            and all(isinstance(number, int | float) for number in numbers)
            and all(isinstance(each["why"], str) for each in reasons)
            and all(isinstance(each["from_frame"], int) for each in reasons)
        )
    except (KeyError, TypeError):
        return False


def read_json(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb", opener=regular_opener) as file:
            content = json.loads(file.read(MAX_JSON_BYTES))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing, so how the run was configured is not known; "
            "--overwrite puts its folder aside"
        ) from None
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} cannot be read, or is not a JSON object")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    atomic_write(path, (json.dumps(content, indent=2) + "\n").encode())


def now() -> str:
    """The time in UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def program_commit() -> str | None:
    """The commit of the program's checkout, "+" behind it where files differ."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return None
    # safe.directory: git else refuses a checkout of another owner.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    described = subprocess.run(
        [
            *("git", "-c", "safe.directory=*"),
            *("describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"),
        ],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None
