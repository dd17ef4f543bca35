"""The world-model learner: pretrains, publishes, then learns along (SPEC section 2)."""

from collections.abc import Mapping

import tensorflow as tf

import nn
from learner import Learner, prepare_tensorflow
from process import Context
from replay import Batch
from status import WORLDMODEL
from util import Every
from worldmodel import WorldModel


class WorldmodelLearner(Learner):
    """Fits transition, termination and reward ensembles to the replay buffer."""

    name = WORLDMODEL
    metric_names = (
        "total_loss",
        "transition_loss",
        "termination_loss",
        "reward_loss",
        "reg_loss",
    )

    def __init__(self, context: Context) -> None:
        settings = context.run.config.world_model_config
        super().__init__(context, settings)
        self.pretrained = 0
        self.model = WorldModel(
            settings,
            context.run.obs_dim,
            context.run.action_dim,
            tf.random.Generator.from_seed(context.seed),
        )
        self.optimizer = nn.Adam(self.model.variables, settings.learning_rate)

    def variables(self) -> Mapping[str, tf.Variable]:
        """Nets as "transition/w0", optimiser as "adam/m0"."""
        return self.model.named_variables() | nn.prefixed(
            {"adam": self.optimizer.named_variables()}
        )

    @tf.function
    def train_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """One update of all three ensembles."""
        shares = self.model.draw_shares(self.settings.batch_size)
        return self.model.update(batch, shares, self.optimizer)

    def start(self) -> bool:
        """Pretrains on the first frames and publishes; goes on where it stopped."""
        if not self.wait_for_frames():
            return False
        self.start_clock()
        # False: the initial weights are published at once.
        target = self.settings.pretrain_n or 0
        log = Every(self.settings.log_every_n, self.pretrained)
        save = Every(self.settings.epoch_every_n, self.pretrained)
        while self.pretrained < target:
            if self.context.stop():
                return False
            self.learn()
            self.pretrained += 1
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

    def restore_counters(self, metadata: Mapping[str, object]) -> None:
        self.pretrained = int(metadata["pretrained"])
        self.row["pretrained"] = self.pretrained


def main(context: Context) -> None:
    """The process's main function."""
    prepare_tensorflow(context, context.run.config.world_model_config.threads)
    WorldmodelLearner(context).run()
