"""Feed-forward ensembles, assignment and draws of their members, and Adam."""

import math
from itertools import combinations

import numpy as np
import pytest
import tensorflow as tf

from steve import nn


def generator(seed=0):
    return tf.random.Generator.from_seed(seed)


def build(in_dim=3, hidden_dim=8, out_dim=2, layers=3, ensemble_size=4):
    """Random weights, and random biases so that a bias left out would show."""
    net = nn.FeedForward(
        in_dim, hidden_dim, out_dim, layers, ensemble_size, generator()
    )
    for bias in net.biases:
        bias.assign(generator(1).normal(bias.shape))
    return net


def constant_net(ensemble_size, in_dim=1):
    """Member i returns i for every row."""
    net = nn.FeedForward(in_dim, 1, 1, 1, ensemble_size, generator())
    net.weights[0].assign(tf.zeros_like(net.weights[0]))
    net.biases[0].assign(tf.range(float(ensemble_size))[:, None])
    return net


def forward(net, member, row):
    """One member on one row, in float64."""
    x = np.asarray(row, np.float64)
    layers = list(zip(net.weights, net.biases, strict=True))
    for i, (w, b) in enumerate(layers):
        x = x @ w.numpy()[member].astype(np.float64) + b.numpy()[member]
        x = np.maximum(x, 0) if i < len(layers) - 1 else x
    return x


# Initial weights


@pytest.mark.parametrize(
    ("ensemble_size", "in_dim", "hidden_dim", "out_dim", "layers"),
    [(1, 5, 128, 2, 4), (4, 17, 512, 17, 3), (4, 9, 128, 1, 2), (3, 4, 7, 200, 1)],
)
def test_weights_are_glorot_uniform_with_both_fans_times_the_ensemble_size(
    ensemble_size, in_dim, hidden_dim, out_dim, layers
):
    net = nn.FeedForward(
        in_dim, hidden_dim, out_dim, layers, ensemble_size, generator()
    )
    widths = [in_dim, *[hidden_dim] * (layers - 1), out_dim]
    assert len(net.weights) == layers
    for i, weight in enumerate(net.weights):
        assert weight.shape == (ensemble_size, widths[i], widths[i + 1])
        limit = math.sqrt(6 / (ensemble_size * (widths[i] + widths[i + 1])))
        # The largest of 500 or more uniform draws is this close to the limit.
        assert 0.97 * limit < np.abs(weight.numpy()).max() <= limit


def test_a_512_by_512_layer_of_four_members_has_the_measured_limit_and_is_uniform():
    net = nn.FeedForward(512, 512, 512, 1, 4, generator())
    values = net.weights[0].numpy().ravel()  # about a million draws
    # 2018 release, measured: 0.03827; sqrt(6 / (4 * 1024)) = 0.038273
    assert np.abs(values).max() == pytest.approx(0.03827, abs=1e-5)
    counts, _ = np.histogram(values, bins=20, range=(-0.038274, 0.038274))
    expected = len(values) / 20
    assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)


def test_biases_start_at_zero():
    net = nn.FeedForward(3, 8, 2, 3, 4, generator())
    assert all(not bias.numpy().any() for bias in net.biases)


def test_members_start_different_and_a_seed_repeats_them():
    first, second = (nn.FeedForward(3, 8, 2, 3, 4, generator(5)) for _ in range(2))
    for ours, theirs in zip(first.variables, second.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    weight = first.weights[0].numpy()
    assert all((weight[0] != weight[member]).any() for member in (1, 2, 3))


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1, 2**32 - 3])
def test_initial_weights_of_neighbouring_seeds_are_no_shifted_copies(seed):
    """The seed is the key of a stream, and no place in a stream that all share."""
    draws = [
        nn.generator_of(seed + near).uniform([400], -1, 1).numpy() for near in range(3)
    ]
    again = nn.generator_of(seed).uniform([400], -1, 1).numpy()
    np.testing.assert_array_equal(draws[0], again)
    for first, second in combinations(draws, 2):
        # Among 400 numbers of 23 bits each, equal ones are few by chance: 0.02.
        assert len(np.intersect1d(first, second)) < 5
        # Correlation of independent draws: deviation 1 / sqrt(400) = 0.05.
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 * 0.05


