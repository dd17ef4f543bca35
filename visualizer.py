"""Shows what was learned: python visualizer.py CONFIG.json GPU_ID CHECKPOINT

Runs greedy episodes with a trained policy, prints length and score of each, and writes
a table and a video of them. With Q-functions it compares the value estimate with what
was then earned; with a world model it also shows the weights w_0 .. w_H that STEVE
gives along the episodes, and how the model's error grows with the rollout (SPEC
section 11).

Nothing is drawn at random beside the environment's resets: targets and predictions use
all members of the ensembles.

Dimension letters: T visited transitions, H horizon (H + 1 weights), K steps of the
model's rollout, B rollouts, M transition models, N reward models, L Q-functions,
O observation, A action.
"""

# No TensorFlow at the top: the child that renders imports this file again.
import argparse
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

import checkpoint
import configuration
import devices
from checkpoint import Checkpoint
from episodes import Episode, EpisodeError, EpisodeRunner, Video, redirected
from replay import Batch
from schema import Config, PolicyConfig, ValueExpansion
from status import VALUERL, WORLDMODEL
from util import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from configuration import LoadedConfig
    from envwrap import EnvSpec
    from valuerl import ValueRL
    from worldmodel import WorldModel

BINS = 10
LONGEST_ROLLOUT = 10  # of the model's error, where the configuration's is shorter
DEFAULT_HORIZON = 3  # the paper's, where the configuration expands no values
MOST_ROLLOUTS = 4000  # for the model's error, evenly spread over the episodes
ROWS_AT_ONCE = 500
MOST_DIFFERENCES = 4  # named in one line
OUTPUT_NAME = "visualizer"
OUTPUT_ELSEWHERE = Path("visualizer-output")


# ---- What was asked for -------------------------------------------------------------


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with the command line in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} ({self.prog} --help explains)\n")


def whole_number(lowest: int, highest: int) -> Callable[[str], int]:
    """An argparse type: an integer in lowest .. highest."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) <= highest:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not an integer in {lowest} .. {highest}"
            )
        return int(text)

    return parse


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="visualizer.py",
        description="Runs a trained policy; writes a video, tables and pictures.",
        epilog="example: python visualizer.py config/quickstart.json cpu "
        "output/InvertedPendulum-v5/quickstart/checkpoints",
    )
    option = parser.add_argument
    option("config", metavar="CONFIG.json", help="experiment file")
    option("gpu_id", metavar="GPU_ID", help='GPU that computes, from 0, or "cpu"')
    option(
        "checkpoint",
        metavar="CHECKPOINT",
        type=Path,
        help="a policy's or value learner's checkpoint, or an experiment's folder of "
        "checkpoints, whose newest is taken",
    )
    option("--episodes", type=whole_number(1, 10**4), default=5, metavar="N")
    option(
        "--out",
        type=Path,
        metavar="DIR",
        help="a folder that is not there yet; by default "
        f'"{OUTPUT_NAME}" in the experiment\'s folder, with a number if that is taken',
    )
    option("--video", choices=("mp4", "gif", "none"), default="mp4")
    option(
        "--seed",
        type=whole_number(0, 2**63),
        default=0,
        metavar="S",
        help="of the environment's resets",
    )
    option(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="replace values of the configuration, as for main.py",
    )
    return parser.parse_args(arguments)


# ---- Checkpoints --------------------------------------------------------------------


class Trained(NamedTuple):
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
        if path.exists() or checkpoint.previous_path(path).exists():
            return path
    raise UserError(f"{folder}: there is no policy and no value learner's state here")


def load_trained(path: Path, config: Config) -> Trained:
    """Reads a checkpoint and what lies beside it.

    Beside a numbered state, the world model of the same number; beside the newest or a
    policy, the newest. A policy's Q-functions are the newest beside it.

    Raises:
        UserError: one cannot be read, or is a world model.
    """
    notes: list[str] = []

    def load(path: Path) -> Checkpoint:
        state, warning = checkpoint.load_newest(path)
        notes.extend([warning] if warning else [])
        return state

    if path.is_dir():
        path = newest(path, config)
    state = load(path)
    groups = {name.split("/")[0] for name in state.tensors}
    if "policy" not in groups:
        raise UserError(
            f"{path}: holds no policy; give policy.safetensors or {VALUERL}.safetensors"
        )
    critic = (path, state) if "target_q" in groups else None
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
            notes.append(f"there is no {name} beside {path.name}: no model is shown")
    if critic is None:
        notes.append(
            f"there is no {beside.name} beside {path.name}: no values and no weights "
            "are shown"
        )
    return Trained(path, _as_published(state), critic, model, notes)


def _as_published(state: Checkpoint) -> Checkpoint:
    """The policy of a state, without the member axis of the learner's own."""
    tensors = {
        name: tensor[0] if tensor.ndim == (3 if "/w" in name else 2) else tensor
        for name, tensor in state.tensors.items()
        if name.startswith("policy/")
    }
    return Checkpoint(tensors, state.metadata)


