"""Value expansion: the targets of DDPG, MVE, MVE-TDk, STEVE and their relatives.

Paper: Buckman et al., Sample-Efficient Reinforcement Learning with Stochastic
Ensemble Value Expansion, NeurIPS 2018; "SPEC" is docs/specification.md.

The pure functions come first; each algorithm of the paper is one way of weighting
the candidate targets T_0 .. T_H (`horizon_weights`). The class below holds the nets.

Dimension letters: B batch, H horizon (H + 1 candidate targets), M transition models,
N reward models, L Q-functions, S = M N L member triples, O observation, A action,
J starts: 1, with TDk H + 1.
"""

from typing import NamedTuple

import tensorflow as tf

from . import nn
from .batch import Batch
from .settings.extensions import WEIGHTINGS
from .settings.schema import SINGLE_NET, PolicyConfig, ValueExpansion
from .worldmodel import LowPrecisionModel, ModelMembers, WorldModelProtocol

# Keeps the quotient of SPEC section 5 finite where a start was never reached.
REACH_EPSILON = 1e-8


class Rollout(NamedTuple):
    """What the candidate targets of a batch are made of.

    Attributes:
        rewards: r_0 (real), r_1 .. r_H, [B, H+1, M, N].
        continue_probs: C_0 .. C_H, C_h = prod_{k<=h} (1 - d_k), [B, H+1, M].
        values: Qtarget_l(s_h, a_h), [B, H+1, M, L].
        obs: s_0 .. s_{H-1}, [B, H, M, O]; None without a model.
        actions: a_0 .. a_{H-1}, [B, H, M, A]; None without a model.
    """

    rewards: tf.Tensor
    continue_probs: tf.Tensor
    values: tf.Tensor
    obs: tf.Tensor | None
    actions: tf.Tensor | None


def continue_prob(terminations: tf.Tensor) -> tf.Tensor:
    """C_h = (1 - d_0) .. (1 - d_h), that no step up to h ends the episode (SPEC 5).

    Args:
        terminations: d_0 (real), d_1 .. d_H, each in [0, 1], [B, H+1, M].

    Returns:
        [B, H+1, M].
    """
    return tf.math.cumprod(1.0 - terminations, axis=1)


def reach_prob(continue_probs: tf.Tensor) -> tf.Tensor:
    """C_{h-1}, the probability that step h is reached: 1, C_0, .. C_{H-1}.

    Args:
        continue_probs: [B, H+1, M].

    Returns:
        [B, H+1, M].
    """
    return tf.concat(
        [tf.ones_like(continue_probs[:, :1]), continue_probs[:, :-1]], axis=1
    )


def candidate_targets(
    rewards: tf.Tensor,
    continue_probs: tf.Tensor,
    values: tf.Tensor,
    discount: float,
    reward_scale: float,
    start: int = 0,
) -> tf.Tensor:
    """The candidate targets T_{j,j} .. T_{j,H} of start j (SPEC section 5).

    With C_{-1} = 1::

        T_{j,h} = reward_scale sum_{k=j..h} discount^{k-j} C_{k-1} / C_{j-1} r_k
                  + discount^{h-j+1} C_h / C_{j-1} Qtarget(s_h, a_h)

    and 1e-8 added to C_{j-1}, so that a start behind a real termination has target
    0. H = 0 gives the one-step target of DDPG.

    Args:
        rewards: [B, H+1, M, N].
        continue_probs: C_0 .. C_H, [B, H+1, M].
        values: Qtarget(s_h, a_h), [B, H+1, M, L].
        discount: in [0, 1].
        reward_scale: factor of the rewards, > 0.
        start: j, 0 .. H.

    Returns:
        [B, H+1-j, S], one entry per triple (m, n, l) of a transition, a reward and a
        Q member, l fastest.
    """
    reached = reach_prob(continue_probs)
    # Without the maximum XLA may reorder (1 - d) + 1e-8 as (1 + 1e-8) - d, which
    # float32 rounds to 0 where d is 1.
    start_reach = tf.maximum(reached[:, start], 0.0)
    relative = 1.0 / (start_reach + REACH_EPSILON)  # [B, M]
    reached = reached[:, start:] * relative[:, None]  # [B, H+1-j, M]
    continued = continue_probs[:, start:] * relative[:, None]
    steps = tf.range(reached.shape[1], dtype=tf.float32)
    discounts = tf.pow(discount, steps)[:, None]  # discount^{h-j}, [H+1-j, 1]

    discounted = (discounts * reached)[..., None] * rewards[:, start:]
    returns = reward_scale * tf.cumsum(discounted, axis=1)  # [B, H+1-j, M, N]
    bootstraps = (discount * discounts * continued)[..., None] * values[:, start:]
    targets = returns[..., :, None] + bootstraps[..., None, :]  # [B, H+1-j, M, N, L]
    return tf.reshape(targets, [*targets.shape[:2], -1])  # [B, H+1-j, S]


