"""The value learner: policy and Q-functions, with the newest world model (SPEC 2)."""

import contextlib
from collections.abc import Callable, Mapping

import tensorflow as tf

from . import nn
from .batch import Batch
from .learner import Learner, assign, prepare
from .running import pace
from .running.child import Context
from .settings.roles import VALUERL, WORLDMODEL, evaluators
from .settings.schema import SINGLE_NET
from .settings.seeds import Stream
from .storage import checkpoint
from .storage.board import Wait
from .storage.checkpoint import CheckpointError, Scalar
from .storage.conditions import processor_kind
from .storage.digests import (
    NONE,
    Digest,
    append_digest,
    read_digests,
    trim_digests,
)
from .util import UserError, wait_until
from .valuerl import Task, ValueRL
from .worldmodel import LowPrecisionModel, build_world_model

MOST_UNEVALUATED = 10  # policies that evaluators may be behind
SPARE = 3  # policies that are kept although they have been evaluated
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
BFLOAT16_CAPABILITY = (8, 0)  # of NVIDIA's GPUs, from Ampere on
METRIC_NAMES = ("q_loss", "policy_loss", "policy_reg_loss", "model_usage")


class ValueRLLearner(Learner):
    """Learns policy and Q; at each epoch takes up the newest world model."""

    name = VALUERL
    batch_stream = Stream.VALUERL_BATCH

    def __init__(self, context: Context, is_compiled: bool = False) -> None:
        run = context.run
        settings = run.config.policy_config
        super().__init__(context, settings, METRIC_NAMES, is_compiled)
        self._seed = nn.seed_tensor(context.seed)
        generator = nn.generator_of(context.seed)
        self.world_model = None
        if settings.value_expansion is not None:
            self.world_model = build_world_model(
                run.config.model_section, run.obs_dim, run.action_dim, generator
            )
            if settings.value_expansion.imagination_precision == "bfloat16":
                kind = run.config.model_section.kind
                check_bfloat16(kind, self.world_model, run.cpu_learners, is_compiled)
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
        self.model_updates = -1  # of the one in use
        self._has_model = False  # one has been assigned in this launch
        self._rows_from = 0  # the first frame that no line of digests.csv covers
        self._digest_epoch = 0  # of its last line
        self._earlier_model = 0  # updates of the one before

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
        update = self.q_optimizer.steps.read_value()
        seed = nn.fold_in(self._seed, update)
        sampled = self.valuerl.sample(seed, update, self.settings.batch_size)
        return self.valuerl.update(
            batch, sampled, self.policy_optimizer, self.q_optimizer
        )

    def start(self) -> bool:
        """Waits for frames and the first world model; publishes the first policy."""
        if not self.wait_for_frames():
            return False
        self.start_clock()
        if not self.begin_epoch():  # waits for the world model's pretraining
            return False
        self.start_log()
        self.publish_epoch()
        return True

    def begin_epoch(self) -> bool:
        """The target Q becomes a copy of Q; the epoch's world model is taken up."""
        if not (self._wait_for_evaluators() and self._load_model()):
            return False
        self.valuerl.update_target_network()
        return True

    def publish(self) -> None:
        """Publishes the policy, a line of digests, and drops what nobody needs."""
        self._publish_policy(self.updates)
        if self.config.is_paced:
            self._add_digest()
        self._drop_unneeded()

    def _publish_policy(self, updates: int) -> None:
        """Publishes the small policy file that interactors and evaluators read."""
        variables = nn.prefixed({"policy": self.valuerl.policy.named_variables()})
        tensors = {name: v.numpy()[0] for name, v in variables.items()}
        metadata: dict[str, Scalar] = {**self.metadata()}
        if interface := self.context.run.interface:
            metadata["interface"] = interface.to_json()
        self.context.store(
            lambda: checkpoint.publish(self.folders.policy, tensors, metadata)
        )
        policies = self.folders.policies
        self.context.store(lambda: policies.add(updates, self.folders.policy))

    def backup(self, only_missing: bool = False) -> None:
        """Where it is asked for, also copies the replay buffer."""
        super().backup(only_missing)
        folder = self.folders.numbered_replay(self.updates)
        if self.config.keep_all_replay_buffers and not self.replay.exists(folder):
            self.context.store(lambda: self.replay.copy_to(folder))

    def _add_digest(self) -> None:
        """Appends this epoch's line to digests.csv, unless it is there."""
        if self._digest_epoch == self.epoch:
            return
        model, frames, rows = NONE, self.frames_used(), NONE
        if self.world_model is not None:
            model = checkpoint.digest(self.folders.models.path(self.model_updates))
        with contextlib.suppress(IndexError):  # rows that were lost
            rows = self.replay.digest(self._rows_from, frames)
        line = Digest(
            self.epoch,
            self.updates,
            frames,
            checkpoint.digest(self.folders.state(self.name)),
            checkpoint.digest(self.folders.policy),
            model,
            rows,
        )
        self.context.store(lambda: append_digest(self.folders.digests, line))
        self._rows_from, self._digest_epoch = frames, self.epoch

    def _drop_unneeded(self) -> None:
        """Removes published policies and models that no process can need any more.

        Kept are also those for a resume from the states before the last ones.
        """
        agent, policies = self.config.agent_config, self.folders.policies
        reload = agent.reload_every_n * agent.count * agent.batch_size
        needed = self.updates
        if self.config.is_paced:
            needed = pace.policy_for(self.config, self.replay.frames - reload) or 0
        oldest = needed - 2 * self.settings.epoch_every_n
        waiting = max(0, self.epoch - self._evaluated()) + SPARE
        policies.drop_before(min(oldest, *policies.numbers()[-waiting:]))
        if self.world_model is not None:
            spare = 2 * self.config.model_section.epoch_every_n
            self.folders.models.drop_before(self._earlier_model - spare)
            self._earlier_model = self.model_updates

    def _evaluated(self) -> int:
        """The epoch up to which all evaluators are done."""
        board = self.context.board
        epochs = (int(board[name]["epoch"]) for name in evaluators(self.config))
        return min(epochs, default=self.epoch)

    def _wait_for_evaluators(self) -> bool:
        """Waits while evaluators are many policies behind; False: it was stopped."""
        settings = self.config.evaluator_config
        if not settings.in_order:
            return True
        most = MOST_UNEVALUATED * int(settings.every_n_epochs)
        return self._wait_unless_stopped(
            lambda: self.epoch - self._evaluated() <= most, Wait.EVALUATORS
        )

    def _wait_unless_stopped(
        self, condition: Callable[[], bool], what: Wait = Wait.MODEL
    ) -> bool:
        """Waits also where the run's frames are used up; False: it was stopped."""

        def over() -> bool:
            self.tick()
            return self.is_cut_short()

        wait_until(
            self.context.while_there_is(lambda: None if condition() or over() else what)
        )
        return condition()

    def _load_model(self) -> bool:
        """Takes up the world model of this epoch, and waits for it.

        Unpaced, it is the newest, if there is a new one.

        Returns:
            False where the run was stopped meanwhile.
        """
        if self.world_model is None:
            return True
        if not self.config.is_paced:
            return self._load_newest_model()
        wanted = pace.model_for(self.config, self.updates)
        models = self.folders.models
        if not self._wait_unless_stopped(
            lambda: models.path(wanted).exists() or self._is_passed(wanted)
        ):
            return False
        if not models.path(wanted).exists():
            self.note_nondeterminism(f"there is no world model of {wanted} updates")
            wanted = models.nearest(wanted)
        if wanted != self.model_updates:
            self._use_model(wanted)
        return True

    def _is_passed(self, wanted: int) -> bool:
        """Whether the world-model learner will never publish that number.

        So it may be after a rewind, and in a run of version 1.0.
        """
        row = self.context.board[WORLDMODEL]
        is_beyond = row["ready"] and row["updates"] > wanted
        there = self.folders.models.numbers() if is_beyond else []
        return bool(there) and not self.folders.models.path(wanted).exists()

    def _load_newest_model(self) -> bool:
        """Takes up the newest world model; waits only for the first."""
        models = self.folders.models
        if not self._wait_unless_stopped(lambda: bool(models.numbers())):
            return False
        self._use_newest_model()
        return True

    def _use_newest_model(self) -> None:
        """Assigns the newest good world model, unless it is in use.

        Raises:
            CheckpointError: there is none.
        """
        models, damage = self.folders.models, None
        for updates in reversed(models.numbers()):
            try:
                if updates != self.model_updates or not self._has_model:
                    self._use_model(updates)
                return
            except CheckpointError as error:
                damage = error
                print(f"{error}; the one before is used instead", flush=True)
        raise damage or CheckpointError(
            f"{models.folder}: there is no published world model to resume with"
        )

    def _use_model(self, updates: int) -> None:
        assert self.world_model is not None
        path = self.folders.models.path(updates)
        assign(path, checkpoint.load(path), self.world_model.named_variables())
        if updates != self.model_updates:
            self.models += 1
            self.row["models"] = self.models
        self.model_updates, self._has_model = updates, True

    def metadata(self) -> dict[str, float]:
        return {**super().metadata(), "model_updates": self.model_updates}

    def counters(self) -> dict[str, int]:
        return {"models": self.models}

    def restore_counters(self, metadata: Mapping[str, Scalar]) -> None:
        self.models = int(metadata["models"])
        self.row["models"] = self.models
        self.model_updates = int(metadata.get("model_updates", self._adopted()))

    def _adopted(self) -> int:
        """The world model of a run of version 1.0, as `storage.opening` named it."""
        return next(iter(self.folders.models.numbers()), -1)

    def after_restore(self) -> None:
        """Takes up the world model that it had, and publishes a policy that is due.

        Raises:
            CheckpointError: there is no world model, but this learner has learned
                with one.
        """
        trim_digests(self.folders.digests, self.updates)
        lines = read_digests(self.folders.digests)
        if lines:
            self._rows_from, self._digest_epoch = lines[-1].frames, lines[-1].epoch
        if self.epoch == 0:
            return
        if self.world_model is not None:
            self._restore_model()
        self._earlier_model = self.model_updates
        if self._published_epoch(lines) == self.epoch:
            return
        if self.updates == self._published_updates:
            self.publish()  # ended between the state and the policy of an epoch
        else:
            self.note_nondeterminism("the policy of the last epoch is lost")
            self._publish_policy(self._published_updates)

    def _restore_model(self) -> None:
        """Takes up the world model that it had; unpaced, the newest."""
        if self.config.is_paced:
            self._use_model(self.model_updates)
        else:
            self._use_newest_model()

    def _published_epoch(self, lines: list[Digest]) -> int:
        """The epoch up to which all is published; 0 where there is no good policy."""
        try:
            epoch = int(checkpoint.load(self.folders.policy).metadata["epoch"])
        except CheckpointError:
            return 0
        if self.config.is_paced and self.updates == self._published_updates:
            epoch = min(epoch, lines[-1].epoch if lines else 0)
        if not self.folders.policies.path(self._published_updates).exists():
            epoch = min(epoch, self.epoch - 1)  # it has not got its number
        return min(epoch, self.epoch)


