"""Feed-forward ensembles, the sampling of their members, and Adam in TF 1's form.

Dimension letters: E members of an ensemble, K members that take part, R rows,
B batch, I inputs, F outputs. A single net is an ensemble with E = 1.
"""

if not __package__:
    raise ModuleNotFoundError("nn is steve.nn", name="nn")

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import tensorflow as tf


class Assignment(NamedTuple):
    """Which member of an ensemble trains on which row of a batch (SPEC section 4).

    The rows are cut into K near-equal shares, one for each member that takes part; the
    first B mod K shares hold one row more than the others. Batches are independent
    draws, so nothing is gained by taking the rows in a random order.

    Attributes:
        shares: K.
        members: [K] int32, the member of each share; None for all, in order.
        strided: share k holds the rows k, k + K, k + 2 K ..; else consecutive rows.
    """

    shares: int
    members: tf.Tensor | None = None
    strided: bool = False


# Floating-point operations of one product, up to which a CPU computes the members of an
# ensemble in one batched product.
SMALL_PRODUCT = 64e6

# Named, because "automatic" would be another one under XLA, and other numbers.
RANDOM_ALGORITHM = "philox"


def seed_tensor(seed: int) -> tf.Tensor:
    """The seed of TensorFlow's stateless draws, [2] int32, from one of 32 bits."""
    return tf.constant([0, np.uint32(seed).astype(np.int32)], tf.int32)


def generator_of(seed: int) -> tf.random.Generator:
    """Draws initial weights; each seed of 32 bits has a stream of its own.

    `Generator.from_seed` takes a seed as the counter of one and the same stream: there,
    neighbouring seeds draw the same numbers a few places apart.
    """
    key = tf.constant(np.uint64(seed))
    counter = tf.zeros([2], tf.uint64)
    return tf.random.Generator.from_key_counter(key, counter, RANDOM_ALGORITHM)


