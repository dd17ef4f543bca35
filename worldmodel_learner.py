"""The world-model learner: pretrains, publishes, then learns along (SPEC section 2)."""

import inspect
import traceback
from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

from . import nn
from .batch import Batch
from .learner import Learner, prepare
from .running import pace
from .running.child import Context
from .settings.extensions import WORLD_MODELS
from .settings.roles import WORLDMODEL
from .settings.schema import SINGLE_NET, WorldModelConfig
from .settings.seeds import Stream
from .storage.checkpoint import Scalar
from .util import Every, error_text
from .worldmodel import WorldModelProtocol, build_world_model


class WorldmodelLearner(Learner):
    """Fits transition, termination and reward ensembles to the replay buffer."""

    name = WORLDMODEL
    batch_stream = Stream.WORLDMODEL_BATCH

    def __init__(self, context: Context, is_compiled: bool = False) -> None:
        settings = context.run.config.model_section
        self.model = build_world_model(
            settings,
            context.run.obs_dim,
            context.run.action_dim,
            nn.generator_of(context.seed),
        )
        super().__init__(context, settings, self.model.metric_names, is_compiled)
        self.pretrained = 0
        self._pretraining = settings.pretrain_n or 0  # false: none
        self._seed = nn.seed_tensor(context.seed)
        self.optimizer = nn.Adam(self.model.variables, settings.learning_rate)

    def variables(self) -> Mapping[str, tf.Variable]:
        """Nets as "transition/w0", optimiser as "adam/m0"."""
        return self.model.named_variables() | nn.prefixed(
            {"adam": self.optimizer.named_variables()}
        )

    def train_step(self, batch: Batch[tf.Tensor]) -> dict[str, tf.Tensor]:
        """One update of all three ensembles."""
        update, size = self.optimizer.steps.read_value(), self.settings.batch_size
        seed = nn.fold_in(self._seed, update)
        assignment = self.model.sample_assignment(seed, update, size)
        return self.model.update(batch, assignment, self.optimizer)

    @property
    def steps(self) -> int:
        return self.pretrained + self.updates

    def _frames_for(self, step: int) -> int:
        if step < self._pretraining:
            return pace.frames_for_pretraining(self.settings)
        return super()._frames_for(step - self._pretraining)

    def publish(self) -> None:
        """Keeps the published state under its number, for the value learner."""
        models, state = self.folders.models, self.folders.state(self.name)
        self.context.store(lambda: models.add(self.updates, state))
        if self.config.policy_config.value_expansion is None:
            models.drop_before(self.updates)  # no value learner takes them up

    def after_restore(self) -> None:
        """Publishes a state that is due."""
        is_published = self.epoch and self.updates == self._published_updates
        if is_published and not self.folders.models.path(self.updates).exists():
            self.publish()  # ended between the state and its publication

    def start(self) -> bool:
        """Pretrains on the first frames and publishes; resumes where it stopped."""
        if not self.wait_for_frames():
            return False
        self.start_clock()
        target = self._pretraining  # 0: the initial weights are published at once
        log = Every(self.settings.log_every_n, self.pretrained)
        save = Every(self.settings.epoch_every_n, self.pretrained)
        while self.pretrained < target:
            if self.stop_now():
                return False
            room = min(
                target - self.pretrained,
                *(e.until(self.pretrained) for e in (log, save)),
            )
            self.pretrained += self.learn(min(self.updates_per_call, int(room)))
            self.row["pretrained"] = self.pretrained
            self.tick()
            if log(self.pretrained):
                self.log()
            if save(self.pretrained):
                self.save_state()  # epoch 0: the value learner does not take it up
        self.publish_epoch()
        return True

    def counters(self) -> dict[str, int]:
        return {"pretrained": self.pretrained}

    def restore_counters(self, metadata: Mapping[str, Scalar]) -> None:
        self.pretrained = int(metadata["pretrained"])
        self.row["pretrained"] = self.pretrained


