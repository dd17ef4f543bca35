"""What the updates in other libraries are given, and what they are checked against.

The nets' parameters go by their names in a checkpoint, "policy/w0" or "reward/b3";
arrays are NumPy's, a net of E members having [E, in, out] and [E, out]. Nothing here
imports TensorFlow: it would take memory and threads from what is measured.
"""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from steve.batch import Batch
from steve.replay import ReplayBuffer
from steve.settings.roles import VALUERL, WORLDMODEL
from steve.settings.schema import (
    SINGLE_NET,
    Config,
    Ensemble,
    PolicyConfig,
    ValueExpansion,
    WorldModelConfig,
)
from steve.util import UserError

Parameters = dict[str, np.ndarray]

VECTORS = Path(__file__).resolve().parents[1] / "tests" / "data" / "algorithms"
UPDATES = 5  # of a case
TRAINED = {
    VALUERL: ("policy", "q"),
    WORLDMODEL: ("transition", "termination", "reward"),
}
# The largest errors that check_reference.py allows: of losses, relative; of gradients,
# relative to the largest entry; of parameters after five updates, absolute.
ALLOWED = {"losses": 1e-5, "gradients": 5e-5, "parameters": 1e-5}
LOSSES = {
    VALUERL: {
        "q_loss": "q_loss",
        "policy_loss": "policy_loss",
        "policy_reg_loss": "policy_reg_loss",
        "model_usage": "model_use",
    },
    WORLDMODEL: {
        f"{name}_loss": f"wm_{name}_loss"
        for name in ("total", "transition", "termination", "reward", "reg")
    },
}


class Work(NamedTuple):
    """What an update is, besides its parameters and its batch.

    Attributes:
        learner: whose update it is.
        weighting: "last", "mean", "lambda_return" or "steve".
        decay: lambda, of "lambda_return".
        epsilon: of "steve".
        horizon: H; 0 without a model.
        tdk: whether Q is fitted to the imagined states too.
        discount: in [0, 1].
        reward_scale: factor of the rewards.
        pre_tanh_penalty: factor of the policy's regulariser.
        weight_decay: factor of the world model's.
        learning_rate: Adam's.
        strided: the nets whose member k trains on the rows k, k + K, ..; the members
            of the others train on consecutive rows.
    """

    learner: str
    weighting: str
    decay: float
    epsilon: float
    horizon: int
    tdk: bool
    discount: float
    reward_scale: float
    pre_tanh_penalty: float
    weight_decay: float
    learning_rate: float
    strided: frozenset[str]

    def fixed_weights(self, count: int) -> list[float] | None:
        """The weights of so many candidate targets; None where they depend on them."""
        last = [0.0] * (count - 1) + [1.0]
        mean = [1.0 / count] * count
        decayed = [(1 - self.decay) * self.decay**h for h in range(count - 1)]
        decayed.append(self.decay ** (count - 1))
        return {"last": last, "mean": mean, "lambda_return": decayed}.get(
            self.weighting
        )

    @property
    def starts(self) -> int:
        """How many starts of the rollout have a target: 1, with TDk H + 1."""
        return self.horizon + 1 if self.tdk else 1


class Update(Protocol):
    """An update in another library, with its parameters.

    Attributes:
        block: K, the updates of a call.
    """

    block: int

    def run(self, batches: Batch[np.ndarray]) -> None:
        """K updates on batches [K, B, ...]; need not wait for them."""

    def finish(self) -> None:
        """Waits until all updates are over."""

    def gradients(
        self, batch: Batch[np.ndarray]
    ) -> tuple[Parameters, dict[str, float]]:
        """Gradients of what is trained, and the losses; changes nothing."""

    def parameters(self) -> Parameters:
        """What is trained."""


# Builds the update of a work with given parameters, K updates in a call.
Builder = Callable[[Work, Parameters, int], Update]


def _choice(expansion: ValueExpansion | None) -> tuple[str, dict[str, Any]]:
    """The weighting; DDPG has one candidate target, which any gives the weight 1."""
    return expansion.choice if expansion else ("last", {})


def _work(
    learner: str,
    policy: PolicyConfig,
    model: WorldModelConfig,
    task: tuple[float, float],
    strided: frozenset[str],
) -> Work:
    expansion = policy.value_expansion
    weighting, settings = _choice(expansion)
    rate = {VALUERL: policy, WORLDMODEL: model}[learner].learning_rate
    return Work(
        learner,
        weighting,
        settings.get("decay", 0.0),
        settings.get("epsilon", 0.0),
        expansion.rollout_len if expansion else 0,
        bool(expansion and expansion.tdk_trick),
        *task,
        policy.pre_tanh_penalty,
        model.weight_decay,
        rate,
        strided,
    )