def policy_shapes(config: PolicyConfig, sizes: "EnvSpec") -> dict[str, tuple[int, ...]]:
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
    path = folder.parent / loaded.config.log_path / "hps.json"
    try:
        earlier = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(earlier, dict):
        return None
    keys = configuration.changed_keys(earlier, loaded.merged)
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


# ---- What the nets say of the episodes ----------------------------------------------


class Nets(NamedTuple):
    """The nets with their trained weights.

    Attributes:
        valuerl: None without Q-functions; with a model it gives STEVE's weights.
        world_model: None without one.
        weighting: "STEVE" or "COV-STEVE".
        notes: lines that the user should see.
    """

    valuerl: "ValueRL | None"
    world_model: "WorldModel | None"
    weighting: str
    notes: list[str]


def weighting(config: Config) -> tuple[ValueExpansion, str | None]:
    """Whose weights are shown: STEVE's, with covariances where the run has them.

    Returns:
        (value expansion, what to say where the run's own algorithm is another).
    """
    expansion = config.policy_config.value_expansion
    if expansion is None:
        chosen = ValueExpansion(rollout_len=DEFAULT_HORIZON, steve_reweight=True)
        return chosen, (
            "this configuration expands no values; the weights are those that STEVE "
            f"would give with rollout_len {DEFAULT_HORIZON}"
        )
    if expansion.steve_reweight:
        return expansion, None
    kinds = {
        "MVE-TDk": expansion.tdk_trick,
        "mean-MVE": expansion.mean_k_return,
        "TD-lambda MVE": expansion.lambda_return is not False,
    }
    kind = next((name for name, is_on in kinds.items() if is_on), "MVE")
    other = {"tdk_trick": False, "mean_k_return": False, "lambda_return": False}
    chosen = expansion.model_copy(update={**other, "steve_reweight": True})
    return chosen, (
        f"this configuration's algorithm is {kind}; the weights are those that STEVE "
        "would give"
    )


def build_nets(config: Config, sizes: "EnvSpec", trained: Trained) -> Nets:
    """Makes the nets and gives them their trained weights; imports TensorFlow.

    Raises:
        CheckpointError: a state does not fit the configuration.
    """
    import tensorflow as tf

    from valuerl import ValueRL
    from worldmodel import WorldModel

    generator = tf.random.Generator.from_seed(0)  # every weight is then replaced
    notes = []
    world_model = valuerl = None
    expansion, other = weighting(config)
    if trained.model:
        world_model = WorldModel(
            config.world_model_config, sizes.obs_dim, sizes.action_dim, generator
        )
        _take_up(*trained.model, world_model.named_variables())
    if trained.critic:
        notes += [other] if other and world_model else []
        used = {"value_expansion": expansion if world_model else None}
        valuerl = ValueRL(
            config.policy_config.model_copy(update=used),
            sizes.obs_dim,
            sizes.action_dim,
            config.env.discount,
            config.env.reward_scale,
            generator,
            world_model,
        )
        _take_up(*trained.critic, valuerl.named_variables())
        for name, variable in valuerl.policy.named_variables().items():
            variable.assign(trained.policy.tensors[f"policy/{name}"][None])
        nets = (world_model.transition, world_model.reward) if world_model else ()
        if nets and all(net.ensemble_size == 1 for net in (valuerl.q, *nets)):
            notes.append(
                "without ensembles all variances are 0: the weights are uniform"
            )
    name = "COV-STEVE" if expansion.covariances else "STEVE"
    return Nets(valuerl, world_model, name, notes)


def _take_up(path: Path, state: Checkpoint, variables: dict[str, Any]) -> None:
    """Assigns the nets' tensors of a state; those of optimisers are left out."""
    from learner import assign

    groups = {name.split("/")[0] for name in variables}
    ours = {n: t for n, t in state.tensors.items() if n.split("/")[0] in groups}
    shapes = {name: tuple(v.shape) for name, v in variables.items()}
    checkpoint.check_tensors(path, Checkpoint(ours, state.metadata), shapes)
    assign(path, state, variables)


class Judged(NamedTuple):
    """What the nets say of the transitions of one episode.

    Attributes:
        value: Q(s_t, a_t), mean over its members, [T].
        value_std: standard deviation over the members, [T].
        final_value: the same mean for what follows the last step; 0 after a
            termination.
        target: sum_h w_h mu_h, [T]; None without a model.
        weights: w_0 .. w_H, [T, H+1]; None without a model.
    """

    value: np.ndarray
    value_std: np.ndarray
    final_value: float
    target: np.ndarray | None
    weights: np.ndarray | None


