"""Threads, batches fetched ahead, and several updates in one call."""

import numpy as np
import pytest
import support_env
import tensorflow as tf
from support import append_frames, make_config, open_run

from steve import compute, learner, valuerl_learner, worldmodel_learner
from steve.batch import fields
from steve.compute import BatchSource, Updater
from steve.replay import ReplayBuffer
from steve.running.child import Context
from steve.settings.roles import VALUERL, WORLDMODEL
from steve.util import UserError
from steve.valuerl_learner import ValueRLLearner
from steve.worldmodel_learner import WorldmodelLearner

# Threads and devices


class Threads:
    """Stands in for tf.config.threading, whose settings are final after one use."""

    def get_intra_op_parallelism_threads(self):
        return self.intra

    def __init__(self):
        self.inter = self.intra = None

    def set_inter_op_parallelism_threads(self, count):
        self.inter = count

    def set_intra_op_parallelism_threads(self, count):
        self.intra = count


@pytest.fixture
def threads(monkeypatch):
    threads = Threads()
    monkeypatch.setattr(tf.config, "threading", threads)
    monkeypatch.setattr(compute.os, "sched_getaffinity", lambda pid: set(range(6)))
    return threads


@pytest.mark.parametrize(
    ("given", "members", "side_by_side", "in_a_product"),
    [(2, 4, 2, 1), (2, 1, 1, 2), (8, 4, 4, 2), (6, 4, 4, 2), (None, 4, 4, 2)],
)
def test_members_are_computed_side_by_side_and_further_cores_go_into_products(
    threads, given, members, side_by_side, in_a_product
):
    compute.prepare_tensorflow("learner", True, given, members)
    assert (threads.inter, threads.intra) == (side_by_side, in_a_product)


@pytest.mark.parametrize(("cores", "in_a_product"), [(1, 1), (4, 1), (6, 2)])
def test_of_the_threads_only_those_of_a_product_decide_bits(
    threads, cores, in_a_product
):
    """Members are computed side by side, but none of them in another way by that."""
    compute.prepare_tensorflow("learner", True, cores, 4)
    assert compute.computing(xla=False) == {
        "device": "cpu",
        "xla": False,
        "intra_op_threads": in_a_product,
    }


@pytest.mark.parametrize(
    ("details", "name"), [({"device_name": "H100"}, "H100"), ({}, "GPU")]
)
def test_a_gpu_is_named_in_place_of_threads(monkeypatch, details, name):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    experimental = tf.config.experimental
    monkeypatch.setattr(experimental, "get_device_details", lambda gpu: details)
    assert compute.computing(xla=True) == {"device": name, "xla": True}


@pytest.mark.parametrize(("precision", "is_tf32"), [("float32", False), ("tf32", True)])
def test_products_have_the_precision_of_the_configuration(threads, precision, is_tf32):
    """TensorFlow's own default is TF32."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    try:
        compute.prepare_tensorflow("learner", True, 2, 1, precision)
        found = tf.config.experimental.tensor_float_32_execution_enabled()
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)
    assert found is is_tf32


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("on_cpu", [False, True])
def test_deterministic_operations_are_switched_on_for_a_gpu(
    threads, monkeypatch, deterministic, on_cpu
):
    switched = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    experimental = tf.config.experimental
    monkeypatch.setattr(
        experimental, "enable_op_determinism", lambda: switched.append(True)
    )
    compute.prepare_tensorflow("learner", on_cpu, 2, 1, deterministic=deterministic)
    assert bool(switched) == (deterministic and not on_cpu)


def test_a_gpu_that_tensorflow_does_not_see_is_one_line(threads, monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    with pytest.raises(UserError, match=r"^valuerl: TensorFlow does not see the GPU"):
        compute.prepare_tensorflow("valuerl", False, None, 4)
    assert (threads.inter, threads.intra) == (None, None)


# Batches


@pytest.fixture
def replay(tmp_path):
    _, _, replay = open_run(tmp_path)
    append_frames(replay, 100)
    return replay


def draw_of(end=None, seed=3):
    """Each update's own generator; frames before `end(update)`, None: all."""
    return {
        "rng_of": lambda update: np.random.default_rng([seed, update]),
        "end_of": end or (lambda update: None),
    }