def work_of(config: Config, learner: str) -> Work:
    """The update of a learner of a configuration.

    Raises:
        UserError: the updates in other libraries cannot do that.
    """
    policy, model = (
        config.policy_config,
        config.world_model_config or WorldModelConfig(),
    )
    weighting, _ = _choice(policy.value_expansion)
    if weighting not in ("last", "mean", "lambda_return", "steve"):
        raise UserError(f"there is no update of other libraries with {weighting}")
    if model.kind != WorldModelConfig().kind:
        raise UserError(f"there is no update of other libraries with {model.kind}")
    batch_size = (policy if learner == VALUERL else model).batch_size
    for net, ensemble in ensembles(config).items():
        size = ensemble.ensemble_size
        drawn = {ensemble.train_sample_count, ensemble.eval_sample_count}
        if drawn != {size} or batch_size % size:
            raise UserError(
                f"{net}: in the updates of other libraries all members take part, "
                f"and their number ({size}) divides the batch size ({batch_size})"
            )
    task = config.env.discount, config.env.reward_scale
    return _work(learner, policy, model, task, frozenset({"reward"}))


def ensembles(config: Config) -> dict[str, Ensemble]:
    """The sizes of the nets of a configuration that are ensembles."""
    sizes = {"q": config.policy_config.bayesian or SINGLE_NET}
    if config.has_model:
        model = config.model_section.bayesian
        sizes["transition"] = model.transition if model else SINGLE_NET
        sizes["reward"] = model.reward if model else SINGLE_NET
    return sizes


def initial_parameters(config: Config, obs_dim: int, action_dim: int) -> Parameters:
    """Random weights of all nets of a configuration, biases of zero."""
    policy, size = config.policy_config, ensembles(config)
    value_net = policy.hidden_dim, policy.layers
    q = size["q"].ensemble_size
    nets = {
        "policy": (1, obs_dim, action_dim, *value_net),
        "q": (q, obs_dim + action_dim, 1, *value_net),
        "target_q": (q, obs_dim + action_dim, 1, *value_net),
    }
    if config.has_model:
        model = config.model_section
        transition, reward = (size[n].ensemble_size for n in ("transition", "reward"))
        before, after = obs_dim + action_dim, 2 * obs_dim + action_dim
        wide = model.transition_hidden_dim, model.transition_layers
        narrow = model.aux_hidden_dim, model.aux_layers
        nets["transition"] = (transition, before, obs_dim, *wide)
        nets["termination"] = (transition, after, 1, *narrow)
        nets["reward"] = (reward, after, 1, *narrow)
    rng = np.random.default_rng(0)
    parameters = {}
    for net, (members, in_dim, out_dim, hidden, layers) in nets.items():
        widths = [in_dim, *[hidden] * (layers - 1), out_dim]
        for i, (a, b) in enumerate(pairwise(widths)):
            limit = np.sqrt(6 / (members * (a + b)))
            weights = rng.uniform(-limit, limit, (members, a, b))
            parameters[f"{net}/w{i}"] = weights.astype(np.float32)
            parameters[f"{net}/b{i}"] = np.zeros((members, b), np.float32)
    return parameters


def layers_of(parameters: Mapping[str, Any], net: str) -> list[tuple[Any, Any]]:
    """The layers of a net: (weights, biases) each."""
    count = sum(name.startswith(f"{net}/w") for name in parameters)
    return [
        (parameters[f"{net}/w{i}"], parameters[f"{net}/b{i}"]) for i in range(count)
    ]


class Batches:
    """Batches from a replay buffer, drawn in a thread while the last are in use.

    Args:
        replay: the buffer.
        batch_size: B.
        newest: draws come from the newest so many transitions.
        block: K.
    """

    def __init__(
        self, replay: ReplayBuffer, batch_size: int, newest: int, block: int
    ) -> None:
        self._replay, self._batch_size = replay, batch_size
        self._newest, self._block = newest, block
        self._rng = np.random.default_rng(0)
        self._thread = ThreadPoolExecutor(1, "batches")
        self._next = self._submit()

    def _submit(self) -> Future[Batch[np.ndarray]]:
        return self._thread.submit(self._draw)

    def _draw(self) -> Batch[np.ndarray]:
        drawn = [
            self._replay.sample(self._batch_size, self._newest, self._rng)
            for _ in range(self._block)
        ]
        return stacked(drawn)

    def take(self) -> Batch[np.ndarray]:
        """The next K batches, each field [K, B, ...]."""
        batches, self._next = self._next.result(), self._submit()
        return batches