def judge(valuerl: "ValueRL", episode: Episode) -> Judged:
    """Values, targets and weights along an episode, with all members."""
    import tensorflow as tf

    import nn
    from valuerl import Choice, weighted_target
    from worldmodel import ModelMembers

    q = valuerl.q(tf.concat([episode.obs, episode.action], -1)[None])[..., 0]  # [L, T]
    last = tf.constant(episode.next_obs[-1:])
    final = valuerl.q(tf.concat([last, valuerl.action(last)], -1)[None])
    targets, weights = [], []
    for rows in _chunks(episode.length) if valuerl.world_model else ():
        batch = Batch(
            obs=tf.constant(episode.obs[rows]),
            action=tf.constant(episode.action[rows]),
            reward=tf.constant(episode.reward[rows], tf.float32),
            next_obs=tf.constant(episode.next_obs[rows]),
            terminated=tf.constant(_terminated(episode)[rows]),
        )
        every = Choice(None, nn.interleaved_shares(1, 1), ModelMembers(None, None))
        candidates = valuerl.candidates(valuerl.imagine(batch, every))
        weights.append(valuerl.weights(candidates))
        targets.append(weighted_target(candidates, weights[-1]))
    return Judged(
        value=np.mean(q, axis=0),
        value_std=np.std(q, axis=0),
        final_value=0.0 if episode.terminated else float(np.mean(final)),
        target=np.concatenate(targets) if targets else None,
        weights=np.concatenate(weights) if weights else None,
    )


def _terminated(episode: Episode) -> np.ndarray:
    """d of each transition, [T]: 1 only where the environment ended the episode."""
    terminated = np.zeros(episode.length, np.float32)
    terminated[-1] = episode.terminated
    return terminated


def _chunks(rows: int) -> Iterator[slice]:
    for start in range(0, rows, ROWS_AT_ONCE):
        yield slice(start, min(start + ROWS_AT_ONCE, rows))


def discounted_returns(
    rewards: np.ndarray, discount: float, reward_scale: float, final_value: float = 0.0
) -> np.ndarray:
    """What was earned from each step on, G_t = reward_scale r_t + discount G_{t+1}.

    Args:
        rewards: r_0 .. r_{T-1}, [T].
        discount: in [0, 1].
        reward_scale: factor of the rewards.
        final_value: G_T, what stands for the time after the last step.

    Returns:
        G_0 .. G_{T-1}, [T].
    """
    returns = np.empty(len(rewards))
    following = final_value
    for t in reversed(range(len(rewards))):
        following = reward_scale * rewards[t] + discount * following
        returns[t] = following
    return returns


class Histogram(NamedTuple):
    """How often each weight was seen in each of ten bins.

    Attributes:
        edges: [11]. A bin holds its lower edge, the last one both.
        is_open: COV-STEVE's weights may be negative or above 1; then the bins are
            between the 5% and 95% quantiles, and the outer ones hold all beyond.
        counts: [H+1, 10].
        mean: of each weight, [H+1].
        left_out: transitions whose weights are not finite.
    """

    edges: np.ndarray
    is_open: bool
    counts: np.ndarray
    mean: np.ndarray
    left_out: int


def weight_histogram(weights: np.ndarray) -> Histogram:
    """The histogram over ten bins of w_0 .. w_H, [T, H+1]."""
    finite = np.isfinite(weights).all(axis=1)
    kept = weights[finite].astype(np.float64)
    low, high = 0.0, 1.0
    rounding = 1e-5
    is_open = bool(((kept < low - rounding) | (kept > high + rounding)).any())
    if is_open:
        low, high = np.quantile(kept, (0.05, 0.95))
    # Rounded, so that 0.3 lies in 0.3 .. 0.4.
    edges = np.round(np.linspace(low, high, BINS + 1), 10)
    inside = np.clip(kept, edges[0], edges[-1])
    counts = np.stack([np.histogram(column, edges)[0] for column in inside.T])
    mean = kept.mean(axis=0) if len(kept) else np.full(kept.shape[1], np.nan)
    return Histogram(edges, is_open, counts, mean, int((~finite).sum()))


# ---- The model's error against the horizon of its rollout ---------------------------


