"""The world model: transition, termination and reward ensembles, and their losses.

Dimension letters: B batch, M transition (and termination) models, N reward models,
H imagined steps, O observation, A action.
"""

import copy
from typing import Any, NamedTuple, Protocol, runtime_checkable

import tensorflow as tf

from . import nn
from .batch import Batch
from .settings.extensions import WORLD_MODELS
from .settings.schema import SINGLE_NET, Ensemble, WorldModelConfig


class ModelMembers(NamedTuple):
    """The members that take part in targets; None stands for all.

    Termination member m judges the rollout of transition member m, so no
    members are sampled for it.
    """

    transition: tf.Tensor | None
    reward: tf.Tensor | None


class ModelAssignment(NamedTuple):
    """Which member trains on which row; termination follows transition."""

    transition: nn.Assignment
    reward: nn.Assignment


def transition_loss(
    obs: tf.Tensor, next_obs: tf.Tensor, change: tf.Tensor
) -> tf.Tensor:
    """1/2 sum over observation entries of (s' - s - f(s, a))^2, batch mean (SPEC 4).

    Args:
        obs: s, [B, O].
        next_obs: s', [B, O].
        change: the predicted f(s, a), [B, O].

    Raises:
        ValueError: their shapes differ.
    """
    for other in (next_obs, change):
        obs.shape.assert_is_compatible_with(other.shape)
    squared = tf.square(next_obs - obs - change)
    return 0.5 * tf.reduce_mean(tf.reduce_sum(squared, axis=-1))


def termination_loss(terminated: tf.Tensor, logit: tf.Tensor) -> tf.Tensor:
    """Sigmoid cross-entropy of the logit [B] with d [B], batch mean (SPEC 4)."""
    return tf.reduce_mean(
        tf.nn.sigmoid_cross_entropy_with_logits(labels=terminated, logits=logit)
    )


def reward_loss(reward: tf.Tensor, predicted: tf.Tensor) -> tf.Tensor:
    """1/2 (r - g)^2 of rewards [B], batch mean (SPEC section 4).

    Raises:
        ValueError: their shapes differ.
    """
    reward.shape.assert_is_compatible_with(predicted.shape)
    return 0.5 * tf.reduce_mean(tf.square(reward - predicted))


def weight_penalty(variables: list[tf.Variable], factor: float) -> tf.Tensor:
    """factor * sum of 1/2 w^2 over all weights and biases of all members."""
    return factor * tf.add_n([tf.nn.l2_loss(v) for v in variables])


class WorldModelProtocol(Protocol):
    """What the learners and the visualizer need of a world model.

    A model that can round the factors of its matrix products to another type is a
    `LowPrecisionModel` as well.

    What `sample_members`, `all_members` and `sample_assignment` return is only handed
    back to the model. M and N are the numbers of transition and reward predictions that
    members stand for; they and the rows are static in the shapes that are returned.

    Attributes:
        metric_names: the metrics that `update` returns, in the order of the log.
    """

    metric_names: tuple[str, ...]

    @property
    def variables(self) -> list[tf.Variable]:
        """All trained variables."""

    def named_variables(self) -> dict[str, tf.Variable]:
        """The state to save; each name has a part in front of its "/"."""

    def sample_members(self, seed: tf.Tensor) -> Any:
        """The members for the targets of one batch, from a seed, [2] int32."""

    def all_members(self) -> Any:
        """What stands for all members; none are sampled."""

    def sample_assignment(
        self, seed: tf.Tensor, update: tf.Tensor, batch_size: int
    ) -> Any:
        """Which member trains on which row: from the update's seed [2] and number."""

    def next_obs(
        self, obs: tf.Tensor, action: tf.Tensor, members: Any, step: int
    ) -> tf.Tensor:
        """s_{h+1}: [M, B, O] (or [1, B, O]), [M, B, A] (or [1, B, A]) -> [M, B, O].

        `step` is h. A model that samples s_{h+1} keeps the seed of `sample_members` in
        its members and takes each step's noise from `nn.fold_in(seed, step)`.
        """

    def termination_prob(
        self, next_obs: tf.Tensor, obs: tf.Tensor, action: tf.Tensor, members: Any
    ) -> tf.Tensor:
        """The probability that s' is terminal: [M, R, .] each -> [M, R] in [0, 1]."""

    def rewards(
        self, next_obs: tf.Tensor, obs: tf.Tensor, action: tf.Tensor, members: Any
    ) -> tf.Tensor:
        """r: [R, .] each -> [N, R]."""

    def update(
        self, batch: Batch[tf.Tensor], assignment: Any, optimizer: nn.Adam
    ) -> dict[str, tf.Tensor]:
        """One step on a batch of real transitions; returns the metrics, [] each."""