def steve_weights(candidates: tf.Tensor, epsilon: float) -> tf.Tensor:
    """w_h proportional to 1 / (var_h + epsilon) (paper section 3, SPEC section 5).

    Args:
        candidates: [B, H+1, S]; var_h is the population variance over S.
        epsilon: > 0.

    Returns:
        [B, H+1], each row with sum 1; uniform where all variances are equal.
    """
    inverse = 1.0 / (tf.math.reduce_variance(candidates, axis=-1) + epsilon)
    return inverse / tf.reduce_sum(inverse, axis=-1, keepdims=True)


def covariance_system(candidates: tf.Tensor, ridge: float) -> tf.Tensor:
    """K + ridge I, K_{hk} = sum over S of (T_h - mu_h)(T_k - mu_k) (SPEC section 5).

    Accumulated in float64: the condition of the system goes up to 1e5.

    Args:
        candidates: [B, H+1, S].
        ridge: > 0.

    Returns:
        [B, H+1, H+1] float64.
    """
    exact = tf.cast(candidates, tf.float64)
    deviations = exact - tf.reduce_mean(exact, axis=-1, keepdims=True)
    covariances = tf.matmul(deviations, deviations, transpose_b=True)
    return covariances + ridge * tf.eye(candidates.shape[1], dtype=tf.float64)


def covariance_weights(candidates: tf.Tensor, ridge: float) -> tf.Tensor:
    """The solution w of (K + ridge I) w = 1, normalised (COV-STEVE, SPEC section 5).

    Weights may be negative; they sum to 1.

    Args:
        candidates: [B, H+1, S].
        ridge: > 0.

    Returns:
        [B, H+1].
    """
    system = covariance_system(candidates, ridge)
    solution = tf.linalg.solve(system, tf.ones_like(system[..., :1]))[..., 0]
    weights = solution / tf.reduce_sum(solution, axis=-1, keepdims=True)
    return tf.cast(weights, tf.float32)


def last_weights(candidates: tf.Tensor) -> tf.Tensor:
    """1 for T_H, else 0 (MVE, MVE-TDk): [B, H+1, S] -> [B, H+1]."""
    count = candidates.shape[1]
    return _fixed([0.0] * (count - 1) + [1.0], candidates)


def mean_weights(candidates: tf.Tensor) -> tf.Tensor:
    """1 / (H + 1) for each (mean-MVE): [B, H+1, S] -> [B, H+1]."""
    count = candidates.shape[1]
    return _fixed([1.0 / count] * count, candidates)


def lambda_weights(candidates: tf.Tensor, decay: float) -> tf.Tensor:
    """(1 - lambda) lambda^h for h < H, lambda^H at H (TD-lambda MVE).

    lambda = 0 gives T_0, lambda = 1 gives T_H.

    Args:
        candidates: [B, H+1, S].
        decay: lambda, in [0, 1].

    Returns:
        [B, H+1].
    """
    count = candidates.shape[1]
    weights = [(1 - decay) * decay**h for h in range(count - 1)]
    return _fixed([*weights, decay ** (count - 1)], candidates)


def _fixed(weights: list[float], candidates: tf.Tensor) -> tf.Tensor:
    """The same weights for each row: [H+1] -> [B, H+1]."""
    return tf.broadcast_to(tf.constant(weights, tf.float32), candidates.shape[:2])