def source_of(replay, **keys):
    keys = {"batch_size": 4, "newest": 1000, "updates_per_call": 1} | draw_of() | keys
    return BatchSource(ReplayBuffer.open(replay._path.parent), **keys)


def fields_of(batches):
    return fields(batches.numpy(), support_env.OBS_DIM, support_env.ACTION_DIM)


def rewards(batches):
    return fields_of(batches).reward


def taken(source, first, count):
    """The rewards of updates `first` .. `first + count - 1`, [count, B]."""
    return rewards(source.take(first, count))[:count]


def test_batches_have_the_shapes_of_updates_and_rows_stay_whole(replay):
    source = source_of(replay, updates_per_call=3)
    for first, count in ((0, 1), (1, 3)):
        batches = fields_of(source.take(first, count))
        assert batches.reward.shape == (3, 4)
        assert batches.obs.shape == (3, 4, support_env.OBS_DIM)
        assert batches.action.shape == (3, 4, support_env.ACTION_DIM)
        # support's transitions: obs is the frame's number, next_obs one more
        reward = batches.reward[:count]
        np.testing.assert_array_equal(batches.obs[:count, :, 0], reward)
        np.testing.assert_array_equal(batches.next_obs[:count, :, 0], reward + 1)
    source.close()


def test_the_next_batches_are_drawn_when_the_last_ones_are_taken(replay):
    source = source_of(replay, newest=1, updates_per_call=2)
    first = source.take(0, 2)
    source._next[2].result()  # the next is drawn
    append_frames(replay, 1)
    second, third = source.take(2, 2), source.take(4, 2)
    assert set(rewards(first).flat) == {99}
    assert set(rewards(second).flat) == {99}
    assert set(rewards(third).flat) == {100}
    source.close()


def test_a_batch_is_that_of_its_update_however_the_calls_are_cut(replay):
    drawn = []
    for cuts in ([1] * 12, [12], [3, 3, 3, 3], [1, 4, 4, 1, 1, 1], [5, 1, 6]):
        source, parts, first = (
            source_of(replay, batch_size=20, updates_per_call=12),
            [],
            0,
        )
        for count in cuts:
            parts.append(taken(source, first, count))
            first += count
        source.close()
        drawn.append(np.concatenate(parts))
    assert drawn[0].shape == (12, 20)
    assert len({each.tobytes() for each in drawn[0]}) == 12
    for other in drawn[1:]:
        np.testing.assert_array_equal(other, drawn[0])


def test_a_batch_that_was_drawn_ahead_for_another_update_is_not_used(replay):
    source, other = (source_of(replay, updates_per_call=3) for _ in range(2))
    source.take(0, 2)  # draws 2 and 3 ahead
    np.testing.assert_array_equal(taken(source, 0, 2), taken(other, 0, 2))
    np.testing.assert_array_equal(taken(source, 7, 1), taken(other, 7, 1))
    np.testing.assert_array_equal(taken(source, 8, 3), taken(other, 8, 3))
    source.close()
    other.close()


def test_a_batch_does_not_depend_on_the_frames_that_came_since(replay):
    def end(update):
        return 90 + 5 * update

    keys = {"batch_size": 50, "newest": 20, "updates_per_call": 9} | draw_of(end)
    slow = source_of(replay, **keys)
    one = [taken(slow, update, 1) for update in range(3)]
    append_frames(replay, 50)
    one += [taken(slow, update, 1) for update in range(3, 9)]
    late = source_of(replay, **keys)
    block = taken(late, 0, 9)
    np.testing.assert_array_equal(np.concatenate(one), block)
    for update, batch in enumerate(block):
        assert batch.min() >= end(update) - 20
        assert batch.max() < end(update)
    assert not slow.fell_short
    assert not late.fell_short
    slow.close()
    late.close()


