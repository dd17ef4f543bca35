"""What a checkpoint holds, checked against a configuration and loaded into nets."""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..settings import loading
from ..settings.roles import VALUERL, WORLDMODEL
from ..settings.schema import PAPER_HORIZON, Config, PolicyConfig, ValueExpansion
from ..storage import checkpoint
from ..storage.checkpoint import Checkpoint
from ..storage.folders import HYPERPARAMETERS
from ..storage.record import read_json
from ..util import UserError

if TYPE_CHECKING:
    from ..envwrap import EnvSizes
    from ..settings.loading import LoadedConfig
    from ..valuerl import ValueRL
    from ..worldmodel import WorldModelProtocol

MOST_DIFFERENCES = 4  # named in one line


class LoadedCheckpoint(NamedTuple):
    """The states that belong together.

    Attributes:
        path: what was asked for, or the newest found there.
        policy: tensors "policy/w0" [O, .], ... as interactors use them.
        critic: the value learner's full state, and its file; None without one.
        model: the world model's state, and its file; None without one.
        notes: lines that the user should see.
    """

    path: Path
    policy: Checkpoint
    critic: tuple[Path, Checkpoint] | None
    model: tuple[Path, Checkpoint] | None
    notes: list[str]

    @property
    def folder(self) -> Path:
        """Where the checkpoint lies."""
        return Path(os.path.abspath(self.path)).parent


def newest(folder: Path, config: Config) -> Path:
    """The newest state in a folder of checkpoints, or in an experiment's folder.

    That is the value learner's own (its policy may be ahead of the published one),
    then the published policy, then the numbered state of most updates.

    Raises:
        UserError: there is none.
    """
    if (folder / config.save_model_path).is_dir():
        folder = folder / config.save_model_path
    numbered = {
        int(match[1]): path
        for path in folder.glob(f"{VALUERL}-*.safetensors")
        if (match := re.fullmatch(rf"{VALUERL}-(\d+)", path.stem))
    }
    candidates = [folder / f"{VALUERL}.safetensors", folder / "policy.safetensors"]
    candidates += [numbered[max(numbered)]] if numbered else []
    for path in candidates:
        if checkpoint.is_there(path):
            return path
    raise UserError(f"{folder}: there is no policy and no value learner's state here")


def load_state(path: Path, config: Config) -> tuple[Path, Checkpoint, str | None]:
    """Reads a policy's or value learner's state, or the newest one in a folder.

    Returns:
        its path, the state, and None or one line that the user should see.

    Raises:
        UserError: it cannot be read, or is a world model.
    """
    if path.is_dir():
        path = newest(path, config)
    state, warning = checkpoint.load_newest(path)
    if "policy" not in _groups(state):
        raise UserError(
            f"{path}: holds no policy; give policy.safetensors or {VALUERL}.safetensors"
        )
    return path, state, warning


def _groups(state: Checkpoint) -> set[str]:
    return {name.split("/")[0] for name in state.tensors}


def load_checkpoint(path: Path, config: Config) -> LoadedCheckpoint:
    """Reads a checkpoint and what lies next to it.

    Next to a numbered state, the world model of the same number; next to the newest
    or a policy, the newest. A policy's Q-functions are the newest next to it.

    Raises:
        UserError: one cannot be read, or is a world model.
    """
    notes: list[str] = []

    def load(path: Path) -> Checkpoint:
        state, warning = checkpoint.load_newest(path)
        notes.extend([warning] if warning else [])
        return state

    path, state, warning = load_state(path, config)
    notes.extend([warning] if warning else [])
    critic = (path, state) if "target_q" in _groups(state) else None
    beside = path.with_name(f"{VALUERL}.safetensors")
    if critic is None and beside.exists():
        critic = (beside, load(beside))
        if critic[1].metadata.get("updates") != state.metadata.get("updates"):
            notes.append(f"the values are from {beside.name}, of another update")
    model = None
    if config.has_model:
        number = re.search(r"-\d+$", path.stem)
        name = f"{WORLDMODEL}{number[0] if number else ''}.safetensors"
        if (there := path.with_name(name)).exists():
            model = (there, load(there))
        else:
            notes.append(f"there is no {name} next to {path.name}: no model is shown")
    if critic is None:
        notes.append(
            f"there is no {beside.name} next to {path.name}: no values and no weights "
            "are shown"
        )
    return LoadedCheckpoint(path, as_published(state), critic, model, notes)