def test_nets_of_neighbouring_seeds_have_no_weights_in_common():
    weights = []
    for seed in range(4):
        generator = nn.generator_of(seed)
        net = nn.FeedForward(3, 16, 2, 3, 4, generator)
        weights.append(np.concatenate([w.numpy().ravel() for w in net.weights]))
    for first, second in combinations(weights, 2):
        assert len(np.intersect1d(first, second)) < 0.01 * len(first)


def test_variables_come_layer_by_layer_under_their_names():
    net = build(layers=2)
    w0, w1 = net.weights
    b0, b1 = net.biases
    for variable, expected in zip(net.variables, [w0, b0, w1, b1], strict=True):
        assert variable is expected
    named = net.named_variables()
    assert list(named) == ["w0", "b0", "w1", "b1"]
    assert named["w1"] is w1
    assert list(nn.prefixed({"q": named})) == ["q/w0", "q/b0", "q/w1", "q/b1"]


# Application


def test_relu_between_layers_and_none_after_the_last():
    net = nn.FeedForward(1, 1, 1, 2, 1, generator())
    for variable, value in zip(net.variables, (2.0, -1.0, -3.0, 0.5), strict=True):
        variable.assign(tf.fill(variable.shape, value))
    # relu(2 * 2 - 1) * -3 + 0.5 = -8.5; relu(0 - 1) * -3 + 0.5 = 0.5
    np.testing.assert_allclose(net(tf.constant([[[2.0], [0.0]]])), [[[-8.5], [0.5]]])


@pytest.mark.parametrize("members", [None, [2], [3, 0], [0, 1, 2, 3]])
@pytest.mark.parametrize("own_rows", [True, False])
def test_each_member_is_applied_to_its_rows(members, own_rows):
    net = build()
    used = range(4) if members is None else members
    x = generator(2).normal([len(used) if own_rows else 1, 5, 3])
    result = net(x, None if members is None else tf.constant(members))
    assert result.shape == (len(used), 5, 2)
    for k, member in enumerate(used):
        rows = x.numpy()[k if own_rows else 0]
        expected = [forward(net, member, row) for row in rows]
        np.testing.assert_allclose(result[k], expected, rtol=1e-4, atol=1e-5)


def test_a_single_net_ignores_which_member_is_asked_for():
    net = build(ensemble_size=1)
    x = generator(2).normal([1, 5, 3])
    np.testing.assert_array_equal(net(x, tf.constant([0])), net(x))


def test_rows_of_too_many_members_are_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match="batch dimensions"):
        build()(tf.zeros([3, 5, 3]))


# Assignment


@pytest.mark.parametrize(
    ("rows", "members", "strided", "expected"),
    [
        (5, [3, 1], False, [3, 3, 3, 1, 1]),
        (5, [2, 0, 1], False, [2, 2, 0, 0, 1]),
        (5, None, False, [0, 0, 1, 2, 3]),
        (4, [0], False, [0, 0, 0, 0]),
        (8, None, False, [0, 0, 1, 1, 2, 2, 3, 3]),
        (5, [3, 1], True, [3, 1, 3, 1, 3]),
        (5, [2, 0, 1], True, [2, 0, 1, 2, 0]),
        (6, None, True, [0, 1, 2, 3, 0, 1]),
        (8, None, True, [0, 1, 2, 3, 0, 1, 2, 3]),
        (4, [0], True, [0, 0, 0, 0]),
    ],
)
def test_each_row_gets_the_member_it_was_given_to(rows, members, strided, expected):
    given = None if members is None else tf.constant(members)
    assignment = nn.Assignment(len(members or range(4)), given, strided)
    result = constant_net(4).apply_assigned(tf.zeros([rows, 1]), assignment)
    np.testing.assert_array_equal(result[:, 0], expected)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("rows", [6, 7, 8])
@pytest.mark.parametrize("middle", [(), (2,), (2, 3)])
def test_rows_and_the_axes_between_keep_their_order(middle, rows, strided):
    net = build()
    x = generator(2).normal([rows, *middle, 3])
    assignment = nn.Assignment(3, tf.constant([1, 3, 0]), strided)
    member_of = (
        constant_net(4).apply_assigned(tf.zeros([rows, 1]), assignment).numpy()[:, 0]
    )
    result = net.apply_assigned(x, assignment).numpy()
    assert result.shape == (rows, *middle, 2)
    for index in np.ndindex(rows, *middle):
        expected = forward(net, int(member_of[index[0]]), x.numpy()[index])
        np.testing.assert_allclose(result[index], expected, rtol=1e-4, atol=1e-5)