def test_nothing_is_drawn_ahead_from_frames_that_are_not_there_yet(replay):
    source = source_of(replay, **draw_of(lambda update: 98 + update))
    source.take(0, 1)
    assert source._next is not None  # update 1 draws from 99 frames, and there are 100
    source.take(2, 1)
    assert source._next is None  # update 3 will draw from 101
    append_frames(replay, 2)
    source.take(2, 1)
    assert source._next is not None
    source.close()


def test_as_many_are_drawn_ahead_as_have_their_frames(replay):
    source = source_of(
        replay, **draw_of(lambda update: 98 + update), updates_per_call=4
    )
    source.take(0, 1)
    assert source._next[:2] == (1, 2)  # of 99 and of 100 frames
    append_frames(replay, 9)
    source.take(1, 2)
    assert source._next[:2] == (3, 4)
    source.close()


def test_a_batch_from_rows_that_are_gone_is_noticed(tmp_path):
    small = ReplayBuffer.create(
        tmp_path, support_env.OBS_DIM, support_env.ACTION_DIM, 50
    )
    for _ in range(4):
        append_frames(small, 25)  # frames 50 .. 99 are left
    whole = source_of(small, newest=10, **draw_of(lambda update: 60))
    whole.take(0, 1)
    assert not whole.fell_short
    gone = source_of(small, newest=20, **draw_of(lambda update: 60))
    gone.take(0, 1)
    assert gone.fell_short
    whole.close()
    gone.close()


def test_every_draw_is_another_one_and_uniform_over_the_newest(replay):
    source = source_of(replay, batch_size=50, newest=20, updates_per_call=4)
    calls = ((0, 1), (1, 4), (5, 4))
    drawn = np.concatenate([taken(source, *call).ravel() for call in calls])
    numbers, counts = np.unique(drawn, return_counts=True)
    np.testing.assert_array_equal(numbers, np.arange(80, 100))
    assert counts.max() < 60  # of 450 in all, so 22 each
    source.close()


def test_damaged_rows_reach_the_learner_as_an_error(replay):
    with open(replay._path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 100 * replay._layout.row_bytes)
    source = source_of(replay)
    with pytest.raises(UserError, match="is damaged"):
        source.take(0, 1)
    source.close()


# Several updates in one call

BLOCK, UPDATES = 5, 10
PACE = {"batch_size": 8, "updates_per_call": BLOCK, "frames_per_update": False}
NETS = {"hidden_dim": 16, "layers": 2, "bayesian": dict.fromkeys(
    ("ensemble_size", "train_sample_count", "eval_sample_count"), 3)}  # fmt: skip
SIZES = {"ensemble_size": 4, "train_sample_count": 3, "eval_sample_count": 2}
MODEL = {
    "transition_hidden_dim": 16,
    "aux_hidden_dim": 16,
    "transition_layers": 2,
    "aux_layers": 2,
    "bayesian": {"transition": SIZES, "reward": SIZES},
}
EXPANSIONS = {
    VALUERL: {"rollout_len": 2, "steve_reweight": True},
    "tdk": {"rollout_len": 1, "tdk_trick": True, "steve_reweight": True},
}


def build(tmp_path, kind, expansion=VALUERL, is_compiled=False, **settings):
    run, board, _ = open_run(
        tmp_path,
        policy_config=PACE
        | NETS
        | {"value_expansion": EXPANSIONS[expansion]}
        | settings,
        model_config=PACE | MODEL | settings,
    )
    return kind(Context(run, kind.name, 7, board, lambda: False), is_compiled)


def random_batches(count, seed):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return tf.constant(rng.standard_normal((count, 8, *shape)), tf.float32)

    obs = draw(support_env.OBS_DIM)
    action = tf.tanh(draw(support_env.ACTION_DIM))
    reward = draw(1)
    next_obs = obs + 0.1 * draw(support_env.OBS_DIM)
    return tf.concat([obs, next_obs, action, reward, 0 * reward], -1)


