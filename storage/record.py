"""hps.json and run.json: how a run was configured and started."""

import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ..settings.roles import learners, process_names
from ..settings.schema import Config, limit_reached
from ..util import UserError, atomic_write
from .folders import Folders, Run, derive_seed

PACKAGES = ("tensorflow", "gymnasium", "mujoco", "numpy", "safetensors", "portalocker")
MAX_JSON_BYTES = 64 << 20


def is_finished(folders: Folders, frames: int | None, hours: float | None) -> bool:
    """Whether the run ended at a limit and reached one of these, today's."""
    reached = read_run(folders)["finished"]
    return bool(reached) and limit_reached(
        frames, hours, reached["frames"], reached["hours"]
    )


def record_start(run: Run, resumed: bool) -> None:
    """Adds a start to run.json."""
    content = read_run(run.folders)
    content["finished"] = None
    devices = {
        name: "cpu" if run.cpu_learners else run.gpus[name]
        for name in learners(run.config)
    }
    content["starts"].append(start_record(run.config, run.launch, devices, resumed))
    write_json(run.folders.run, content)


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
    write_json(folders.run, {**read_run(folders), "finished": finished})


def start_record(
    config: Config, launch: int, devices: dict[str, str], resumed: bool
) -> dict[str, Any]:
    """What `run.json` says of one start."""
    return {
        "time": now(),
        "resumed": resumed,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "devices": devices,
        "seeds": {
            name: derive_seed(config, name, launch, 0) for name in process_names(config)
        },
    }


def read_run(folders: Folders) -> dict[str, Any]:
    """run.json; for a run that has none yet, an empty one."""
    if not folders.run.exists():
        return {"experiment": folders.experiment, "starts": [], "finished": None}
    return read_json(folders.run)


def read_json(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
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


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the program's checkout, "+" behind it where files differ."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return None
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None
