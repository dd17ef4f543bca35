"""Whether a run fits into this machine's memory and onto its disk.

The estimates are lower bounds: weights, gradients, Adam's two moments, and the arrays
of one batch, all float32. A run that is refused could not have made its first update.
"""

import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from ..batch import row_width
from ..replay_file import file_bytes
from ..settings.interface import EnvSizes
from ..settings.roles import VALUERL, WORLDMODEL
from ..settings.schema import SINGLE_NET, Config
from ..util import UserError
from .checkpoint import MAX_FILE_BYTES
from .folders import Folders

FLOAT = 4  # bytes
TRAINED = 4  # a weight, its gradient and two moments
STATE = 3  # a weight and two moments
STATES = 3  # files of a learner's state at the worst moment: newest, previous, next
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def check_fits(
    config: Config, spec: EnvSizes, folders: Folders, on_gpus: bool
) -> list[str]:
    """Refuses a run that cannot fit; says where it may not.

    Args:
        config: of the run.
        spec: the environment's sizes.
        folders: where its output goes.
        on_gpus: whether the learners compute there; then what they need of this
            memory is a copy of their states.

    Returns:
        lines for the user.

    Raises:
        UserError: the learners need more memory than there is, a learner's state is
            larger than a file of it may be, or the replay buffer cannot have such rows.
    """
    needed = sum(learner_bytes(config, spec, on_gpus).values())
    memory, available = memory_bytes()
    if needed > memory:
        raise UserError(
            f"the learners need at least {_size(needed)} of memory, and this machine "
            f"has {_size(memory)}: choose smaller nets, ensembles or batches"
        )
    state = max(state_bytes(config, spec).values())
    if state > MAX_FILE_BYTES:
        raise UserError(
            f"a learner's state would have at least {_size(state)}, and its file may "
            f"have {_size(MAX_FILE_BYTES)}: choose smaller nets or ensembles"
        )
    notes = []
    if needed > available:
        notes.append(
            f"the learners need at least {_size(needed)} of memory, and "
            f"{_size(available)} are available"
        )
    disk, free = disk_bytes(config, spec), free_bytes(folders)
    if disk > free:
        notes.append(
            f"the output may need {_size(disk)}, and {_size(free)} are free in "
            f"{folders.root}: policy_config.replay_size and --frames bound it"
        )
    return notes


# ---- what is needed -----------------------------------------------------------------


def parameters(config: Config, spec: EnvSizes) -> dict[str, int]:
    """How many weights each learner trains; 0 for a world model of a user's kind."""
    policy, model = config.policy_config, config.world_model_config
    obs, action = spec.obs_dim, spec.action_dim
    hidden, layers = policy.hidden_dim, policy.layers
    members = (policy.bayesian or SINGLE_NET).ensemble_size
    found: dict[str, int] = {
        VALUERL: _net(obs, hidden, action, layers)
        + members * _net(obs + action, hidden, 1, layers)
    }
    if model is not None:
        found[WORLDMODEL] = 0
    if model is not None and model.kind == "ensemble":
        sizes = model.bayesian
        transition = (sizes.transition if sizes else SINGLE_NET).ensemble_size
        reward = (sizes.reward if sizes else SINGLE_NET).ensemble_size
        main = _net(
            obs + action, model.transition_hidden_dim, obs, model.transition_layers
        )
        aux = _net(2 * obs + action, model.aux_hidden_dim, 1, model.aux_layers)
        found[WORLDMODEL] = transition * (main + aux) + reward * aux
    return found