def part_of(batches, first, block):
    """The batches of a call: `block` from `first` on, behind the end the last again."""
    return tf.gather(batches, np.minimum(np.arange(block) + first, len(batches) - 1))


def results(learner, count):
    """Variables and metrics after UPDATES updates, `count` in each call."""
    batches = random_batches(UPDATES, seed=1)
    for first in range(0, UPDATES, count):
        part = part_of(batches, first, learner.updates_per_call)
        learner.updater.run(part, count)
    means = learner.updater.metric_means()
    return {k: v.numpy() for k, v in learner.variables().items()}, means


KINDS = [
    (ValueRLLearner, VALUERL),
    (ValueRLLearner, "tdk"),
    (WorldmodelLearner, VALUERL),
]


@pytest.mark.parametrize(
    ("is_compiled", "kind", "expansion"),
    # Compiling takes seconds: the world model stands for both, and "tdk" has all that
    # the first one has, in one step.
    [
        *((False, *each) for each in KINDS),
        pytest.param(True, *KINDS[1], marks=pytest.mark.slow),
        (True, *KINDS[2]),
    ],
)
def test_how_many_updates_a_call_has_changes_no_bit(
    tmp_path, kind, expansion, is_compiled
):
    # The program for one update has no loop, that for several has one.
    keys = {"is_compiled": is_compiled, "updates_per_call": 1}
    learner = build(tmp_path / "one", kind, expansion, **keys)
    assert learner.updates_per_call == 1
    initial = {name: v.numpy() for name, v in learner.variables().items()}
    single = results(learner, 1)
    learner = build(tmp_path / "several", kind, expansion, is_compiled)
    for count in (1, 2, BLOCK):
        for name, variable in learner.variables().items():
            variable.assign(initial[name])
        learner.updater.reset_metrics()
        several = results(learner, count)
        assert single[1] == several[1]
        for name, value in single[0].items():
            np.testing.assert_array_equal(several[0][name], value, err_msg=name)
    if is_compiled:
        assert_equal_up_to_rounding(
            single, results(build(tmp_path / "plain", kind, expansion), 1)
        )