def fold_in(seed: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """A seed of its own for a number, an update's for instance: [2] -> [2] int32."""
    return tf.random.fold_in(seed, tf.cast(number, tf.int32), alg=RANDOM_ALGORITHM)


def split(seed: tf.Tensor, count: int) -> list[tf.Tensor]:
    """`count` independent seeds from one: [2] -> [2] int32 each."""
    return tf.unstack(tf.random.split(seed, count, alg=RANDOM_ALGORITHM))


def permutation(seed: tf.Tensor, count: int) -> tf.Tensor:
    """The numbers below `count` in random order, [count] int32.

    Sorts random integers: XLA has no shuffle, and draws other fractions.
    """
    keys = tf.random.stateless_uniform(
        [count], seed, None, None, tf.int32, alg=RANDOM_ALGORITHM
    )
    return tf.argsort(keys, stable=True)


def sample_members(seed: tf.Tensor, ensemble_size: int, count: int) -> tf.Tensor | None:
    """Samples `count` different members, [K] int32; None stands for all of them."""
    if count == ensemble_size:
        return None
    return permutation(seed, ensemble_size)[:count]


def sample_assignment(
    seed: tf.Tensor,
    update: tf.Tensor,
    batch_size: int,
    ensemble_size: int,
    count: int,
    *,
    strided: bool = False,
) -> Assignment:
    """Gives each row of a batch to one of `count` randomly sampled members.

    Args:
        seed: of this update, [2] int32.
        update: its number, []; where all take part, the rows that remain after an
            even division go round with it.
        batch_size: B.
        ensemble_size: E.
        count: K, 1 .. E.
        strided: as in `Assignment`.
    """
    members = None
    if count < ensemble_size:
        members = permutation(seed, ensemble_size)[:count]
    elif batch_size % count:
        members = (tf.range(count) + tf.cast(update, tf.int32)) % count
    return Assignment(count, members, strided)


class FeedForward:
    """An ensemble of ReLU nets with a linear last layer.

    Args:
        in_dim: I.
        hidden_dim: width of all hidden layers.
        out_dim: F.
        layers: number of weight matrices, >= 1.
        ensemble_size: E.
        generator: draws the initial weights.

    Attributes:
        compute_dtype: to which both factors of a matrix product are rounded. Inputs and
            results are float32.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        out_dim: int,
        layers: int,
        ensemble_size: int,
        generator: tf.random.Generator,
    ) -> None:
        self.ensemble_size = ensemble_size
        self.compute_dtype = tf.float32
        widths = [in_dim, *[hidden_dim] * (layers - 1), out_dim]
        self.weights: list[tf.Variable] = []  # each [E, in, out]
        self.biases: list[tf.Variable] = []  # each [E, out]
        for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
            # Glorot uniform, but both fans times E: the 2018 release's initialiser
            # took the member axis for a part of the fans, and the paper's curves
            # were made with that (SPEC section 3).
            limit = math.sqrt(6 / (ensemble_size * (fan_in + fan_out)))
            shape = [ensemble_size, fan_in, fan_out]
            self.weights.append(
                tf.Variable(generator.uniform(shape, -limit, limit), name=f"w{i}")
            )
            self.biases.append(
                tf.Variable(tf.zeros([ensemble_size, fan_out]), name=f"b{i}")
            )

    @property
    def variables(self) -> list[tf.Variable]:
        """Weights and biases, layer by layer."""
        return [
            v for layer in zip(self.weights, self.biases, strict=True) for v in layer
        ]

    def named_variables(self) -> dict[str, tf.Variable]:
        """{"w0": [E, in, out], "b0": [E, out], "w1": ...}."""
        named = {}
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            named[f"w{i}"], named[f"b{i}"] = w, b
        return named

    def with_compute_dtype(self, compute_dtype: tf.DType) -> "FeedForward":
        """The same net, with the same variables; `compute_dtype` is another."""
        net = copy.copy(self)
        net.compute_dtype = compute_dtype
        return net

    def __call__(self, x: tf.Tensor, members: tf.Tensor | None = None) -> tf.Tensor:
        """Applies members to rows.

        Args:
            x: [K, R, I], each member's own rows, or [1, R, I], the same for all.
            members: [K] int32; None: all, K = E.

        Returns:
            [K, R, F].
        """
        if self._is_batched(x.shape[1]):
            weights, biases = self._chosen(members)
            biases = [b[:, None] for b in biases]
            return _apply_batched(weights, biases, x, self.compute_dtype)
        nets = self._unstack(members)
        rows = tf.unstack(x) if x.shape[0] != 1 else [x[0]] * len(nets)
        return tf.stack(self._apply_each(nets, rows))

    def apply_assigned(self, x: tf.Tensor, assignment: Assignment) -> tf.Tensor:
        """Applies to each row the one member that the row was given to.

        Args:
            x: [B, ..., I]; the axes between share the row's member.
            assignment: who gets which row.

        Returns:
            [B, ..., F], rows in the order of `x`.
        """
        *middle, in_dim = x.shape[1:]
        shares = _cut(x, assignment)
        rows = [tf.reshape(share, [-1, in_dim]) for share in shares]
        if x.shape[0] % assignment.shares == 0:
            outputs = tf.unstack(self(tf.stack(rows), assignment.members))
        else:
            nets = self._unstack(assignment.members)
            outputs = self._apply_each(nets, rows)
        out_dim = self.biases[-1].shape[-1]
        results = [
            tf.reshape(output, [share.shape[0], *middle, out_dim])
            for output, share in zip(outputs, shares, strict=True)
        ]
        return _join(results, assignment)

    def _apply_each(
        self, nets: list[list[tuple[tf.Tensor, tf.Tensor]]], rows: list[tf.Tensor]
    ) -> list[tf.Tensor]:
        """K nets, each on its rows: K times [R, I] -> [R, F]."""
        return [
            _apply(net, r, self.compute_dtype)
            for net, r in zip(nets, rows, strict=True)
        ]

    def _is_batched(self, rows: int | None) -> bool:
        """Whether the members' products are one batched product.

        On a GPU they are: otherwise an update is hundreds of tiny kernels. On a CPU
        small ones are, for which calling a product costs as much as computing it. For
        large ones TensorFlow's batched product is slower than plain ones, which also
        run side by side (`compute.prepare_tensorflow`).
        """
        if self.ensemble_size == 1 or rows is None:
            return False
        widest = max(math.prod(w.shape[1:]) for w in self.weights)
        on_gpu = bool(tf.config.list_logical_devices("GPU"))
        return on_gpu or is_small_product(rows, widest)

    def _chosen(
        self, members: tf.Tensor | None
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """The weights [K, I, F] and biases [K, F] of K members, for each layer."""
        if members is None or self.ensemble_size == 1:
            return [*self.weights], [*self.biases]
        return (
            [tf.gather(w, members) for w in self.weights],
            [tf.gather(b, members) for b in self.biases],
        )

    def _unstack(
        self, members: tf.Tensor | None
    ) -> list[list[tuple[tf.Tensor, tf.Tensor]]]:
        """The parameters of K members: K lists of (w [I, F], b [F]) per layer."""
        weights, biases = self._chosen(members)
        layers = [
            list(zip(tf.unstack(w), tf.unstack(b), strict=True))
            for w, b in zip(weights, biases, strict=True)
        ]
        return [list(net) for net in zip(*layers, strict=True)]


def is_small_product(rows: int, weights: int) -> bool:
    """Whether rows [R, I] times one member's weights [I, F], I F in all, is small."""
    return 2 * rows * weights <= SMALL_PRODUCT


def _product(x: tf.Tensor, w: tf.Tensor, compute_dtype: tf.DType) -> tf.Tensor:
    """x w, [..., R, I] and [..., I, F], both rounded to a type; float32."""
    if compute_dtype == tf.float32:
        return tf.matmul(x, w)
    x, w = tf.cast(x, compute_dtype), tf.cast(w, compute_dtype)
    return tf.cast(tf.matmul(x, w), tf.float32)


def _apply(
    net: list[tuple[tf.Tensor, tf.Tensor]], x: tf.Tensor, compute_dtype: tf.DType
) -> tf.Tensor:
    """One net: [R, I] -> [R, F]."""
    *hidden, (last_w, last_b) = net
    for w, b in hidden:
        x = tf.nn.relu(tf.nn.bias_add(_product(x, w, compute_dtype), b))
    return tf.nn.bias_add(_product(x, last_w, compute_dtype), last_b)


def _apply_batched(
    weights: Sequence[tf.Tensor],
    biases: Sequence[tf.Tensor],
    x: tf.Tensor,
    compute_dtype: tf.DType,
) -> tf.Tensor:
    """K nets: weights [K, I, F], biases [K, 1, F]; [K or 1, R, I] -> [K, R, F]."""
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        x = tf.nn.relu(_product(x, w, compute_dtype) + b)
    return _product(x, weights[-1], compute_dtype) + biases[-1]


def _cut(x: tf.Tensor, assignment: Assignment) -> list[tf.Tensor]:
    """The K shares of the rows of x, [B, ...] -> [B/K, ...] each."""
    count = assignment.shares
    if assignment.strided:
        return [x[k::count] for k in range(count)]
    small, larger = divmod(x.shape[0], count)
    return tf.split(x, [small + (k < larger) for k in range(count)])


def _join(shares: list[tf.Tensor], assignment: Assignment) -> tf.Tensor:
    """The inverse of `_cut`: from shares to rows in the order of the batch."""
    if not assignment.strided or len(shares) == 1:
        return tf.concat(shares, 0)
    small = shares[-1].shape[0]
    whole = tf.stack([share[:small] for share in shares], axis=1)
    rest = [share[small:] for share in shares if share.shape[0] > small]
    whole = tf.reshape(whole, [-1, *whole.shape[2:]])
    return tf.concat([whole, *rest], 0) if rest else whole


class Adam:
    """Adam in the form of TensorFlow 1 (SPEC section 3).

    m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2
    w -= rate sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + epsilon)

    The bias correction is in the step size, so epsilon meets the uncorrected root.
    This calls the very kernel that TensorFlow 1's optimiser calls.
    """

    def __init__(
        self,
        variables: Sequence[tf.Variable],
        learning_rate: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        self._variables = list(variables)
        self._first = [tf.Variable(tf.zeros_like(v)) for v in self._variables]
        self._second = [tf.Variable(tf.zeros_like(v)) for v in self._variables]
        self._steps = tf.Variable(0, dtype=tf.int64)
        self._learning_rate = learning_rate
        self._beta1, self._beta2, self._epsilon = beta1, beta2, epsilon

    def apply(self, gradients: Sequence[tf.Tensor]) -> None:
        """One step on all variables, in the order in which they were given.

        Raises:
            ValueError: there is none for a variable, on which the loss does not depend.
        """
        for variable, gradient in zip(self._variables, gradients, strict=True):
            if gradient is None:
                raise ValueError(f"the loss does not depend on {variable.name}")
        step = tf.cast(self._steps.assign_add(1), tf.float32)
        for variable, first, second, gradient in zip(
            self._variables, self._first, self._second, gradients, strict=True
        ):
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=first.handle,
                v=second.handle,
                beta1_power=tf.pow(self._beta1, step),
                beta2_power=tf.pow(self._beta2, step),
                lr=self._learning_rate,
                beta1=self._beta1,
                beta2=self._beta2,
                epsilon=self._epsilon,
                grad=tf.convert_to_tensor(gradient),
            )

    @property
    def steps(self) -> tf.Variable:
        """How many steps were made, [] int64; read only."""
        return self._steps

    def named_variables(self) -> dict[str, tf.Variable]:
        """{"m0": ..., "v0": ..., "m1": ..., "steps": []}: all that a resume needs."""
        named = {"steps": self._steps}
        for i, (first, second) in enumerate(
            zip(self._first, self._second, strict=True)
        ):
            named[f"m{i}"], named[f"v{i}"] = first, second
        return named


def prefixed(
    groups: dict[str, dict[str, tf.Variable]],
) -> dict[str, tf.Variable]:
    """{"policy": {"w0": v}} -> {"policy/w0": v}: names inside a checkpoint."""
    return {
        f"{group}/{name}": variable
        for group, named in groups.items()
        for name, variable in named.items()
    }