class Rollouts(NamedTuple):
    """Real stretches of the episodes, one from each of B visited states.

    Attributes:
        obs: where they start, [B, O].
        action: [B, K, A].
        reward: [B, K].
        next_obs: [B, K, O].
        terminated: [B, K].
        is_real: whether the episode had that step, [B, K]; the rest is filled up.
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_obs: np.ndarray
    terminated: np.ndarray
    is_real: np.ndarray


def cut_rollouts(
    episodes: Sequence[Episode], steps: int, most: int = MOST_ROLLOUTS
) -> Rollouts:
    """Stretches of up to `steps` steps from every visited state.

    Of more than `most` states, so many are taken at even distances.
    """
    starts = [(e, t) for e, ep in enumerate(episodes) for t in range(ep.length)]
    if len(starts) > most:
        taken = np.linspace(0, len(starts) - 1, most).round().astype(int)
        starts = [starts[i] for i in taken]
    parts = []
    for e, t in starts:
        episode = episodes[e]
        wanted = np.arange(t, t + steps)
        index = np.minimum(wanted, episode.length - 1)
        parts.append(
            Rollouts(
                episode.obs[t],
                episode.action[index],
                episode.reward[index].astype(np.float32),
                episode.next_obs[index],
                _terminated(episode)[index],
                wanted < episode.length,
            )
        )
    return Rollouts(*(np.stack(column) for column in zip(*parts, strict=True)))


class Predicted(NamedTuple):
    """The model's rollout; S is the number of predictions, M or M N.

    Attributes:
        obs: [B, K, M, O].
        reward: [B, K, M N].
        termination: probability of ending with that step, [B, K, M].
    """

    obs: np.ndarray
    reward: np.ndarray
    termination: np.ndarray


def predict(
    model: "WorldModel", start_obs: np.ndarray, actions: np.ndarray
) -> Predicted:
    """Rolls every member out along real actions (SPEC section 5, without a policy).

    Args:
        model: the world model.
        start_obs: [B, O].
        actions: [B, K, A].
    """
    import tensorflow as tf

    from worldmodel import ModelMembers

    every = ModelMembers(None, None)
    obs = tf.constant(start_obs)[None]  # [1, B, O]; from the second step [M, B, O]
    states, rewards, terminations = [], [], []
    for k in range(actions.shape[1]):
        action = tf.repeat(tf.constant(actions[:, k])[None], len(obs), axis=0)
        next_obs = model.next_obs(obs, action, every)  # [M, B, O]
        models, rows = next_obs.shape[:2]
        before = tf.broadcast_to(obs, next_obs.shape)
        action = tf.broadcast_to(action, [models, *action.shape[1:]])  # [M, B, A]
        flat = [tf.reshape(x, [models * rows, -1]) for x in (next_obs, before, action)]
        reward = tf.reshape(model.rewards(*flat, every), [-1, rows])  # [N*M, B]
        rewards.append(tf.transpose(reward))
        probability = model.termination_prob(next_obs, before, action, every)  # [M, B]
        terminations.append(tf.transpose(probability))
        states.append(tf.transpose(next_obs, [1, 0, 2]))
        obs = next_obs
    return Predicted(
        *(np.stack(steps, axis=1) for steps in (states, rewards, terminations))
    )


class Errors(NamedTuple):
    """Root mean squares at each step k = 1 .. K of the rollout, each [K].

    Attributes:
        error: of (mean over the members - what really came).
        spread: of the standard deviation over the members.
        trivial: of (a prediction without any model - what really came).
    """

    error: np.ndarray
    spread: np.ndarray
    trivial: np.ndarray


def squares(
    predicted: np.ndarray, real: np.ndarray, trivial: np.ndarray, is_real: np.ndarray
) -> np.ndarray:
    """Sums over the rollouts of the three squares that `Errors` are the roots of.

    Args:
        predicted: [B, K, S, ...], S predictions of each quantity.
        real: [B, K, ...].
        trivial: the prediction without a model, broadcast to `real`.
        is_real: which steps count, [B, K].

    Returns:
        [3, K]; the mean over further axes, the observation's entries, is taken.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a model may run away
        mean = predicted.mean(axis=2)
        parts = ((mean - real) ** 2, predicted.var(axis=2), (trivial - real) ** 2)
    flat = [part.reshape(*is_real.shape, -1).mean(axis=-1) for part in parts]
    return np.stack([np.where(is_real, part, 0.0).sum(axis=0) for part in flat])


class ModelError(NamedTuple):
    """The model's errors, and from how many rollouts, [K].

    Without a model one predicts: the observation that the rollout starts with, the
    mean reward of the episodes, and their share of terminal steps.
    """

    observation: Errors
    reward: Errors
    termination: Errors
    count: np.ndarray


def model_error(
    predictor: Callable[[np.ndarray, np.ndarray], Predicted],
    episodes: Sequence[Episode],
    steps: int,
) -> ModelError:
    """Predicted against real along the real actions, from visited states.

    Args:
        predictor: (start_obs, actions) to a Predicted; `predict` of a world model.
        episodes: what really happened.
        steps: K; cut where no episode is that long.
    """
    steps = min(steps, max(episode.length for episode in episodes))
    rollouts = cut_rollouts(episodes, steps)
    all_rewards = np.concatenate([episode.reward for episode in episodes])
    ending = sum(episode.terminated for episode in episodes) / len(all_rewards)
    sums = np.zeros((3, 3, steps))  # [quantity, square, K]
    for rows in _chunks(len(rollouts.obs)):
        real = Rollouts(*(part[rows] for part in rollouts))
        made = predictor(real.obs, real.action)
        compared = (
            (made.obs, real.next_obs, real.obs[:, None]),
            (made.reward, real.reward, all_rewards.mean()),
            (made.termination, real.terminated, ending),
        )
        for i, (predicted, truth, trivial) in enumerate(compared):
            wide = predicted.astype(np.float64)
            sums[i] += squares(wide, truth, trivial, real.is_real)
    count = rollouts.is_real.sum(axis=0)
    return ModelError(*(Errors(*root) for root in np.sqrt(sums / count)), count)