def horizon_weights(candidates: tf.Tensor, expansion: ValueExpansion) -> tf.Tensor:
    """The weights that make a target of the candidates: sum_h w_h mu_h.

    | algorithm     | w_h                  |
    |---------------|----------------------|
    | MVE, MVE-TDk  | `last_weights`       |
    | mean-MVE      | `mean_weights`       |
    | TD-lambda MVE | `lambda_weights`     |
    | STEVE         | `steve_weights`      |
    | COV-STEVE     | `covariance_weights` |

    They, and those that users register, are the entries of `extensions.WEIGHTINGS`.
    With H = 0 all are the same.

    Args:
        candidates: [B, H+1, S]; H is taken from its shape, so that a later start
            of the chain, which has fewer candidates, is no special case.
        expansion: the configuration's `value_expansion`.

    Returns:
        [B, H+1], rows with sum 1.

    Raises:
        UserError: no weighting has that name.
        ValueError: the function gives another shape.
    """
    name, settings = expansion.choice
    weights = WEIGHTINGS.find(name).function(candidates, **settings)
    return tf.ensure_shape(weights, candidates.shape[:2])


def weighted_target(candidates: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """sum_h w_h mu_h: [B, H+1, S], [B, H+1] -> [B]."""
    return tf.reduce_sum(weights * tf.reduce_mean(candidates, axis=-1), axis=-1)


def q_loss(
    predicted: tf.Tensor, targets: tf.Tensor, start_weights: tf.Tensor
) -> tf.Tensor:
    """Plain mean over samples and starts of weight * 1/2 (Q - target)^2 (SPEC 4, 5).

    Args:
        predicted: Q of the sample's member, [B, J]; J = 1, with TDk H + 1.
        targets: [B, J].
        start_weights: probability of having reached the start, [B, J].

    Raises:
        ValueError: their shapes differ.
    """
    predicted.shape.assert_is_compatible_with(targets.shape)
    predicted.shape.assert_is_compatible_with(start_weights.shape)
    return tf.reduce_mean(start_weights * 0.5 * tf.square(predicted - targets))


def policy_loss(values: tf.Tensor) -> tf.Tensor:
    """-mean over members and batch of Q(s, tanh pi(s)), values [L, B] (SPEC 4)."""
    return -tf.reduce_mean(values)


def pre_tanh_loss(pre_tanh_action: tf.Tensor, factor: float) -> tf.Tensor:
    """factor * mean of (action before tanh)^2, actions [B, A] (SPEC section 4)."""
    return factor * tf.reduce_mean(tf.square(pre_tanh_action))


class SampledMembers(NamedTuple):
    """All that is random in an update; fixed, it makes the update reproducible.

    Attributes:
        q_members: Q members of the targets and of the policy loss; None for all.
        q_assignment: which Q member is fitted to which row.
        model: members of the world model; None without one.
    """

    q_members: tf.Tensor | None
    q_assignment: nn.Assignment
    model: ModelMembers | None


class Task(NamedTuple):
    """The constants of the task that values depend on.

    Attributes:
        obs_dim: O.
        action_dim: A.
        discount: in [0, 1].
        reward_scale: factor of the rewards, > 0.
    """

    obs_dim: int
    action_dim: int
    discount: float
    reward_scale: float


class ValueRL:
    """Policy, Q and target Q, and their update.

    Args:
        config: the configuration's `policy_config`.
        task: sizes, discount and reward scale.
        generator: draws the initial weights.
        world_model: needed where the configuration expands values, else None.
    """

    def __init__(
        self,
        config: PolicyConfig,
        task: Task,
        generator: tf.random.Generator,
        world_model: WorldModelProtocol | None = None,
    ) -> None:
        self._config = config
        self._expansion = config.value_expansion
        self._task = task
        self.world_model = world_model
        imagined = tf.float32  # products of rollouts
        if self._expansion is not None:
            imagined = tf.as_dtype(self._expansion.imagination_precision)
        if imagined != tf.float32:
            assert isinstance(world_model, LowPrecisionModel)  # `check_bfloat16`
            self.world_model = world_model.with_compute_dtype(imagined)
        self._q_size = config.bayesian or SINGLE_NET

        def build_net(in_dim: int, out_dim: int, ensemble_size: int) -> nn.FeedForward:
            return nn.FeedForward(
                in_dim,
                config.hidden_dim,
                out_dim,
                config.layers,
                ensemble_size,
                generator,
            )

        q_in, q_members = task.obs_dim + task.action_dim, self._q_size.ensemble_size
        self.policy = build_net(task.obs_dim, task.action_dim, 1)
        self._imagined_policy = self.policy.with_compute_dtype(imagined)
        self.q = build_net(q_in, 1, q_members)
        self.target_q = build_net(q_in, 1, q_members).with_compute_dtype(imagined)

    @property
    def _model(self) -> WorldModelProtocol:
        """The world model, which value expansion needs."""
        assert self.world_model is not None, "values are expanded without a model"
        return self.world_model

    @property
    def horizon(self) -> int:
        """H: imagined steps; 0 for DDPG."""
        return self._expansion.rollout_len if self._expansion else 0

    def named_variables(self) -> dict[str, tf.Variable]:
        """{"policy/w0": ..., "q/w0": ..., "target_q/w0": ...}."""
        return nn.prefixed(
            {
                "policy": self.policy.named_variables(),
                "q": self.q.named_variables(),
                "target_q": self.target_q.named_variables(),
            }
        )

    def update_target_network(self) -> None:
        """Makes the target Q a copy of Q (SPEC section 2: at each epoch)."""
        for target, source in zip(
            self.target_q.variables, self.q.variables, strict=True
        ):
            target.assign(source)

    def sample(
        self, seed: tf.Tensor, update: tf.Tensor, batch_size: int
    ) -> SampledMembers:
        """Samples the members for one batch (SPEC section 5).

        Args:
            seed: of this update, [2] int32.
            update: its number, [].
            batch_size: B.
        """
        size = self._q_size
        for_members, for_assignment, for_model = nn.split(seed, 3)
        return SampledMembers(
            q_members=nn.sample_members(
                for_members, size.ensemble_size, size.eval_sample_count
            ),
            q_assignment=nn.sample_assignment(
                for_assignment,
                update,
                batch_size,
                size.ensemble_size,
                size.train_sample_count,
            ),
            model=self._model.sample_members(for_model) if self._expansion else None,
        )

    def pre_tanh_action(self, obs: tf.Tensor) -> tf.Tensor:
        """pi(s): [R, O] -> [R, A]."""
        return self.policy(obs[None])[0]

    def action(self, obs: tf.Tensor) -> tf.Tensor:
        """The greedy action tanh pi(s): [..., O] -> [..., A]."""
        return _action(self.policy, obs)

    def imagine(self, batch: Batch[tf.Tensor], sampled: SampledMembers) -> Rollout:
        """Rolls the model out from s_0 = s' with the current policy (SPEC section 5).

        What depends on s_0 alone is computed once, not once per transition member.
        """
        obs = batch.next_obs[None]
        action = _action(self._imagined_policy, obs)
        states, actions = [obs], [action]
        for h in range(self.horizon):
            obs = self._model.next_obs(obs, action, sampled.model, h)  # [M, B, O]
            action = _action(self._imagined_policy, obs)
            states.append(obs)
            actions.append(action)

        first_value = self._target_values(
            states[0][0], actions[0][0], sampled
        )  # [B, L]
        real_continue = (1.0 - batch.terminated)[:, None, None]  # [B, 1, 1]
        if self.horizon == 0:
            return Rollout(
                rewards=batch.reward[:, None, None, None],
                continue_probs=real_continue,
                values=first_value[:, None, None, :],
                obs=None,
                actions=None,
            )
        return self._unrolled(batch, states, actions, first_value, sampled)

    def _target_values(
        self, obs: tf.Tensor, action: tf.Tensor, sampled: SampledMembers
    ) -> tf.Tensor:
        """Qtarget_l(s, a) of all chosen members: [R, O], [R, A] -> [R, L]."""
        inputs = tf.concat([obs, action], -1)[None]
        return tf.transpose(self.target_q(inputs, sampled.q_members)[..., 0])

    def _unrolled(
        self,
        batch: Batch[tf.Tensor],
        states: list[tf.Tensor],
        actions: list[tf.Tensor],
        first_value: tf.Tensor,
        sampled: SampledMembers,
    ) -> Rollout:
        """Rewards, terminations and values of the whole rollout at once.

        Args:
            batch: the real transitions.
            states: s_0 [1, B, O], then s_1 .. s_H, each [M, B, O].
            actions: a_0 [1, B, A], then a_1 .. a_H, each [M, B, A].
            first_value: Qtarget(s_0, a_0), [B, L].
            sampled: the members that take part.
        """
        model, models = self._model, states[1].shape[0]
        obs, action = (
            _side_by_side(states[:-1], models),
            _side_by_side(actions[:-1], models),
        )
        next_obs = _side_by_side(states[1:], models)  # [M, H*B, O]
        next_action = _side_by_side(actions[1:], models)

        def by_step(x: tf.Tensor) -> tf.Tensor:
            """[M*H*B, .] -> [B, H, M, .]."""
            steps = tf.reshape(x, [models, self.horizon, -1, x.shape[-1]])
            return tf.transpose(steps, [2, 1, 0, 3])

        reward = model.rewards(
            _flat(next_obs), _flat(obs), _flat(action), sampled.model
        )  # [N, M*H*B]
        termination = model.termination_prob(
            next_obs, obs, action, sampled.model
        )  # [M, H*B]
        value = self._target_values(_flat(next_obs), _flat(next_action), sampled)
        terminations = _after_real(
            batch.terminated[:, None, None],
            by_step(tf.reshape(termination, [-1, 1]))[..., 0],
        )  # [B, H+1, M]
        return Rollout(
            rewards=_after_real(
                batch.reward[:, None, None, None], by_step(tf.transpose(reward))
            ),
            continue_probs=continue_prob(terminations),
            values=_after_real(first_value[:, None, None], by_step(value)),
            obs=by_step(_flat(obs)),
            actions=by_step(_flat(action)),
        )

    def candidates(self, imagined: Rollout, start: int = 0) -> tf.Tensor:
        """T_{j,j} .. T_{j,H} of start j: [B, H+1-j, S]."""
        return candidate_targets(
            imagined.rewards,
            imagined.continue_probs,
            imagined.values,
            self._task.discount,
            self._task.reward_scale,
            start,
        )

    def weights(self, candidates: tf.Tensor) -> tf.Tensor:
        """The algorithm's weights of the candidates, [B, H+1, S] -> [B, H+1]."""
        if self._expansion is None:
            return tf.ones(candidates.shape[:2])  # DDPG: the one candidate T_0
        return horizon_weights(candidates, self._expansion)

    def rollout_q(self, imagined: Rollout, assignment: nn.Assignment) -> tf.Tensor:
        """Q_k(s_h^m, a_h^m) averaged over the transition members m, [B, H] (TDk).

        k is the sample's member; h = 0 .. H-1. Gradients flow into Q's weights. All
        rollouts start from the same (s_0, a_0), so Q is evaluated there only once.
        """
        inputs = tf.concat([imagined.obs, imagined.actions], -1)  # [B, H, M, O+A]
        first = self.q.apply_assigned(inputs[:, 0, 0], assignment)  # [B, 1]
        if self.horizon == 1:
            return first
        later = self.q.apply_assigned(inputs[:, 1:], assignment)[..., 0]  # [B, H-1, M]
        return tf.concat([first, tf.reduce_mean(later, axis=-1)], axis=1)

    def targets(self, imagined: Rollout) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Targets of the starts in use, their weights in the loss, the model usage.

        Without TDk the only start is (s, a), j = 0. With it j = 0 .. H; start j > 0
        counts by the probability C_{j-1} of having reached it, averaged over the
        transition members.

        Returns:
            ([B, J], [B, J], []), the usage being 1 - mean w_0 for weightings that
            adapt to the candidates, such as STEVE's, and 0 for every other.
        """
        tdk = self._expansion is not None and self._expansion.tdk_trick
        targets = []
        usage = tf.constant(0.0)
        for start in range(self.horizon + 1 if tdk else 1):
            candidates = self.candidates(imagined, start)
            weights = self.weights(candidates)
            targets.append(weighted_target(candidates, weights))
            if start == 0 and self._expansion and self._expansion.entry.adaptive:
                usage = 1.0 - tf.reduce_mean(weights[:, 0])
        reached = tf.reduce_mean(reach_prob(imagined.continue_probs), axis=-1)
        return tf.stack(targets, axis=1), reached[:, : len(targets)], usage

    def gradients(
        self, batch: Batch[tf.Tensor], sampled: SampledMembers
    ) -> tuple[list[tf.Tensor], list[tf.Tensor], dict[str, tf.Tensor]]:
        """Gradients of policy and Q at the same parameters, and the metrics.

        No gradient flows through the targets: they are computed outside the tapes.

        Returns:
            (gradients of policy_loss + policy_reg_loss in the order of the policy's
            variables, gradients of q_loss in the order of Q's, metrics).
        """
        imagined = self.imagine(batch, sampled)
        targets, start_weights, usage = self.targets(imagined)

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.policy.variables)
            pre_tanh = self.pre_tanh_action(batch.obs)
            inputs = tf.concat([batch.obs, tf.tanh(pre_tanh)], -1)[None]
            actor_loss = policy_loss(self.q(inputs, sampled.q_members)[..., 0])
            reg_loss = pre_tanh_loss(pre_tanh, self._config.pre_tanh_penalty)
            total = actor_loss + reg_loss
        policy_gradients = tape.gradient(total, self.policy.variables)

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.q.variables)
            inputs = tf.concat([batch.obs, batch.action], -1)
            predicted = self.q.apply_assigned(inputs, sampled.q_assignment)  # [B, 1]
            if self._expansion is not None and self._expansion.tdk_trick:
                imagined_q = self.rollout_q(imagined, sampled.q_assignment)
                predicted = tf.concat([predicted, imagined_q], axis=1)  # [B, H+1]
            critic_loss = q_loss(predicted, targets, start_weights)
        q_gradients = tape.gradient(critic_loss, self.q.variables)

        metrics = {
            "q_loss": critic_loss,
            "policy_loss": actor_loss,
            "policy_reg_loss": reg_loss,
            "model_usage": usage,
        }
        return policy_gradients, q_gradients, metrics

    def update(
        self,
        batch: Batch[tf.Tensor],
        sampled: SampledMembers,
        policy_optimizer: nn.Adam,
        q_optimizer: nn.Adam,
    ) -> dict[str, tf.Tensor]:
        """One step of policy and Q; both gradients are taken before either step."""
        policy_gradients, q_gradients, metrics = self.gradients(batch, sampled)
        policy_optimizer.apply(policy_gradients)
        q_optimizer.apply(q_gradients)
        return metrics


def _action(policy: nn.FeedForward, obs: tf.Tensor) -> tf.Tensor:
    """The greedy action tanh pi(s): [..., O] -> [..., A]."""
    flat = tf.reshape(obs, [1, -1, obs.shape[-1]])
    return tf.reshape(tf.tanh(policy(flat)), [*obs.shape[:-1], -1])


def _side_by_side(steps: list[tf.Tensor], models: int) -> tf.Tensor:
    """H steps of [M, B, .] or [1, B, .] -> [M, H*B, .]."""
    wide = [tf.broadcast_to(x, [models, *x.shape[1:]]) for x in steps]
    return tf.reshape(tf.stack(wide, axis=1), [models, -1, wide[0].shape[-1]])


def _flat(x: tf.Tensor) -> tf.Tensor:
    """[M, H*B, .] -> [M*H*B, .]."""
    return tf.reshape(x, [-1, x.shape[-1]])


def _after_real(real: tf.Tensor, imagined: tf.Tensor) -> tf.Tensor:
    """The real step, the same for all members, before the imagined ones.

    [B, 1, 1, .], [B, H, M, .] -> [B, H+1, M, .].
    """
    real = tf.broadcast_to(real, [real.shape[0], 1, *imagined.shape[2:]])
    return tf.concat([real, imagined], axis=1)