def assert_equal_up_to_rounding(compiled, plain):
    """What XLA computes is what TensorFlow does without it."""
    np.testing.assert_allclose(
        list(compiled[1].values()), list(plain[1].values()), rtol=1e-5, atol=1e-5
    )
    for name, value in plain[0].items():
        np.testing.assert_allclose(
            compiled[0][name], value, rtol=0, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("kind", [ValueRLLearner, WorldmodelLearner])
def test_updates_need_no_soft_placement_and_are_traced_once(tmp_path, kind):
    learner = build(tmp_path, kind)
    soft = tf.config.get_soft_device_placement()
    tf.config.set_soft_device_placement(False)
    try:
        learner.warm_up()
        for count in (1, BLOCK, 2):
            learner.updater.run(random_batches(BLOCK, seed=count), count)
    finally:
        tf.config.set_soft_device_placement(soft)
    assert learner.updater.call.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("kind", [ValueRLLearner, WorldmodelLearner])
def test_warming_up_changes_nothing(tmp_path, kind):
    learner = build(tmp_path, kind)
    before = {k: v.numpy().copy() for k, v in learner.variables().items()}
    learner.warm_up()
    for name, variable in learner.variables().items():
        np.testing.assert_array_equal(variable, before[name], err_msg=name)
    assert learner.updater.metric_means() == {}


def test_what_is_random_in_an_update_depends_on_its_number_alone(tmp_path):
    """An update's draws are the same whether or not others came before in this call."""
    learner = build(tmp_path, WorldmodelLearner)
    drawn = []

    def update(batch, assignment, optimizer):
        drawn.append(assignment.transition.members.numpy().tolist())
        return {}

    learner.model.update = update
    for number in [*range(9), *range(9)]:
        learner.optimizer.steps.assign(number)
        learner.train_step(None)
    assert drawn[:9] == drawn[9:]
    assert any(members != drawn[0] for members in drawn)


def test_means_are_over_all_updates_since_the_last_reset():
    count = tf.Variable(0.0)
    updater = Updater(
        lambda batch: {"x": count.assign_add(1.0)}, ["x"], updates_per_call=3
    )
    assert updater.metric_means() == {}
    batches = random_batches(3, seed=0)
    updater.run(batches, 3)
    updater.run(batches, 1)
    assert updater.metric_means() == {"x": (1 + 2 + 3 + 4) / 4}
    assert updater.reset_metrics() == 4
    assert updater.metric_means() == {}
    updater.run(batches, 3)
    assert updater.metric_means() == {"x": 6}


# Blocks in a learner's loop


@pytest.mark.parametrize(
    ("frames_per_update", "batch_size", "most"),
    [(0.25, 8, 32), (1, 8, 8), (3, 8, 2), (10, 8, 1), (0.25, 1, 4)],
)
def test_a_call_has_at_most_the_updates_of_one_vector_step(
    tmp_path, frames_per_update, batch_size, most
):
    keys = {
        "agent_config": {"batch_size": batch_size},
        "policy_config": {"frames_per_update": frames_per_update},
    }
    config = make_config(tmp_path, **keys)
    assert config.most_updates_per_call(config.policy_config) == most
    keys["policy_config"]["updates_per_call"] = most
    make_config(tmp_path, **keys)
    keys["policy_config"]["updates_per_call"] = most + 1
    with pytest.raises(ValueError, match=f"must be at most {most}, the updates"):
        make_config(tmp_path, **keys)


@pytest.mark.parametrize(
    ("keys", "value_members", "model_members"),
    [
        ({}, 2, None),  # DDPG: policy and Q side by side
        ({"bayesian": SIZES | {"eval_sample_count": 4}}, 4, None),
        ({"value_expansion": EXPANSIONS["tdk"]}, 2, 3),  # of SIZES: eval and train
        ({"value_expansion": EXPANSIONS["tdk"]} | NETS, 3, 3),
    ],
)
def test_a_learner_computes_as_many_nets_at_once_as_take_part(
    tmp_path, monkeypatch, keys, value_members, model_members
):
    model = {"model_config": PACE | MODEL | {"xla": False}} if model_members else {}
    keys = PACE | keys | {"xla": False}
    asked = asked_of_tensorflow(tmp_path, monkeypatch, policy_config=keys, **model)
    others = "float32", False
    expected = [(VALUERL, True, None, value_members, *others)]
    expected += [(WORLDMODEL, True, None, model_members, *others)] if model else []
    assert asked == expected


@pytest.mark.parametrize(
    ("value", "model", "compiled"),
    [
        ({}, {}, [True, True]),  # one at a time, with all threads
        ({"xla": False}, {"xla": True}, [False, True]),
        ({}, {"transition_hidden_dim": 4096}, [False, False]),
        ({"hidden_dim": 2048}, {}, [False, True]),
        ({"hidden_dim": 2048, "xla": True}, {}, [True, True]),
    ],
)
def test_updates_of_small_products_are_compiled_by_xla(
    tmp_path, monkeypatch, value, model, compiled
):
    expansion = {"value_expansion": EXPANSIONS["tdk"]}
    asked = asked_of_tensorflow(
        tmp_path,
        monkeypatch,
        policy_config=PACE | NETS | expansion | value,
        model_config=PACE | MODEL | model,
    )
    assert [given[3] == 1 for given in asked] == compiled


def asked_of_tensorflow(tmp_path, monkeypatch, **sections):
    """What the learners of a run ask `prepare_tensorflow` for."""
    run, board, _ = open_run(tmp_path, **sections)
    asked = []
    monkeypatch.setattr(
        learner, "prepare_tensorflow", lambda *given: asked.append(given)
    )
    for module in (valuerl_learner, worldmodel_learner)[: len(sections)]:
        name = VALUERL if module is valuerl_learner else WORLDMODEL
        module.build(Context(run, name, 0, board, lambda: False))
    return asked