def build(context: Context) -> WorldmodelLearner:
    """Prepares TensorFlow for this learner, and builds it."""
    settings = context.run.config.model_section
    sizes = settings.bayesian
    ensembles = (sizes.transition, sizes.reward) if sizes else (SINGLE_NET,)
    members = max(size.train_sample_count for size in ensembles)
    width = max(settings.transition_hidden_dim, settings.aux_hidden_dim)
    is_small = nn.is_small_product(settings.batch_size // members, width * width)
    return WorldmodelLearner(context, prepare(context, settings, members, is_small))


def main(context: Context) -> None:
    """The process's main function."""
    build(context).run()


# ---- a trial of a user's world model, before the start ------------------------------


class _Fault(Exception):
    """What a method gives that it must not give."""


def trial_fault(config: WorldModelConfig, obs_dim: int, action_dim: int) -> str | None:
    """What is wrong with the configuration's kind of world model; None: nothing is.

    Its methods are called as the learners call them, traced and on random numbers: two
    imagined steps, then an update.

    Args:
        config: the configuration's `model_config`.
        obs_dim: O.
        action_dim: A.
    """
    try:
        model = build_world_model(config, obs_dim, action_dim, nn.generator_of(0))
        _try_rollout(model, obs_dim, action_dim)
        _try_update(model, config, obs_dim, action_dim)
    except _Fault as fault:
        return str(fault)
    except Exception as error:
        where = _place_in(error, WORLD_MODELS.find(config.kind).function)
        return f"failed when it was tried ({error_text(error)}{where})"
    return None


def _try_rollout(
    model: WorldModelProtocol, obs_dim: int, action_dim: int, rows: int = 3
) -> None:
    """Imagines two steps from `rows` states."""
    seed = nn.seed_tensor(0)

    def normal(*shape: int) -> tf.Tensor:
        return tf.random.stateless_normal(shape, seed)

    def imagine() -> dict[str, tf.Tensor]:
        members = model.sample_members(seed)
        obs = next_obs = normal(1, rows, obs_dim)
        for step in range(2):
            obs = next_obs
            action = tf.tanh(normal(obs.shape[0], rows, action_dim))
            next_obs = model.next_obs(obs, action, members, step)
            _check("next_obs", next_obs, "M", rows, obs_dim)
        count = obs.shape[0] * rows
        termination = model.termination_prob(next_obs, obs, action, members)
        _check("termination_prob", termination, obs.shape[0], rows)
        flat_next_obs, flat_obs, flat_action = (
            tf.reshape(x, [count, x.shape[-1]]) for x in (next_obs, obs, action)
        )
        reward = model.rewards(flat_next_obs, flat_obs, flat_action, members)
        _check("rewards", reward, "N", count)
        return {
            "next_obs": next_obs,
            "rewards": reward,
            "termination_prob": termination,
        }

    found = tf.function(imagine, autograph=False)()
    for name, value in found.items():
        if not tf.reduce_all(tf.math.is_finite(value)):
            raise _Fault(f"gives numbers that are not finite: {name}")
    probs = found["termination_prob"].numpy()
    low, high = probs.min(), probs.max()
    if low < 0 or high > 1:
        raise _Fault(f"gives a termination_prob of {low:g} to {high:g}, not in [0, 1]")


def _try_update(
    model: WorldModelProtocol, config: WorldModelConfig, obs_dim: int, action_dim: int
) -> None:
    """Makes one update on a random batch."""
    optimizer = nn.Adam(model.variables, config.learning_rate)
    seed, size = nn.seed_tensor(0), config.batch_size

    def update() -> dict[str, tf.Tensor]:
        obs, next_obs, action = (
            tf.random.stateless_normal([size, width], seed)
            for width in (obs_dim, obs_dim, action_dim)
        )
        reward, terminated = obs[:, 0], tf.zeros([size])
        batch = Batch(obs, tf.tanh(action), reward, next_obs, terminated)
        assignment = model.sample_assignment(seed, optimizer.steps.read_value(), size)
        return model.update(batch, assignment, optimizer)

    metrics = tf.function(update, autograph=False)()
    for name in model.metric_names:
        if name not in metrics:
            given = ", ".join(metrics)
            raise _Fault(
                f"gives no {name} in its update, which metric_names has; it "
                f"gives {given}"
            )
        _check(f"the metric {name}", metrics[name])


def _check(name: str, given: tf.Tensor, *shape: int | str) -> None:
    """Raises a _Fault where something is no float32 of a shape; a text: any number."""
    value = tf.convert_to_tensor(given)
    fits = value.shape.rank == len(shape) and all(
        number is not None and (isinstance(wanted, str) or wanted == number)
        for number, wanted in zip(value.shape, shape, strict=True)
    )
    if value.dtype != tf.float32 or not fits:
        wanted = f"({', '.join(map(str, shape))})"
        what = f"{value.dtype.name} of shape {value.shape}"
        raise _Fault(f"gives {what} as {name}, not float32 of shape {wanted}")


def _place_in(error: Exception, factory: object) -> str:
    """Where in the file of a class an error arose, as "; my_model.py, line 7"."""
    try:
        file = inspect.getsourcefile(factory)  # type: ignore[arg-type]
    except TypeError:
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return f"; {Path(str(file)).name}, line {lines[-1]}" if lines else ""
