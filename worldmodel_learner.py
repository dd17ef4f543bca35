"""The world-model learner: pretrains, publishes, then learns along (SPEC section 2)."""

from collections.abc import Mapping

import tensorflow as tf

from . import nn
from .batch import Batch
from .learner import Learner, prepare
from .running import pace
from .running.child import Context
from .settings.roles import WORLDMODEL
from .settings.schema import SINGLE_NET
from .settings.seeds import Stream
from .storage.checkpoint import Scalar
from .util import Every
from .worldmodel import build_world_model


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