def learner_bytes(config: Config, spec: EnvSizes, on_gpus: bool) -> dict[str, int]:
    """Bytes of memory that each learner needs at least."""
    weights = parameters(config, spec)
    if on_gpus:
        return {name: FLOAT * STATES * count for name, count in weights.items()}
    needed = {name: FLOAT * TRAINED * count for name, count in weights.items()}
    row = row_width(spec.obs_dim, spec.action_dim)
    policy, model = config.policy_config, config.world_model_config
    layers = policy.hidden_dim * (policy.layers - 1)
    samples = 0
    if policy.value_expansion and model is not None:
        needed[VALUERL] += FLOAT * weights[WORLDMODEL]  # a copy, which it imagines with
        samples = (policy.value_expansion.rollout_len + 1) * _samples(config)
    rows = policy.batch_size * (policy.updates_per_call or 1)
    needed[VALUERL] += FLOAT * (rows * row + policy.batch_size * (layers + samples))
    if model is not None:
        layers = model.transition_hidden_dim * (model.transition_layers - 1)
        rows = model.batch_size * (model.updates_per_call or 1)
        needed[WORLDMODEL] += FLOAT * rows * row
        if model.kind == "ensemble":
            needed[WORLDMODEL] += FLOAT * model.batch_size * layers
    return needed


def state_bytes(config: Config, spec: EnvSizes) -> dict[str, int]:
    """Bytes of each learner's state at least: weights and moments."""
    return {
        name: FLOAT * STATE * count for name, count in parameters(config, spec).items()
    }


def disk_bytes(config: Config, spec: EnvSizes) -> int:
    """Bytes of the replay buffer when it is full, or at the limit, and of the states.

    Raises:
        UserError: the replay buffer cannot have such rows.
    """
    rows = config.replay_capacity
    if config.total_frames is not None:
        rows = min(rows, config.total_frames)
    try:
        replay = file_bytes(spec.obs_dim, spec.action_dim, rows)
    except ValueError as error:
        raise UserError(f"the replay buffer: {error}") from None
    return replay + STATES * sum(state_bytes(config, spec).values())


def _net(inputs: int, hidden: int, outputs: int, layers: int) -> int:
    widths = [inputs, *[hidden] * (layers - 1), outputs]
    return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(widths))


def _samples(config: Config) -> int:
    """Samples of a candidate target: M * N * L."""
    policy, model = config.policy_config.bayesian, config.model_section.bayesian
    count = policy.eval_sample_count if policy else 1
    if model:
        count *= model.transition.eval_sample_count * model.reward.eval_sample_count
    return count


# ---- what is there ------------------------------------------------------------------


def memory_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> tuple[int, int]:
    """Bytes of memory that this process may use, swap included; those available now.

    A limit of the process's control groups, as Slurm and containers set it, counts.
    """
    info = dict(re.findall(r"(\w+):\s+(\d+) kB", (proc / "meminfo").read_text()))
    kilobytes: Mapping[str, int] = {name: int(value) for name, value in info.items()}
    swap = kilobytes.get("SwapTotal", 0)
    limit = min([1024 * (kilobytes["MemTotal"] + swap), *_limits(proc, cgroups)])
    return limit, min(limit, 1024 * kilobytes.get("MemAvailable", limit))


def _limits(proc: Path, cgroups: Path) -> list[int]:
    """Memory limits of the control groups around this process, version 1 or 2."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        root = cgroups / controllers
        folder = root / group.lstrip("/")
        for place in (folder, *folder.parents):
            text = _content(place / name)
            found += [int(text)] if text.isdecimal() else []  # "max": none
            if place == root:
                break
    return found


def _content(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def free_bytes(folders: Folders) -> int:
    """Bytes that this run may still fill, those that it has filled included."""
    place = folders.root.absolute()
    there = next(each for each in (place, *place.parents) if each.exists())
    own = 0
    for path in place.rglob("*"):
        with suppress(FileNotFoundError):  # a launch is at work there
            own += path.stat().st_blocks * 512 if path.is_file() else 0
    return shutil.disk_usage(there).free + own


def _size(count: int) -> str:
    """1.5 GiB, and so on."""
    power = min((max(count, 1).bit_length() - 1) // 10, len(UNITS) - 1)
    return f"{count / 1024**power:,.4g} {UNITS[power]}"