@runtime_checkable
class LowPrecisionModel(WorldModelProtocol, Protocol):
    """What `value_expansion.imagination_precision` needs in addition."""

    def with_compute_dtype(self, compute_dtype: tf.DType) -> WorldModelProtocol:
        """The same model, with the same variables, for imagined rollouts."""


def build_world_model(
    config: WorldModelConfig,
    obs_dim: int,
    action_dim: int,
    generator: tf.random.Generator,
) -> WorldModelProtocol:
    """The world model of the kind that the configuration names.

    Raises:
        UserError: there is no such kind.
    """
    kind = WORLD_MODELS.find(config.kind)
    return kind.function(config, obs_dim, action_dim, generator, **config.kind_settings)


class WorldModel:
    """The three ensembles; `update` fits them to a batch of real transitions.

    Args:
        config: the configuration's `model_config`.
        obs_dim: O.
        action_dim: A.
        generator: draws the initial weights.
    """

    metric_names = (
        "total_loss",
        "transition_loss",
        "termination_loss",
        "reward_loss",
        "reg_loss",
    )

    def __init__(
        self,
        config: WorldModelConfig,
        obs_dim: int,
        action_dim: int,
        generator: tf.random.Generator,
    ) -> None:
        self._config = config
        sizes = config.bayesian
        self._transition_size = sizes.transition if sizes else SINGLE_NET
        self._reward_size = sizes.reward if sizes else SINGLE_NET
        self.transition = nn.FeedForward(
            obs_dim + action_dim,
            config.transition_hidden_dim,
            obs_dim,
            config.transition_layers,
            self._transition_size.ensemble_size,
            generator,
        )
        self.termination = nn.FeedForward(
            2 * obs_dim + action_dim,
            config.aux_hidden_dim,
            1,
            config.aux_layers,
            self._transition_size.ensemble_size,
            generator,
        )
        self.reward = nn.FeedForward(
            2 * obs_dim + action_dim,
            config.aux_hidden_dim,
            1,
            config.aux_layers,
            self._reward_size.ensemble_size,
            generator,
        )

    def with_compute_dtype(self, compute_dtype: tf.DType) -> "WorldModel":
        """The same model, with the same variables; `nn.FeedForward.compute_dtype`."""
        model = copy.copy(self)
        for name, net in self.nets.items():
            setattr(model, name, net.with_compute_dtype(compute_dtype))
        return model

    @property
    def nets(self) -> dict[str, nn.FeedForward]:
        """What is trained and saved, by the names of its attributes.

        A subclass may leave one out, or add one.
        """
        return {
            "transition": self.transition,
            "termination": self.termination,
            "reward": self.reward,
        }

    @property
    def variables(self) -> list[tf.Variable]:
        """All trained variables, in the order of `nets`."""
        return [v for net in self.nets.values() for v in net.variables]

    def named_variables(self) -> dict[str, tf.Variable]:
        """{"transition/w0": ..., "termination/w0": ..., "reward/w0": ...}."""
        return nn.prefixed(
            {name: net.named_variables() for name, net in self.nets.items()}
        )

    def sample_members(self, seed: tf.Tensor) -> ModelMembers:
        """The members for the targets of one batch: `eval_sample_count` of each."""
        sizes = self._transition_size, self._reward_size
        return ModelMembers(
            *(
                nn.sample_members(part, size.ensemble_size, size.eval_sample_count)
                for part, size in zip(nn.split(seed, 2), sizes, strict=True)
            )
        )

    def all_members(self) -> ModelMembers:
        """All members of each ensemble."""
        return ModelMembers(transition=None, reward=None)

    def sample_assignment(
        self, seed: tf.Tensor, update: tf.Tensor, batch_size: int
    ) -> ModelAssignment:
        """Gives each row to one of `train_sample_count` members of each ensemble.

        Each pair of a transition and a reward member has an equal part of the rows.
        """
        for_transition, for_reward = nn.split(seed, 2)

        def sample(part: tf.Tensor, size: Ensemble, strided: bool) -> nn.Assignment:
            return nn.sample_assignment(
                part,
                update,
                batch_size,
                size.ensemble_size,
                size.train_sample_count,
                strided=strided,
            )

        return ModelAssignment(
            sample(for_transition, self._transition_size, strided=False),
            sample(for_reward, self._reward_size, strided=True),
        )

    def next_obs(
        self, obs: tf.Tensor, action: tf.Tensor, members: ModelMembers, step: int = 0
    ) -> tf.Tensor:
        """s_{h+1} = s_h + f_m(s_h, a_h) (SPEC section 5).

        Args:
            obs: [M, B, O], or [1, B, O] where all members start from the same.
            action: [M, B, A] or [1, B, A].
            members: which take part.
            step: h, which these nets do not depend on.

        Returns:
            [M, B, O].
        """
        return obs + self.transition(tf.concat([obs, action], -1), members.transition)

    def termination_prob(
        self,
        next_obs: tf.Tensor,
        obs: tf.Tensor,
        action: tf.Tensor,
        members: ModelMembers,
    ) -> tf.Tensor:
        """d = sigmoid(c_m(s', s, a)) for the rows of each transition member.

        Args:
            next_obs: [M, R, O].
            obs: [M, R, O].
            action: [M, R, A].

        Returns:
            [M, R].
        """
        logit = self.termination(
            tf.concat([next_obs, obs, action], -1), members.transition
        )
        return tf.sigmoid(logit[..., 0])

    def rewards(
        self,
        next_obs: tf.Tensor,
        obs: tf.Tensor,
        action: tf.Tensor,
        members: ModelMembers,
    ) -> tf.Tensor:
        """r = g_n(s', s, a): every reward member on every row.

        Args:
            next_obs: [R, O].
            obs: [R, O].
            action: [R, A].

        Returns:
            [N, R].
        """
        inputs = tf.concat([next_obs, obs, action], -1)
        return self.reward(inputs[None], members.reward)[..., 0]

    def losses(
        self, batch: Batch[tf.Tensor], assignment: ModelAssignment
    ) -> dict[str, tf.Tensor]:
        """The losses of SPEC section 4, `total_loss` being the sum of the others."""
        losses = self.prediction_losses(batch, assignment)
        losses["reg_loss"] = weight_penalty(self.variables, self._config.weight_decay)
        return {"total_loss": tf.add_n(list(losses.values())), **losses}

    def prediction_losses(
        self, batch: Batch[tf.Tensor], assignment: ModelAssignment
    ) -> dict[str, tf.Tensor]:
        """How far each net is off; all of them are minimised.

        Termination and reward see the real s', not the predicted one.
        """
        before = tf.concat([batch.obs, batch.action], -1)
        after = tf.concat([batch.next_obs, batch.obs, batch.action], -1)
        change = self.transition.apply_assigned(before, assignment.transition)
        logit = self.termination.apply_assigned(after, assignment.transition)[:, 0]
        predicted = self.reward.apply_assigned(after, assignment.reward)[:, 0]
        return {
            "transition_loss": transition_loss(batch.obs, batch.next_obs, change),
            "termination_loss": termination_loss(batch.terminated, logit),
            "reward_loss": reward_loss(batch.reward, predicted),
        }

    def gradients(
        self, batch: Batch[tf.Tensor], assignment: ModelAssignment
    ) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """Gradients of `total_loss`, in the order of `variables`, and the losses."""
        with tf.GradientTape() as tape:
            losses = self.losses(batch, assignment)
        return tape.gradient(losses["total_loss"], self.variables), losses

    def update(
        self, batch: Batch[tf.Tensor], assignment: ModelAssignment, optimizer: nn.Adam
    ) -> dict[str, tf.Tensor]:
        """One step on all ensembles; returns the losses before it."""
        gradients, losses = self.gradients(batch, assignment)
        optimizer.apply(gradients)
        return losses
