"""The value learner: policy and Q-functions, with the newest world model (SPEC 2)."""

from collections.abc import Mapping

import tensorflow as tf

from . import nn
from .batch import Batch
from .compute import prepare_tensorflow
from .learner import Learner, assign
from .replay import DATA_NAME
from .running.child import Context
from .settings.roles import VALUERL, WORLDMODEL
from .storage import checkpoint
from .storage.checkpoint import CheckpointError, Scalar
from .valuerl import Task, ValueRL
from .worldmodel import build_world_model

METRIC_NAMES = ("q_loss", "policy_loss", "policy_reg_loss", "model_usage")


class ValueRLLearner(Learner):
    """Learns policy and Q; at each epoch takes up the newest world model."""

    name = VALUERL

    def __init__(self, context: Context) -> None:
        run = context.run
        settings = run.config.policy_config
        super().__init__(context, settings, METRIC_NAMES)
        self._seed = nn.seed_of(context.seed)
        generator = tf.random.Generator.from_seed(context.seed)
        self.world_model = None
        if settings.value_expansion is not None:
            self.world_model = build_world_model(
                run.config.model_section, run.obs_dim, run.action_dim, generator
            )
        self.valuerl = ValueRL(
            settings,
            Task(
                run.obs_dim,
                run.action_dim,
                run.config.env.discount,
                run.config.env.reward_scale,
            ),
            generator,
            self.world_model,
        )
        rate = settings.learning_rate
        self.policy_optimizer = nn.Adam(self.valuerl.policy.variables, rate)
        self.q_optimizer = nn.Adam(self.valuerl.q.variables, rate)
        self.models = 0  # published world models taken up
        self._seen_stamp: object = None  # of the world model's file

    def variables(self) -> Mapping[str, tf.Variable]:
        """Nets as "policy/w0", "q/w0", "target_q/w0", optimisers as "q_adam/m0"."""
        return self.valuerl.named_variables() | nn.prefixed(
            {
                "policy_adam": self.policy_optimizer.named_variables(),
                "q_adam": self.q_optimizer.named_variables(),
            }
        )

    def train_step(self, batch: Batch[tf.Tensor]) -> dict[str, tf.Tensor]:
        """One update of policy and Q."""
        seed = nn.fold_in(self._seed, self.q_optimizer.steps)
        sampled = self.valuerl.sample(seed, self.settings.batch_size)
        return self.valuerl.update(
            batch, sampled, self.policy_optimizer, self.q_optimizer
        )

    def start(self) -> bool:
        """Waits for frames and the first world model; publishes the first policy."""
        if not self.wait_for_frames():
            return False
        self.start_clock()
        if self.world_model is not None and not self.wait(self._load_model):
            return False
        self.valuerl.update_target_network()
        self.publish_epoch()
        return True

    def begin_epoch(self) -> None:
        """The target Q becomes a copy of Q; the newest world model is loaded."""
        self.valuerl.update_target_network()
        self._load_model()

    def publish(self) -> None:
        """Publishes the small policy file that interactors and evaluators read."""
        variables = nn.prefixed({"policy": self.valuerl.policy.named_variables()})
        tensors = {name: v.numpy()[0] for name, v in variables.items()}
        metadata: dict[str, Scalar] = {**self.metadata()}
        if interface := self.context.run.interface:
            metadata["interface"] = interface.to_json()
        self.context.store(
            lambda: checkpoint.publish(self.folders.policy, tensors, metadata)
        )

    def backup(self, only_missing: bool = False) -> None:
        """Where it is asked for, also copies the replay buffer."""
        super().backup(only_missing)
        folder = self.folders.numbered_replay(self.updates)
        there = (folder / DATA_NAME).exists()
        if self.config.keep_all_replay_buffers and not there:
            self.context.store(lambda: self.replay.copy_to(folder))

    def _load_model(self) -> bool:
        """Takes up the newest world model; whether there was a new one.

        A state saved during pretraining (epoch 0) is not a published one.
        """
        path = self.folders.state(WORLDMODEL)
        stamp = checkpoint.stamp(path)
        if self.world_model is None or stamp in (None, self._seen_stamp):
            return False
        self._seen_stamp = stamp
        state, warning = checkpoint.load_newest(path)
        if warning:
            print(warning)
        if int(state.metadata["epoch"]) == 0:
            return False
        assign(path, state, self.world_model.named_variables())
        self.models += 1
        self.row["models"] = self.models
        return True

    def counters(self) -> dict[str, int]:
        return {"models": self.models}

    def restore_counters(self, metadata: Mapping[str, Scalar]) -> None:
        self.models = int(metadata["models"])
        self.row["models"] = self.models

    def after_restore(self) -> None:
        """Takes up the newest world model, and publishes a policy that is due.

        Raises:
            CheckpointError: there is no world model, but this learner has learned
                with one.
        """
        if self.epoch == 0:
            return
        if self.world_model is not None and not self._load_model():
            raise CheckpointError(
                f"{self.folders.state(WORLDMODEL)}: there is no published world model "
                "to resume with"
            )
        if self._published_epoch() < self.epoch:
            self.publish()  # ended between the state and the policy of an epoch

    def _published_epoch(self) -> int:
        """The epoch of the policy on disk; 0 where there is no good one."""
        try:
            return int(checkpoint.load(self.folders.policy).metadata["epoch"])
        except CheckpointError:
            return 0


def build(context: Context) -> ValueRLLearner:
    """Prepares TensorFlow for this learner, and builds it."""
    run, settings = context.run, context.run.config.policy_config
    ensembles = [settings.bayesian] if settings.bayesian else []
    if settings.value_expansion and (sizes := run.config.model_section.bayesian):
        ensembles += [sizes.transition, sizes.reward]
    members = max((size.eval_sample_count for size in ensembles), default=1)
    if settings.value_expansion is None:
        members = max(members, 2)  # small nets only: policy and Q side by side
    prepare_tensorflow(context.name, run.cpu_learners, settings.threads, members)
    return ValueRLLearner(context)


def main(context: Context) -> None:
    """The process's main function."""
    build(context).run()