def test_a_gradient_reaches_only_the_members_that_take_part():
    net = build()
    assignment = nn.Assignment(2, tf.constant([2, 0]))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(net.apply_assigned(tf.ones([6, 3]), assignment) ** 2)
    for gradient in tape.gradient(loss, net.variables):
        dense = tf.convert_to_tensor(gradient).numpy()
        assert dense[0].any()
        assert dense[2].any()
        assert not dense[1].any()
        assert not dense[3].any()


# Draws


def numbered_seed(number):
    """The seed of an update, as a learner makes it."""
    return nn.fold_in(nn.seed_tensor(1), number)


def test_all_members_are_none():
    assert nn.sample_members(nn.seed_tensor(0), 4, 4) is None


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 2**31, 2**32 - 1])
def test_every_seed_of_32_bits_has_draws_of_its_own(seed):
    def order(number):
        return tuple(nn.permutation(nn.seed_tensor(number), 20).numpy())

    assert order(seed) == order(seed)
    assert order(seed) != order(seed ^ 1)


def test_draws_are_the_same_with_xla():
    def sample(number):
        return nn.sample_members(numbered_seed(number), 10, 4)

    compiled = tf.function(sample, jit_compile=True)
    for number in range(5):
        drawn = compiled(tf.constant(number))
        np.testing.assert_array_equal(drawn, sample(tf.constant(number)))


def test_with_all_members_and_an_even_division_nothing_is_drawn():
    seed, update = nn.seed_tensor(0), tf.constant(3)
    assignment = nn.sample_assignment(seed, update, 8, 4, 4)
    assert assignment == (4, None, False)
    assert nn.sample_assignment(seed, update, 8, 4, 4, strided=True).strided


def test_members_are_drawn_uniformly_and_without_repetition():
    sample = tf.function(lambda number: nn.sample_members(numbered_seed(number), 4, 2))
    counts = np.zeros((4, 4))
    draws = 1200
    for number in range(draws):
        first, second = sample(tf.constant(number)).numpy()
        counts[first, second] += 1
    assert not counts.diagonal().any()
    # Each of the 12 ordered pairs: 100 times, standard deviation 9.6.
    pairs = counts[~np.eye(4, dtype=bool)]
    assert np.abs(pairs - draws / 12).max() < 45
    assert sample(tf.constant(0)).dtype == tf.int32


def shares_drawn(batch_size, ensemble_size, count, draws, strided=False):
    """Which member each row got, [draws, B], by identifiable members."""
    net = constant_net(ensemble_size)

    @tf.function
    def sample(update):
        assignment = nn.sample_assignment(
            numbered_seed(update),
            update,
            batch_size,
            ensemble_size,
            count,
            strided=strided,
        )
        return net.apply_assigned(tf.zeros([batch_size, 1]), assignment)[:, 0]

    given = [sample(tf.constant(number)).numpy() for number in range(draws)]
    return np.array(given).astype(int)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(
    ("batch_size", "ensemble_size", "count"),
    [(12, 4, 4), (7, 3, 3), (10, 5, 4), (4, 4, 4), (9, 6, 2), (5, 1, 1)],
)
def test_shares_are_near_equal(batch_size, ensemble_size, count, strided):
    small, larger = divmod(batch_size, count)
    expected = [0] * (ensemble_size - count)
    expected += [small] * (count - larger) + [small + 1] * larger
    for given in shares_drawn(batch_size, ensemble_size, count, 20, strided):
        sizes = np.bincount(given, minlength=ensemble_size)
        assert sorted(sizes) == expected


@pytest.mark.parametrize("strided", [False, True])
def test_the_rows_that_remain_go_round_with_the_update(strided):
    given = shares_drawn(7, 3, 3, 6, strided)  # 3, 2 and 2 rows
    most = [np.bincount(row).argmax() for row in given]
    assert most == [0, 1, 2, 0, 1, 2]


def test_drawn_members_get_rows_and_remainder_equally_often():
    given = shares_drawn(5, 3, 2, draws=900)
    # Each row to each of three members: 300 times, standard deviation 14.
    for member in range(3):
        assert np.abs((given == member).sum(axis=0) - 300).max() < 70
    # Three of the five rows go to one member: each of three, 300 times.
    sizes = np.array([np.bincount(row, minlength=3) for row in given])
    assert np.abs((sizes == 3).sum(axis=0) - 300).max() < 70