def stacked(batches: list[Batch[np.ndarray]]) -> Batch[np.ndarray]:
    """K batches as one: each field [K, B, ...]."""
    return Batch(*(np.stack(parts) for parts in zip(*batches, strict=True)))


# -- the check --------------------------------------------------------------------


class Case(NamedTuple):
    """A reference vector of the 2018 code.

    Attributes:
        work: the update.
        parameters: before it.
        batch: of all its updates.
        arrays: what came out, by its name in the file.
    """

    work: Work
    parameters: Parameters
    batch: Batch[np.ndarray]
    arrays: dict[str, np.ndarray]


def read_case(name: str, learner: str) -> Case:
    """The case of this name, seen by a learner."""
    with np.load(VECTORS / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    meta = json.loads(bytes(arrays.pop("meta")))
    expansion = None
    if meta["horizon"] is not None:
        expansion = {**meta["value_expansion"], "rollout_len": meta["horizon"]}
    policy = PolicyConfig.model_validate({"value_expansion": expansion})
    nets = frozenset({"q", "transition", "termination", "reward"})
    task = meta["discount"], meta["reward_scale"]
    work = _work(learner, policy, WorldModelConfig(), task, nets)
    parameters = {}
    for key, array in arrays.items():
        group, _, name = key.partition("/")
        if group == "param":  # a single net's weights may lack the members' axis
            shape = array.shape[-2:] if "/w" in name else array.shape[-1:]
            parameters[name] = array.reshape(-1, *shape)
    fields = ("obs", "action", "reward", "next_obs", "done")
    batch = Batch(*(arrays[f"batch/{field}"] for field in fields))
    return Case(work, parameters, batch, arrays)


def case_of(config: Config, learner: str) -> str:
    """The name of the case that has the algorithm of a configuration."""
    has_ensembles = any(e.ensemble_size > 1 for e in ensembles(config).values())
    expansion = config.policy_config.value_expansion
    weighting, _ = _choice(expansion)
    if learner == WORLDMODEL or weighting == "steve":
        return "steve" if has_ensembles else "steve_no_ensemble"
    if expansion is None:
        return "ddpg_ensemble" if has_ensembles else "ddpg"
    if weighting == "lambda_return":
        return "ensemble_mve_lambda" if has_ensembles else "mve_lambda25"
    name = {"last": "mve_tdk" if expansion.tdk_trick else "mve", "mean": "mve_mean"}
    return ("ensemble_" if has_ensembles else "") + name[weighting]


def check(build: Builder, case: Case, block: int) -> dict[str, float]:
    """The largest errors of an update against a reference vector.

    Five updates are made in calls of one, or in one call where `block` is above 1.

    Returns:
        the largest error of each quantity in `ALLOWED`.

    Raises:
        WrongError: one is larger than is allowed.
    """
    learner, calls = case.work.learner, 1 if block > 1 else UPDATES
    update = build(case.work, case.parameters, UPDATES // calls)
    gradients, losses = update.gradients(case.batch)
    for _ in range(calls):
        update.run(stacked([case.batch] * update.block))
    update.finish()
    trained = [n for n in case.parameters if n.split("/")[0] in TRAINED[learner]]
    after = update.parameters()
    errors = {
        "losses": [
            _relative(losses[ours], case.arrays[f"out/{theirs}"])
            for ours, theirs in LOSSES[learner].items()
        ],
        "gradients": [
            _relative(gradients[n], case.arrays[f"grad/{n}"]) for n in trained
        ],
        "parameters": [
            _absolute(after[n], case.arrays[f"after5/{n}"]) for n in trained
        ],
    }
    largest = {name: float(np.max(values)) for name, values in errors.items()}
    for quantity, error in largest.items():
        if not error <= ALLOWED[quantity]:  # NaN is above it too
            raise WrongError(
                f"{quantity} differ from the reference vector's by {error:.1e}, "
                f"of which {ALLOWED[quantity]:.0e} is allowed"
            )
    return largest


class WrongError(Exception):
    """An update is not the one that it is to be."""


def _absolute(found: Any, reference: np.ndarray) -> float:
    return float(np.max(np.abs(np.reshape(found, reference.shape) - reference)))


def _relative(found: Any, reference: np.ndarray) -> float:
    largest = float(np.max(np.abs(reference)))
    return _absolute(found, reference) / (largest if largest > 0 else 1.0)