def as_published(state: Checkpoint) -> Checkpoint:
    """The policy of a state, without the member axis of the learner's own."""
    tensors = {
        name: tensor[0] if tensor.ndim == (3 if "/w" in name else 2) else tensor
        for name, tensor in state.tensors.items()
        if name.startswith("policy/")
    }
    return Checkpoint(tensors, state.metadata)


def policy_shapes(
    config: PolicyConfig, sizes: "EnvSizes"
) -> dict[str, tuple[int, ...]]:
    """The tensors of a published policy, by the configuration (SPEC section 3)."""
    hidden = [config.hidden_dim] * (config.layers - 1)
    widths = [sizes.obs_dim, *hidden, sizes.action_dim]
    shapes: dict[str, tuple[int, ...]] = {}
    for i, width in enumerate(widths[1:]):
        shapes[f"policy/w{i}"] = (widths[i], width)
        shapes[f"policy/b{i}"] = (width,)
    return shapes


def differing_keys(folder: Path, loaded: "LoadedConfig") -> str | None:
    """How the run that a folder of checkpoints belongs to was configured otherwise.

    Returns:
        One line; None where they agree, or the folder is no experiment's.
    """
    path = folder.parent / loaded.config.log_path / HYPERPARAMETERS
    try:
        earlier = read_json(path)
    except UserError:
        return None
    keys = loading.changed_keys(earlier, loaded.merged)
    if not keys:
        return None
    shown = [
        f"{key} {_at(earlier, key)} there, {_at(loaded.merged, key)} here"
        for key in keys[:MOST_DIFFERENCES]
    ]
    more = len(keys) - len(shown)
    return f"this configuration is not that of {path}: " + "; ".join(
        shown + ([f"and {more} more"] if more else [])
    )


def _at(content: dict[str, Any], key: str) -> str:
    """The value at a dotted key, as JSON."""
    value: Any = content
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    text = json.dumps(value)
    return text if len(text) <= 30 else f"{text[:27]}..."


class Nets(NamedTuple):
    """The nets with their trained weights.

    Attributes:
        valuerl: None without Q-functions; with a model it gives STEVE's weights.
        world_model: None without one.
        weighting: what tables and figures call it, such as "STEVE".
        notes: lines that the user should see.
    """

    valuerl: "ValueRL | None"
    world_model: "WorldModelProtocol | None"
    weighting: str
    notes: list[str]


def weighting(config: Config) -> tuple[ValueExpansion, str | None]:
    """Whose weights are shown: the run's own where they adapt, else STEVE's.

    Returns:
        (value expansion, what to say where the run's own algorithm is another).
    """
    expansion = config.policy_config.value_expansion
    if expansion is None:
        chosen = ValueExpansion(rollout_len=PAPER_HORIZON, steve_reweight=True)
        return chosen, (
            "this configuration expands no values; the weights are those that STEVE "
            f"would give with rollout_len {PAPER_HORIZON}"
        )
    if expansion.entry.adaptive:
        return expansion, None
    chosen = ValueExpansion(rollout_len=expansion.rollout_len, steve_reweight=True)
    return chosen, (
        f"this configuration's algorithm is {config.algorithm}; the weights are those "
        "that STEVE would give"
    )


def build_nets(config: Config, sizes: "EnvSizes", trained: LoadedCheckpoint) -> Nets:
    """Makes the nets and gives them their trained weights; imports TensorFlow.

    Raises:
        CheckpointError: a state does not fit the configuration.
    """
    import tensorflow as tf

    from ..learner import assign
    from ..valuerl import Task, ValueRL
    from ..worldmodel import build_world_model

    generator = tf.random.Generator.from_seed(0)  # every weight is then replaced
    notes = []
    world_model = valuerl = None
    expansion, other = weighting(config)
    if trained.model:
        world_model = build_world_model(
            config.model_section, sizes.obs_dim, sizes.action_dim, generator
        )
        assign(*trained.model, world_model.named_variables())
    if trained.critic:
        notes += [other] if other and world_model else []
        used = {"value_expansion": expansion if world_model else None}
        valuerl = ValueRL(
            config.policy_config.model_copy(update=used),
            Task(
                sizes.obs_dim,
                sizes.action_dim,
                config.env.discount,
                config.env.reward_scale,
            ),
            generator,
            world_model,
        )
        assign(*trained.critic, valuerl.named_variables())
        for name, variable in valuerl.policy.named_variables().items():
            variable.assign(trained.policy.tensors[f"policy/{name}"][None])
        if world_model and not config.has_ensembles:
            notes.append(
                "without ensembles all variances are 0: the weights are uniform"
            )
    return Nets(valuerl, world_model, expansion.title, notes)
