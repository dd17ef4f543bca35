"""Compares the mathematics with reference vectors of the 2018 release.

    python tests/programs/check_reference.py DIR

DIR holds one .npz per case: parameters, a batch, and what the 2018 code computed from
them (targets, weights, losses, gradients, parameters after five updates). Each case
runs through the functions that training calls, with the members chosen explicitly.
Prints a line per case and quantity; exits 1 where an error is above its tolerance.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from steve import nn
from steve.compute import set_precision
from steve.replay import Batch
from steve.settings.schema import (
    Config,
    PolicyConfig,
    ValueExpansion,
    WorldModelConfig,
)
from steve.valuerl import (
    SampledMembers,
    Task,
    ValueRL,
    covariance_system,
    covariance_weights,
    steve_weights,
)
from steve.worldmodel import ModelAssignment, ModelMembers, WorldModel

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


UPDATES = 5
DEFAULTS = ValueExpansion(rollout_len=1)  # the 2018 code's constants
MODEL_NETS = ("transition", "termination", "reward")
# 2018 name in the file -> our name, for the world model's losses.
MODEL_LOSSES = {
    "wm_total_loss": "total_loss",
    "wm_transition_loss": "transition_loss",
    "wm_termination_loss": "termination_loss",
    "wm_reward_loss": "reward_loss",
    "wm_reg_loss": "reg_loss",
}


class Result(NamedTuple):
    """The largest error of one quantity, and what is allowed."""

    quantity: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return bool(self.error <= self.tolerance)  # NaN does not pass


def worst(errors: list[float]) -> float:
    """The largest; NaN where any is NaN, which Python's `max` may pass over."""
    return float(np.max(errors))