# ---- Pictures: the only part that needs matplotlib ----------------------------------

# Okabe and Ito's colours, which colour-blind readers tell apart; in grey print the
# dashes do it.
MODEL_STYLES = {
    "error": ("error of the members' mean", "#D55E00", "solid"),
    "spread": ("spread of the members", "#0072B2", (0, (4, 1.5))),
    "trivial": ("error without a model", "#000000", (0, (1, 1.2))),
}
VALUE_LABEL = "value estimate Q(s, a), \N{PLUS-MINUS SIGN} 1 sd of its members"
PANELS_PER_ROW = 4
LOG_SCALE_FROM = 50.0  # ratio of the largest to the smallest value


def _finish(axes: "Axes") -> None:
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def weights_figure(histogram: Histogram, weighting: str) -> "Figure":
    """One panel for each weight: how often it lay in which bin."""
    from matplotlib.figure import Figure

    count = len(histogram.counts)
    columns = min(count, PANELS_PER_ROW)
    lines = -(-count // columns)
    figure = Figure(figsize=(0.6 + 2.1 * columns, 0.9 + 2.0 * lines))
    figure.set_layout_engine("constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    total = max(1, int(histogram.counts[0].sum()))
    widths = np.diff(histogram.edges)
    for h, axes in enumerate(panels.flat):
        if h >= count:
            axes.set_axis_off()
            continue
        shares = 100 * histogram.counts[h] / total
        left = histogram.edges[:-1]
        axes.bar(left, shares, widths, align="edge", color="#0072B2", edgecolor="white")
        axes.axvline(histogram.mean[h], color="#D55E00", linestyle=(0, (4, 1.5)))
        axes.set_title(f"$w_{{{h}}}$, mean {histogram.mean[h]:.2f}", fontsize=10)
        axes.set_xlim(histogram.edges[0], histogram.edges[-1])
        axes.set_xticks(histogram.edges[:: BINS // 2])
        axes.tick_params(labelbottom=h + columns >= count)
        _finish(axes)
    beyond = "; the outer bars hold all beyond" if histogram.is_open else ""
    figure.supxlabel(f"weight (dashed: its mean{beyond})", fontsize=10)
    figure.supylabel("share of transitions (%)", fontsize=10)
    figure.suptitle(
        f"{weighting}'s weights of the candidate targets, {total:,} transitions",
        fontsize=11,
    )
    return figure


def model_error_figure(errors: ModelError, horizon: int | None) -> "Figure":
    """Three panels: errors of observation, reward and termination against k."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08)  # inches: keeps tick labels apart
    steps = np.arange(1, len(errors.count) + 1)
    panels = figure.subplots(1, 3)
    named = {
        "observation\n(without a model: as at the start)": errors.observation,
        "reward\n(without a model: always the mean)": errors.reward,
        "termination probability\n(without a model: share of ends)": (
            errors.termination
        ),
    }
    for axes, (title, each) in zip(panels, named.items(), strict=True):
        for field, (label, color, dashes) in MODEL_STYLES.items():
            line = getattr(each, field)
            axes.plot(steps, line, color=color, linestyle=dashes, label=label)
        values = np.concatenate(each)
        positive = values[np.isfinite(values) & (values > 0)]
        if len(positive) and positive.max() > LOG_SCALE_FROM * positive.min():
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        if horizon and horizon <= len(steps):
            axes.axvline(horizon, color="#888888", linewidth=0.8, zorder=0)
            axes.annotate(
                f"H = {horizon}",
                (horizon, 0.99),
                xycoords=axes.get_xaxis_transform(),
                xytext=(3, 0),
                textcoords="offset points",
                verticalalignment="top",
                color="#555555",
                fontsize=8,
            )
        axes.set_title(title, fontsize=9)
        axes.set_xticks(steps if len(steps) <= LONGEST_ROLLOUT else steps[4::5])
        axes.set_xlabel("imagined steps")
        _finish(axes)
    panels[0].set_ylabel("root mean square, in its own unit")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=3,
        frameon=False,
        handlelength=3,
    )
    figure.suptitle(
        f"The model's error along real actions, {errors.count[0]:,} starts", fontsize=11
    )
    return figure


def episode_figure(
    judged: Judged,
    returns: np.ndarray,
    with_value: np.ndarray,
    title: str,
    reward_scale: float = 1.0,
) -> "Figure":
    """Strip chart of an episode: its weights above, values and returns below.

    Args:
        judged: by the nets.
        returns: realised, [T]; nothing after the last step.
        with_value: realised, [T], and after a cut the value estimate of the last
            state; equal to `returns` where the episode terminated.
        title: of the picture.
        reward_scale: that values and returns contain.
    """
    from matplotlib.figure import Figure

    has_weights = judged.weights is not None
    figure = Figure(figsize=(9.0, 5.4 if has_weights else 3.6), layout="constrained")
    panels = figure.subplots(
        2 if has_weights else 1,
        1,
        sharex=True,
        squeeze=False,
        height_ratios=[2, 3] if has_weights else None,
    )[:, 0]
    steps = np.arange(len(returns))
    if has_weights:
        _draw_weights(panels[0], judged.weights)
    axes = panels[-1]
    low, high = judged.value - judged.value_std, judged.value + judged.value_std
    axes.fill_between(steps, low, high, color="#0072B2", alpha=0.2, linewidth=0)
    axes.plot(steps, judged.value, color="#0072B2", label=VALUE_LABEL)
    if judged.target is not None:
        style = {"color": "#009E73", "linestyle": (0, (1, 1.2)), "linewidth": 1.2}
        axes.plot(steps, judged.target, label="target with these weights", **style)
    if judged.final_value:
        style = {"color": "#E69F00", "linestyle": (0, (7, 1.5, 1.5, 1.5))}
        label = "return, after the cut Q of the last state"
        axes.plot(steps, with_value, label=label, **style)
    axes.plot(
        steps,
        returns,
        color="#D55E00",
        linestyle=(0, (4, 1.5)),
        label="realised return",
    )
    axes.set_xlim(0, max(1, len(steps)))
    scaled = f" x {reward_scale:g}" if reward_scale != 1 else ""
    axes.set_ylabel(f"discounted sum of rewards{scaled}")
    axes.set_xlabel("step")
    _finish(axes)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2 if len(labels) > 3 else 3,
        frameon=False,
        handlelength=3,
        fontsize=9,
    )
    figure.suptitle(title, fontsize=11)
    return figure


def _draw_weights(axes: "Axes", weights: np.ndarray) -> None:
    """The weights of one episode, stacked to 1; as lines where some are negative."""
    import matplotlib

    length, count = weights.shape
    colors = matplotlib.colormaps["cividis"](np.linspace(0.0, 1.0, count))
    labels = [f"$w_{{{h}}}$" for h in range(count)]
    edges = np.arange(length + 1)
    if weights.min() < -1e-5:
        for h in range(count):
            axes.plot(edges[:-1], weights[:, h], color=colors[h], label=labels[h])
    else:
        stacked = np.cumsum(np.c_[np.zeros(length), weights], axis=1)
        stacked = np.r_[stacked, stacked[-1:]]  # the last step has a width too
        for h in range(count):
            axes.fill_between(
                edges,
                stacked[:, h],
                stacked[:, h + 1],
                step="post",
                color=colors[h],
                linewidth=0,
                label=labels[h],
            )
        axes.set_ylim(0, 1)
    axes.set_ylabel("weight")
    _finish(axes)
    axes.legend(
        frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True
    )


def rendered(figure: "Figure", kind: str) -> bytes:
    """The file of a figure; the same figure gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    metadata = {"CreationDate": None} if kind == "pdf" else None
    figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
    return buffer.getvalue()


# ---- Tables -------------------------------------------------------------------------


def csv_bytes(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    """A csv with a header; numbers that are not whole get six digits."""

    def cell(value: object) -> str:
        return f"{value:.6g}" if isinstance(value, np.floating) else str(value)

    lines = [",".join(columns), *(",".join(map(cell, row)) for row in rows)]
    return ("\n".join(lines) + "\n").encode()


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, each column as wide as its longest, set to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def ending(episode: Episode) -> str:
    return "terminated" if episode.terminated else "cut"


def summary(episodes: Sequence[Episode]) -> str:
    """Mean, standard deviation (of the population) and median of scores and lengths."""
    columns = {
        "score": [episode.score for episode in episodes],
        "length": [float(episode.length) for episode in episodes],
    }
    return "\n".join(
        f"{name}: mean {np.mean(values):.2f}, standard deviation {np.std(values):.2f}, "
        f"median {np.median(values):.2f}"
        for name, values in columns.items()
    )


def episodes_csv(episodes: Sequence[Episode]) -> bytes:
    rows = [
        (i, e.seed, e.length, e.score, ending(e)) for i, e in enumerate(episodes, 1)
    ]
    return csv_bytes(["episode", "seed", "length", "score", "ending"], rows)


def weights_csv(histogram: Histogram) -> bytes:
    """`low,high,w_0,..`: in how many transitions each weight lay in each bin."""
    names = [f"w_{h}" for h in range(len(histogram.counts))]
    edges = histogram.edges.copy()
    if histogram.is_open:
        edges[[0, -1]] = -np.inf, np.inf
    counts = histogram.counts.T.tolist()
    rows = [
        (low, high, *row)
        for low, high, row in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    return csv_bytes(["low", "high", *names], rows)


def weights_table(histogram: Histogram) -> str:
    total = max(1, int(histogram.counts[0].sum()))
    rows = [["weight", *(f"w_{h}" for h in range(len(histogram.counts)))]]
    for i in range(BINS):
        low, high = (f"{edge:.2f}" for edge in histogram.edges[i : i + 2])
        label = f"{low} to {high}"
        if histogram.is_open and i in (0, BINS - 1):
            label = f"below {high}" if i == 0 else f"from {low}"
        shares = 100 * histogram.counts[:, i] / total
        rows.append([label, *(f"{share:.1f}%" for share in shares)])
    rows.append(["mean", *(f"{mean:.3f}" for mean in histogram.mean)])
    return text_table(rows)


def model_error_columns(errors: ModelError) -> tuple[list[str], list[tuple]]:
    """Names and rows: k, number of rollouts, then three numbers for each quantity."""
    quantities = ("observation", "reward", "termination")
    names = [f"{q}_{field}" for q in quantities for field in Errors._fields]
    columns = [
        getattr(getattr(errors, q), f) for q in quantities for f in Errors._fields
    ]
    counts = errors.count.tolist()
    rows = list(zip(range(1, len(counts) + 1), counts, *columns, strict=True))
    return ["steps", "rollouts", *names], rows


def model_error_table(errors: ModelError) -> str:
    _, rows = model_error_columns(errors)
    quantities = ("observation", "reward", "termination")
    header = [
        "steps",
        *(f"{q} {part}" for q in quantities for part in ("error", "spread")),
    ]
    lines = [
        [str(row[0]), *(f"{row[i]:.4g}" for i in (2, 3, 5, 6, 8, 9))] for row in rows
    ]
    return text_table([header, *lines])


def episode_csv(
    episode: Episode, judged: Judged, returns: np.ndarray, with_value: np.ndarray
) -> bytes:
    """One row for each step of the strip chart."""
    columns = {
        "reward": episode.reward,
        "value": judged.value,
        "value_std": judged.value_std,
        "return": returns,
        "return_with_value": with_value,
    }
    if judged.weights is not None:
        columns["target"] = judged.target
        for h in range(judged.weights.shape[1]):
            columns[f"w_{h}"] = judged.weights[:, h]
    rows = zip(range(episode.length), *columns.values(), strict=True)
    return csv_bytes(["step", *columns], list(rows))


# ---- The command --------------------------------------------------------------------


class Shown(NamedTuple):
    """What comes out beside the episodes: files by name, and lines to print."""

    files: dict[str, bytes]
    lines: list[str]


def show_episode(config: Config, episode: Episode, judged: Judged) -> Shown:
    """The strip chart of an episode."""
    settings = (config.env.discount, config.env.reward_scale)
    returns = discounted_returns(episode.reward, *settings)
    with_value = discounted_returns(episode.reward, *settings, judged.final_value)
    title = (
        f"{config.env.name}, episode 1: {episode.length} steps, {ending(episode)}, "
        f"score {episode.score:.1f}"
    )
    figure = episode_figure(judged, returns, with_value, title, config.env.reward_scale)
    files = {"episode.csv": episode_csv(episode, judged, returns, with_value)}
    return Shown(files | _pictures("episode", figure), [])


def show_weights(weights: np.ndarray, weighting: str) -> Shown:
    """Histogram of the weights, as table and picture."""
    histogram = weight_histogram(weights)
    lines = [
        f"\n{weighting}'s weights along the episodes (model usage "
        f"{1 - histogram.mean[0]:.3f}):",
        weights_table(histogram),
    ]
    if histogram.left_out:
        lines.append(
            f"left out: {histogram.left_out} transitions whose imagined values are not "
            "finite"
        )
    files = {"weights.csv": weights_csv(histogram)}
    return Shown(
        files | _pictures("weights", weights_figure(histogram, weighting)), lines
    )


def show_model(
    config: Config, world_model: "WorldModel", episodes: Sequence[Episode]
) -> Shown:
    """The model's error against the horizon."""
    expansion = config.policy_config.value_expansion
    horizon = expansion.rollout_len if expansion else None
    errors = model_error(
        lambda obs, actions: predict(world_model, obs, actions),
        episodes,
        max(LONGEST_ROLLOUT, horizon or 0),
    )
    lines = [
        "\nThe model's error along real actions (root mean square):",
        model_error_table(errors),
    ]
    files = {"model_error.csv": csv_bytes(*model_error_columns(errors))}
    figure = model_error_figure(errors, horizon)
    return Shown(files | _pictures("model_error", figure), lines)


def _pictures(name: str, figure: "Figure") -> dict[str, bytes]:
    return {f"{name}.{kind}": rendered(figure, kind) for kind in ("png", "pdf")}


def analyse(config: Config, nets: Nets, episodes: Sequence[Episode]) -> list[Shown]:
    """All that the nets show of the episodes."""
    shown = []
    if nets.valuerl:
        judged = [judge(nets.valuerl, episode) for episode in episodes]
        shown.append(show_episode(config, episodes[0], judged[0]))
        if nets.world_model:
            weights = np.concatenate([each.weights for each in judged])
            shown.append(show_weights(weights, nets.weighting))
    if nets.world_model:
        shown.append(show_model(config, nets.world_model, episodes))
    return shown


def choose_folder(asked: Path | None, trained: Trained, config: Config) -> Path:
    """Where the results go; nothing that is there is ever replaced.

    Raises:
        UserError: the folder that was asked for is there.
    """
    if asked is not None:
        if os.path.lexists(asked):
            raise UserError(f"{asked} is there already: pass another --out")
        return Path(os.path.abspath(asked))
    experiment = trained.folder.parent
    is_experiment = (experiment / config.log_path).is_dir()
    first = experiment / OUTPUT_NAME if is_experiment else OUTPUT_ELSEWHERE
    folder, number = first, 1
    while os.path.lexists(folder):
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder that appears under its name once all in it is written, or not at all."""
    unfinished = folder.with_name(f"{folder.name}.unfinished-{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def select_gpu(gpu_id: str) -> None:
    """Makes the GPU of that number the only visible one, before TensorFlow's import.

    Raises:
        UserError: no such GPU.
    """
    gpus = devices.visible_gpus(os.environ)
    os.environ[devices.VARIABLE] = devices.assign(gpu_id, gpus, False).valuerl
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def load_nets(gpu_id: str, config: Config, sizes: "EnvSpec", trained: Trained) -> Nets:
    """The nets that there are checkpoints of; TensorFlow only where there is one."""
    expected = policy_shapes(config.policy_config, sizes)
    checkpoint.check_tensors(trained.path, trained.policy, expected)
    if not (trained.critic or trained.model):
        return Nets(None, None, "STEVE", [])
    with open(os.devnull, "w") as nowhere, redirected(nowhere.fileno()):
        import tensorflow as tf  # its start-up notes obey no log level

        gpus = tf.config.list_physical_devices("GPU")
    if gpu_id != "cpu" and not gpus:
        raise UserError(
            "TensorFlow does not see the GPU; install the gpu extra (pip install -e "
            "'.[gpu]') or use cpu"
        )
    return build_nets(config, sizes, trained)


def run(arguments: argparse.Namespace) -> None:
    """Checks everything, runs the episodes, writes and prints what they show.

    Raises:
        UserError: a mistake.
        EpisodeError: the environment failed.
    """
    loaded = configuration.load(arguments.config, overrides=arguments.set)
    config = loaded.config
    select_gpu(arguments.gpu_id)
    if arguments.video != "none" and importlib.util.find_spec("moviepy") is None:
        raise UserError("videos need moviepy: pip install moviepy, or --video none")
    trained = load_trained(arguments.checkpoint, config)
    folder = choose_folder(arguments.out, trained, config)
    difference = differing_keys(trained.folder, loaded)
    for note in [*loaded.notes, *trained.notes, *([difference] if difference else [])]:
        print(f"note: {note}", flush=True)

    with appearing(folder) as unfinished:
        video = None
        if arguments.video != "none":
            path = unfinished / f"episodes.{arguments.video}"
            video = Video(path, arguments.episodes)
        with EpisodeRunner(config.env, video) as runner:
            nets = load_nets(arguments.gpu_id, config, runner.sizes, trained)
            for note in nets.notes:
                print(f"note: {note}", flush=True)
            print(_described(trained), flush=True)
            sequence = np.random.SeedSequence(arguments.seed)
            seeds = [int(s >> 1) for s in sequence.generate_state(arguments.episodes)]
            episodes = []
            for episode in runner.run(trained.policy, seeds):
                episodes.append(episode)
                print(
                    f"episode {len(episodes)}: {episode.length} steps, "
                    f"{ending(episode)}, score {episode.score:.2f}",
                    flush=True,
                )
        print(summary(episodes), flush=True)
        (unfinished / "episodes.csv").write_bytes(episodes_csv(episodes))
        for shown in analyse(config, nets, episodes):
            for name, content in shown.files.items():
                (unfinished / name).write_bytes(content)
            for line in shown.lines:
                print(line, flush=True)
    print(f"\n{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def _described(trained: Trained) -> str:
    """Which checkpoint it is."""
    known = trained.policy.metadata
    counters = [
        f"{known[key]:,} {key}" for key in ("updates", "frames") if key in known
    ]
    return f"{trained.path}" + (f": {', '.join(counters)}" if counters else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code (SPEC section 12)."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    parsed = parse_arguments(arguments)
    try:
        run(parsed)
    except UserError as error:
        print(f"visualizer.py: {error}", file=sys.stderr)
        return 2
    except EpisodeError as error:
        print(f"visualizer.py: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None:
            raise  # no file is at fault
        print(f"visualizer.py: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