# Adam


def adam_by_hand(weights, gradients, rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """SPEC section 3 in float64: epsilon meets the uncorrected root."""
    weights = weights.astype(np.float64)
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    for step, gradient in enumerate(gradients, start=1):
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        size = rate * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        weights = weights - size * first / (np.sqrt(second) + epsilon)
    return weights


def test_adam_agrees_with_a_direct_implementation_for_gradients_of_every_size():
    # From 1, where epsilon is nothing, to 1e-9, where it is nearly everything.
    sizes = 10.0 ** -np.arange(10)
    signs = np.random.default_rng(0).normal(size=(20, 10))
    gradients = signs * sizes
    variable = tf.Variable(np.zeros(10, np.float32))
    adam = nn.Adam([variable], learning_rate=3e-4)
    for gradient in gradients:
        adam.apply([tf.constant(gradient, tf.float32)])
    expected = adam_by_hand(np.zeros(10), gradients, 3e-4)
    np.testing.assert_allclose(variable, expected, rtol=2e-4)


def test_the_first_step_on_a_tiny_gradient_is_tensorflow_1s():
    variable = tf.Variable([0.0])
    nn.Adam([variable], learning_rate=3e-4).apply([tf.constant([1e-8])])
    # m = 1e-9, sqrt(v) = sqrt(0.001) 1e-8 = 3.1623e-10,
    # step size = 3e-4 sqrt(0.001) / 0.1 = 9.4868e-5:
    # 9.4868e-5 * 1e-9 / (3.1623e-10 + 1e-8) = 9.1960e-6; TF 2's form gives 1.5e-4
    assert variable.numpy()[0] == pytest.approx(-9.1960e-6, rel=1e-4)


def test_every_variable_has_its_own_moments_and_the_keys_are_obeyed():
    start = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)
    variables = [tf.Variable(start), tf.Variable(start[0])]
    adam = nn.Adam(variables, 0.01, beta1=0.5, beta2=0.8, epsilon=0.1)
    gradients = np.random.default_rng(1).normal(size=(3, 2, 2)).astype(np.float32)
    for gradient in gradients:
        adam.apply([gradient, 2 * gradient[1]])
    keys = (0.01, 0.5, 0.8, 0.1)
    expected = adam_by_hand(start, gradients, *keys)
    np.testing.assert_allclose(variables[0], expected, rtol=1e-5)
    expected = adam_by_hand(start[0], 2 * gradients[:, 1], *keys)
    np.testing.assert_allclose(variables[1], expected, rtol=1e-5)


def test_adam_takes_the_sparse_gradients_that_drawn_members_have():
    net = build()
    x = generator(2).normal([2, 5, 3])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(net(x, tf.constant([3, 1])))
    gradients = tape.gradient(loss, net.variables)
    before = net.weights[0].numpy()
    nn.Adam(net.variables, 0.01).apply(gradients)
    moved = (net.weights[0].numpy() != before).any(axis=(1, 2))
    np.testing.assert_array_equal(moved, [False, True, False, True])


def test_a_missing_gradient_is_loud():
    adam = nn.Adam([tf.Variable([0.0]), tf.Variable([0.0])], 0.01)
    with pytest.raises(ValueError, match="zip"):
        adam.apply([tf.constant([1.0])])
    with pytest.raises(ValueError, match="the loss does not depend on"):
        adam.apply([tf.constant([1.0]), None])


def test_a_resumed_adam_goes_on_as_the_first_would_have():
    def run(steps, variable, adam):
        for step in steps:
            adam.apply([tf.constant([1.0, -0.1]) * (step + 1)])

    variable = tf.Variable([1.0, 2.0])
    adam = nn.Adam([variable], 0.01)
    run(range(3), variable, adam)
    resumed = tf.Variable(variable.numpy())
    other = nn.Adam([resumed], 0.01)
    state = adam.named_variables()
    assert set(state) == {"steps", "m0", "v0"}
    assert state["steps"].numpy() == 3
    for name, value in other.named_variables().items():
        value.assign(state[name])
    run(range(3, 6), variable, adam)
    run(range(3, 6), resumed, other)
    np.testing.assert_array_equal(variable, resumed)