def absolute_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference; shapes must agree after squeezing a single member's axis."""
    ours, reference = np.asarray(ours), np.asarray(reference)
    if ours.size != reference.size:
        raise ValueError(f"shape {ours.shape} against {reference.shape}")
    return float(np.max(np.abs(ours.reshape(reference.shape) - reference)))


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference over the largest entry of the reference tensor."""
    largest = float(np.max(np.abs(reference)))
    return absolute_error(ours, reference) / (largest if largest > 0 else 1.0)


def interleaved(count: int) -> nn.Assignment:
    """Row i to member i mod `count`, as the vectors fix it."""
    return nn.Assignment(count, tf.range(count), strided=True)


class Case:
    """One file: its nets with the given parameters, its batch, its fixed sampled."""

    def __init__(self, path: Path, xla: bool = False) -> None:
        self._xla = xla
        with np.load(path) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.meta = json.loads(bytes(self.arrays.pop("meta")))
        self.name = self.meta["case"]
        self.sizes = self.meta["ensembles"] or {
            net: [1, 1, 1] for net in ("transition", "reward", "q")
        }
        generator = tf.random.Generator.from_seed(0)
        has_model = self.meta["horizon"] is not None
        self.world_model = self._build_world_model(generator) if has_model else None
        self.valuerl = self._build_valuerl(generator)
        self.reset_parameters()
        self.batch = Batch(
            obs=self._constant("batch/obs"),
            action=self._constant("batch/action"),
            reward=self._constant("batch/reward"),
            next_obs=self._constant("batch/next_obs"),
            terminated=self._constant("batch/done"),
        )
        self.sampled = self._fixed_members()

    def _constant(self, name: str) -> tf.Tensor:
        return tf.constant(self.arrays[name], tf.float32)

    def _layers(self, net: str) -> int:
        return sum(name.startswith(f"param/{net}/w") for name in self.arrays)

    def _ensemble(self, net: str) -> dict[str, int]:
        names = ("ensemble_size", "train_sample_count", "eval_sample_count")
        return dict(zip(names, self.sizes[net], strict=True))

    def _build_world_model(self, generator: tf.random.Generator) -> WorldModel:
        config = WorldModelConfig.model_validate(
            {
                "transition_hidden_dim": self.meta["transition_hidden"],
                "aux_hidden_dim": self.meta["aux_hidden"],
                "transition_layers": self._layers("transition"),
                "aux_layers": self._layers("reward"),
                "batch_size": self.meta["batch"],
                "bayesian": {n: self._ensemble(n) for n in ("transition", "reward")},
            }
        )
        return WorldModel(
            config, self.meta["obs_dim"], self.meta["action_dim"], generator
        )

    def _build_valuerl(self, generator: tf.random.Generator) -> ValueRL:
        expansion = None
        if self.world_model is not None:
            expansion = {
                **self.meta["value_expansion"],
                "rollout_len": self.meta["horizon"],
            }
        config = PolicyConfig.model_validate(
            {
                "hidden_dim": self.meta["policy_hidden"],
                "layers": self._layers("policy"),
                "batch_size": self.meta["batch"],
                "bayesian": self._ensemble("q"),
                "value_expansion": expansion,
            }
        )
        return ValueRL(
            config,
            Task(*(self.meta[key] for key in Task._fields)),
            generator,
            self.world_model,
        )

    def variables(self) -> dict[str, tf.Variable]:
        named = self.valuerl.named_variables()
        return named | (self.world_model.named_variables() if self.world_model else {})

    def reset_parameters(self) -> None:
        for name, variable in self.variables().items():
            variable.assign(self.arrays[f"param/{name}"].reshape(variable.shape))

    def _fixed_members(self) -> SampledMembers:
        """The first members, and row i to member i mod their number."""

        def first(net: str) -> tf.Tensor:
            return tf.range(self.sizes[net][2])

        model = ModelMembers(first("transition"), first("reward"))
        return SampledMembers(
            q_members=first("q"),
            q_assignment=interleaved(self.sizes["q"][1]),
            model=model if self.world_model else None,
        )

    def model_assignment(self) -> ModelAssignment:
        return ModelAssignment(
            interleaved(self.sizes["transition"][1]),
            interleaved(self.sizes["reward"][1]),
        )

    @property
    def is_covariance(self) -> bool:
        return bool(self.meta["value_expansion"].get("covariances"))

    # -- the comparisons ------------------------------------------------------

    def results(self) -> Iterator[Result]:
        yield from self._expansion_results()
        yield from self._value_results()
        if self.world_model is not None:
            yield from self._model_results()
        yield from self._update_results()

    def _expansion_results(self) -> Iterator[Result]:
        action = self.valuerl.action(self.batch.obs)
        yield self._compare("action_greedy", action, "out/action_greedy", 1e-5)
        if self.world_model is None:
            return
        imagined = self.valuerl.imagine(self.batch, self.sampled)
        means, weights, residuals = [], [], []
        for start in range(self.valuerl.horizon + 1):
            candidates = self.valuerl.candidates(imagined, start)
            mean = tf.reduce_mean(candidates, -1).numpy()
            reference = self.arrays["out/target_means"][:, start, start:]
            means.append((mean, reference))
            reference = self.arrays["out/weights"][:, start, start:]
            if self.is_covariance:
                residuals += self._residuals(candidates, reference)
            else:
                ours = steve_weights(candidates, DEFAULTS.variance_epsilon)
                weights.append((ours, reference))
        yield self._stacked("target_means", means, 1e-5)
        if self.is_covariance:
            yield Result("weights (residual)", worst(residuals), 3e-5)
        else:
            yield self._stacked("weights", weights, 1e-5)
        if self.meta["value_expansion"].get("tdk_trick"):
            ours = tf.reduce_mean(imagined.continue_probs, -1)
            yield self._compare("reach_prob", ours, "out/reach_prob", 1e-5)
            ours = self.valuerl.rollout_q(imagined, self.sampled.q_assignment)
            yield self._compare("rollout_q", ours, "out/rollout_q", 1e-5)

    @staticmethod
    def _residuals(candidates: tf.Tensor, reference: np.ndarray) -> list[float]:
        """How well the reference's weights, and ours, solve (K + ridge I) w = 1."""
        ridge = DEFAULTS.covariance_ridge
        system = covariance_system(candidates, ridge).numpy()
        residuals = []
        for weights in (reference, covariance_weights(candidates, ridge).numpy()):
            product = np.einsum("bhk,bk->bh", system, weights.astype(np.float64))
            scaled = product / product.mean(axis=1, keepdims=True)
            residuals.append(float(np.max(np.abs(scaled - 1))))
        return residuals

    def _value_results(self) -> Iterator[Result]:
        policy, q, metrics = self._traced(
            lambda: self.valuerl.gradients(self.batch, self.sampled)
        )()
        q_tolerance = 1e-4 if self.is_covariance else 1e-5
        for name in ("policy_loss", "policy_reg_loss"):
            yield self._compare(name, metrics[name], f"out/{name}", 1e-5)
        yield self._compare("q_loss", metrics["q_loss"], "out/q_loss", q_tolerance)
        usage, reference = metrics["model_usage"], self.arrays["out/model_use"]
        if self.is_covariance:
            yield Result("model_use (absolute)", absolute_error(usage, reference), 2e-3)
        else:
            yield Result("model_use", relative_error(usage, reference), 1e-5)
        yield self._gradient_result("policy", self.valuerl.policy, policy, 5e-5)
        q_tolerance = 2e-4 if self.is_covariance else 5e-5
        yield self._gradient_result("q", self.valuerl.q, q, q_tolerance)

    def _model_results(self) -> Iterator[Result]:
        gradients, losses = self._traced(
            lambda: self.world_model.gradients(self.batch, self.model_assignment())
        )()
        for theirs, ours in MODEL_LOSSES.items():
            yield self._compare(ours, losses[ours], f"out/{theirs}", 1e-5)
        for net_name in MODEL_NETS:
            net = getattr(self.world_model, net_name)
            own, gradients = (
                gradients[: len(net.variables)],
                gradients[len(net.variables) :],
            )
            yield self._gradient_result(net_name, net, own, 5e-5)

    def _update_results(self) -> Iterator[Result]:
        """Five updates of policy and Q, then five of the world model."""
        learning_rate = 3e-4
        policy_adam = nn.Adam(self.valuerl.policy.variables, learning_rate)
        q_adam = nn.Adam(self.valuerl.q.variables, learning_rate)
        update = self._traced(
            lambda: self.valuerl.update(self.batch, self.sampled, policy_adam, q_adam)
        )
        for _ in range(UPDATES):
            update()
        if self.world_model is not None:
            adam = nn.Adam(self.world_model.variables, learning_rate)
            update = self._traced(
                lambda: self.world_model.update(
                    self.batch, self.model_assignment(), adam
                )
            )
            for _ in range(UPDATES):
                update()
        variables = self.variables()
        for net in ("policy", "q", *(MODEL_NETS if self.world_model else ())):
            errors = [
                absolute_error(variable.numpy(), self.arrays[f"after5/{name}"])
                for name, variable in variables.items()
                if name.startswith(f"{net}/")
            ]
            yield Result(f"after5/{net} (absolute)", worst(errors), 1e-5)
        self.reset_parameters()

    def _traced(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """The function, compiled by XLA where that is asked for."""
        if not self._xla:
            return function
        return tf.function(function, autograph=False, jit_compile=True)

    def _compare(
        self, quantity: str, ours: tf.Tensor, name: str, tolerance: float
    ) -> Result:
        error = relative_error(ours, self.arrays[name])
        return Result(quantity, error, tolerance)

    @staticmethod
    def _stacked(quantity: str, pairs: list, tolerance: float) -> Result:
        """One tensor that is compared block by block."""
        largest = max(float(np.max(np.abs(reference))) for _, reference in pairs)
        error = worst([absolute_error(*pair) for pair in pairs])
        return Result(quantity, error / largest, tolerance)

    def _gradient_result(
        self, name: str, net: nn.FeedForward, gradients: list, tolerance: float
    ) -> Result:
        errors = [
            relative_error(
                tf.convert_to_tensor(gradient), self.arrays[f"grad/{name}/{key}"]
            )
            for key, gradient in zip(net.named_variables(), gradients, strict=True)
        ]
        return Result(f"grad/{name}", worst(errors), tolerance)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of .npz cases")
    parser.add_argument(
        "--xla", action="store_true", help="gradients and updates compiled by XLA"
    )
    arguments = parser.parse_args()
    folder = arguments.folder
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        parser.error(f"no .npz file in {folder}")
    # As training does: without it a GPU would round products to 10 bits.
    on_cpu = not tf.config.list_physical_devices("GPU")
    set_precision(Config.model_fields["precision"].default)
    tf32 = tf.config.experimental.tensor_float_32_execution_enabled()
    precision, device = "tf32" if tf32 else "float32", "CPU" if on_cpu else "GPU"
    compiled = ", compiled by XLA" if arguments.xla else ""
    print(f"products: {precision} on the {device}{compiled}")
    failed = 0
    largest: dict[str, float] = {}
    for path in paths:
        case = Case(path, arguments.xla)
        for result in case.results():
            failed += not result.passed
            verdict = "ok" if result.passed else "FAILED"
            print(
                f"{case.name:24} {result.quantity:26} {result.error:9.2e}"
                f"  (allowed {result.tolerance:.0e})  {verdict}"
            )
            before = largest.get(result.quantity, 0.0)
            largest[result.quantity] = worst([before, result.error])
    print(f"\nlargest error over {len(paths)} cases")
    for quantity, error in largest.items():
        print(f"  {quantity:26} {error:9.2e}")
    print(f"{failed} comparisons above their tolerance" if failed else "all agree")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