def check_bfloat16(kind: str, model: object, on_cpu: bool, xla: bool) -> None:
    """Looks whether rollouts can be computed in bfloat16, and faster than in float32.

    Args:
        kind: the world model's.
        model: the world model.
        on_cpu: whether this process computes on the CPU.
        xla: whether XLA compiles the updates.

    Raises:
        UserError: they cannot.
    """
    if not isinstance(model, LowPrecisionModel):
        method = LowPrecisionModel.with_compute_dtype.__name__
        gains, why = False, f'world models of the kind "{kind}" have no {method}'
    elif not on_cpu:
        gpu = tf.config.list_physical_devices("GPU")[0]
        details = tf.config.experimental.get_device_details(gpu)
        gains = details.get("compute_capability", (0, 0)) >= BFLOAT16_CAPABILITY
        why = "this GPU multiplies it no faster"
    elif xla:
        gains, why = False, "on a CPU, XLA (policy_config.xla) gains nothing from it"
    else:
        instructions = processor_kind().get("instructions", "").split()
        gains = any(name in instructions for name in BFLOAT16_INSTRUCTIONS)
        why = "this processor has no instructions for it"
    if not gains:
        raise UserError(
            "policy_config.value_expansion.imagination_precision is bfloat16, but "
            f"{why}; use float32"
        )


def build(context: Context) -> ValueRLLearner:
    """Prepares TensorFlow for this learner, and builds it."""
    settings = context.run.config.policy_config
    products = [(settings.batch_size, settings.hidden_dim)]  # rows and width
    ensembles = [settings.bayesian or SINGLE_NET]
    if expansion := settings.value_expansion:
        model = context.run.config.model_section
        sizes = model.bayesian
        ensembles += [sizes.transition, sizes.reward] if sizes else []
        transition = sizes.transition if sizes else SINGLE_NET
        imagined = (
            settings.batch_size * transition.eval_sample_count * expansion.rollout_len
        )
        products += [
            (settings.batch_size, model.transition_hidden_dim),
            (imagined, max(settings.hidden_dim, model.aux_hidden_dim)),
        ]
    members = max(size.eval_sample_count for size in ensembles)
    if expansion is None:
        members = max(members, 2)  # small nets only: policy and Q side by side
    is_small = all(nn.is_small_product(rows, width * width) for rows, width in products)
    return ValueRLLearner(context, prepare(context, settings, members, is_small))


def main(context: Context) -> None:
    """The process's main function."""
    build(context).run()
