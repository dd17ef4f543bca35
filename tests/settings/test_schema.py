"""The schema: defaults, derived values, keys, types, ranges, keys at odds."""

import json
import re

import pytest
from pydantic import ValidationError
from support import PROJECT
from support_settings import SIZES, minimal, updates, with_expansion

from steve.settings.extensions import WEIGHTINGS
from steve.settings.keys import all_paths, allowed, field_at, is_changeable, meaning
from steve.settings.schema import Config

# Defaults and derived values


def test_the_papers_values_are_the_defaults(tree):
    """Also of what the 2018 release had in its code (SPEC section 7)."""
    tree.write(a=minimal(model_config={}))
    merged = tree.load().merged
    learner = {
        "batch_size": 512,
        "replay_size": 1_000_000,
        "frames_before_learning": 10_000,
        "frames_per_update": 0.25,
        "log_every_n": 500,
        "epoch_every_n": 500,
        "backup_every_n": 2_500_000,
        "learning_rate": 3e-4,
    }
    expected = {
        "agent_config": {"count": 1, "batch_size": 8, "reload_every_n": 1}
        | {"full_random_n": 10_000, "vectorization": "sync"},
        "evaluator_config": {"count": 2, "batch_size": 1, "episodes_per_policy": 1}
        | {"every_n_epochs": 1},
        "policy_config": learner
        | {"algo": "ddpg", "hidden_dim": 128, "layers": 4}
        | {"explore_chance": 0.05, "pre_tanh_penalty": 0.001},
        "model_config": learner
        | {"transition_hidden_dim": 512, "transition_layers": 8}
        | {"aux_hidden_dim": 128, "aux_layers": 4}
        | {"pretrain_n": 10_000, "weight_decay": 1e-4},
        "env": {"max_frames": 1000, "reward_scale": 1.0, "step_timeout": 60.0}
        | {"discount": 0.99, "rescale_actions": False, "inertia": None},
    }
    for section, values in expected.items():
        found = {key: merged[section][key] for key in values}
        assert found == values, section
    assert merged["final_episodes"] == 5


def test_the_keys_that_a_resume_may_change_are_these():
    """Limits, intervals of logs, counts of processes, where and how it computes."""
    learner = {"log_every_n", "backup_every_n", "threads", "xla", "updates_per_call"}
    expected = {
        *{f"policy_config.{key}" for key in learner},
        *{f"model_config.{key}" for key in learner},
        *{"agent_config.count", "agent_config.vectorization", "evaluator_config"},
        *{"total_frames", "total_hours", "final_episodes", "output_root"},
        *{"keep_all_replay_buffers", "tensorboard", "loggers", "deterministic"},
        "env.step_timeout",
    }
    changeable = [path for path in all_paths() if is_changeable(path)]
    assert {".".join(p) for p in changeable if p[:-1] not in changeable} == expected


def test_merged_is_complete_and_reads_again(tree):
    tree.write(a=with_expansion(lambda_return=0))
    loaded = tree.load()
    again = json.loads(json.dumps(loaded.merged, allow_nan=False))
    assert Config.model_validate(again) == loaded.config
    assert Config.model_validate(again).model_dump(by_alias=True) == loaded.merged
    for path in all_paths():
        if "bayesian" not in path[:-1]:
            section = loaded.merged
            for name in path:
                section = section[name]


def test_world_model_goes_by_its_json_name(tree):
    tree.write(a=minimal(model_config={"pretrain_n": 7}))
    loaded = tree.load()
    assert loaded.config.world_model_config.pretrain_n == 7
    assert loaded.merged["model_config"]["pretrain_n"] == 7
    tree.write(a=minimal(world_model_config={}))
    assert "did you mean model_config?" in tree.refusal()


def test_config_is_frozen(tree):
    tree.write(a=minimal())
    config = tree.load().config
    with pytest.raises(ValidationError):
        config.seed = 3
    with pytest.raises(ValidationError):
        config.env.discount = 0.5


@pytest.mark.parametrize(
    ("policy", "model", "capacity"),
    [(20, None, 20), (10, {"replay_size": 20}, 20), (30, {"replay_size": 20}, 30)],
)
def test_an_unpaced_replay_has_the_larger_replay_size(tree, policy, model, capacity):
    keys = {"replay_size": policy, "frames_per_update": False}
    tree.write(a=minimal(policy_config=keys, model_config=model))
    config = tree.load().config
    assert not config.is_paced
    assert config.replay_capacity == capacity
    assert config.has_model == (model is not None)


LARGE = {"replay_size": 30_000}
SHORT = {"env": {"name": "Hopper-v1", "max_frames": 50}}


@pytest.mark.parametrize(
    ("keys", "capacity"),
    [
        # replay_size + 2 * 500 updates * 0.25 frames + 3 vector steps of 8
        ({"policy_config": LARGE}, 30_000 + 250 + 24),
        # the learner that needs more: 29_900 + 2 * 500 * 2
        (
            {
                "policy_config": LARGE,
                "model_config": {"replay_size": 29_900, "frames_per_update": 2},
            },
            29_900 + 2000 + 24,
        ),
        # rows of running episodes: 1000 steps of 8 environments of 3 interactors
        ({"policy_config": {"replay_size": 20}, "agent_config": {"count": 3}}, 24_024),
        # half an update counts as a whole frame: 500 + ceil(2 * 3 * 0.25)
        (
            {**SHORT, "policy_config": {"replay_size": 500, "epoch_every_n": 3}},
            500 + 2 + 24,
        ),
        # endless episodes are not kept
        ({"env": {"name": "Hopper-v1", "max_frames": 10**9}}, 1_000_000 + 250 + 24),
    ],
)
def test_a_paced_replay_keeps_what_may_still_be_drawn(tree, keys, capacity):
    tree.write(a=minimal(**keys))
    config = tree.load().config
    assert config.is_paced
    assert config.replay_capacity == capacity


def test_an_earlier_start_keeps_its_rows_while_it_waits_for_the_later_one(tree):
    """The value learner's first updates draw from the frames before its own start."""
    policy = {"replay_size": 500, "frames_before_learning": 100}
    model = {"replay_size": 500, "frames_before_learning": 20_000}
    tree.write(a=minimal(**SHORT, policy_config=policy, model_config=model))
    # Interactors go up to 20_000 + 2 * 8 frames before update 0, which draws from 0 on.
    assert tree.load().config.replay_capacity >= 20_016


@pytest.mark.parametrize(
    ("policy", "model", "is_paced"),
    [
        (0.25, None, True),
        (False, None, False),
        (0.25, 1, True),
        (0.25, False, False),
        (False, 1, False),
        (False, False, False),
    ],
)
def test_a_run_is_paced_where_all_learners_are(tree, policy, model, is_paced):
    keys = {} if model is None else {"model_config": {"frames_per_update": model}}
    tree.write(a=minimal(policy_config={"frames_per_update": policy}, **keys))
    config = tree.load().config
    assert config.is_paced == is_paced
    assert len(config.sources_of_nondeterminism) == [policy, model].count(False)
    for section, value in (("policy_config", policy), ("model_config", model)):
        named = any(
            f"{section}.frames_per_update" in s
            for s in config.sources_of_nondeterminism
        )
        assert named == (value is False)


@pytest.mark.parametrize(
    ("keys", "in_order", "sources"),
    [
        ({}, True, 0),
        ({"every_n_epochs": 4}, True, 0),
        ({"every_n_epochs": False}, False, 1),
        ({"episodes_per_policy": 0}, False, 1),
        ({"every_n_epochs": False, "episodes_per_policy": 0}, False, 1),
        ({"every_n_epochs": False, "count": 0}, False, 0),  # then nothing is scored
    ],
)
def test_policies_are_evaluated_in_order_unless_it_is_switched_off(
    tree, keys, in_order, sources
):
    tree.write(a=minimal(evaluator_config=keys))
    config = tree.load().config
    assert config.evaluator_config.in_order == in_order
    assert len(config.sources_of_nondeterminism) == sources


def test_a_replay_buffer_smaller_than_two_vector_steps_is_refused(tree):
    tree.write(a=minimal(policy_config={"replay_size": 15}))
    message = tree.refusal()
    assert "policy_config.replay_size must be at least twice" in message
    assert "agent_config.batch_size (8), not 15" in message


def test_environment_folders_are_single_and_distinct(tree):
    names = ["Hopper-v1", "a/b-v0", "a-b-v0", "a.b-v0", "a_b-v0", "a/b.c-v0"]
    tree.write(a=minimal())
    folders = {tree.load(f"env.name={n}").config.environment_folder for n in names}
    assert len(folders) == len(names)
    assert "Hopper-v1" in folders
    assert not any(set(folder) & set("/:\\ ") for folder in folders)


# Keys, types and ranges


@pytest.mark.parametrize(
    ("keys", "path", "suggestion"),
    [
        ({"sed": 1}, "sed", "seed"),
        ({"policy_config": {"batchsize": 1}}, "policy_config.batchsize", "batch_size"),
        (
            {"policy_config": {"ddpg_explore_chance": 0.1}},
            "policy_config.ddpg_explore_chance",
            "explore_chance",
        ),
        (
            {"policy_config": {"tdk_trick": True}},
            "policy_config.tdk_trick",
            "policy_config.value_expansion.tdk_trick",
        ),
        (
            {"rollout_len": 3},
            "rollout_len",
            "policy_config.value_expansion.rollout_len",
        ),
        ({"env": {"make_kwarg": {}}}, "env.make_kwarg", "make_kwargs"),
        ({"agent_config": {"batches": 1}}, "agent_config.batches", "batch_size"),
        ({"se\ned": 1}, "se\\ned", "seed"),
    ],
)
def test_unknown_key_is_named_with_the_nearest_known_one(tree, keys, path, suggestion):
    tree.write(a=minimal(**keys))
    assert tree.refusal() == (
        f"a.json: {path} is not a known key; did you mean {suggestion}?"
    )


@pytest.mark.parametrize("path", list(all_paths()), ids=".".join)
def test_each_key_is_described(path):
    """What it means, was in 2018, where it acts, and what null and false mean."""
    field = field_at(path)
    text = " ".join((field.description or "").split())
    parts = re.fullmatch(r"(\S.+)\. 2018: (\S.*)\. Acts in: (\S.*)\.", text)
    assert parts, f"{'.'.join(path)} has no such description: {text!r}"
    assert meaning(field) == parts[1]
    for file in parts[3].split(", "):
        assert (PROJECT / file).is_file(), file
    takes = re.split(r", | or ", allowed(field))
    if "null" in takes:
        assert "null: " in parts[1]
    if "false" in takes and "true" not in takes:
        assert "false: " in parts[1]


def test_what_a_key_takes_is_said():
    said = {".".join(path): allowed(field_at(path)) for path in all_paths()}
    assert said["seed"] == "a whole number from 0 to 9,223,372,036,854,775,807"
    assert said["env.discount"] == "a number from 0 to 1"
    assert said["env.step_timeout"] == "a number from 0.001 to 1e+08"
    assert said["env.inertia"] == '"2.1", "native" or null'
    assert said["env.rescale_actions"] == "true or false"
    assert said["policy_config.xla"] == "true, false or null"
    assert said["policy_config.threads"] == "a whole number from 1 to 1,000 or null"
    assert said["policy_config.bayesian"] == "an object or null"
    pace = "a number from 1e-06 to 1e+06 or false"
    assert said["policy_config.frames_per_update"] == pace
    assert said["env.entry_point"] == '"package.module:Class" or null'


@pytest.mark.parametrize(
    "path",
    [path for path in all_paths() if "number from" in allowed(field_at(path))],
    ids=".".join,
)
def test_no_number_is_without_bounds(tree, path):
    """So none overflows later, whichever key it stands under."""
    sizes = {"transition": SIZES, "reward": SIZES}
    keys = {"model_config": {"bayesian": sizes}}
    keys["policy_config"] = {"bayesian": SIZES, "value_expansion": {"rollout_len": 3}}
    tree.write(a=minimal(**keys))
    for value in (10**400, 10**31, -1):
        message = tree.refusal(f"{'.'.join(path)}={value}")
        assert f"--set: {'.'.join(path)} must be " in message
    tree.refusal(f"{'.'.join(path)}=1e300")


def test_a_replay_buffer_of_too_many_rows_is_refused(tree):
    tree.write(a=minimal(policy_config={"epoch_every_n": 10**11}))
    message = tree.refusal()
    assert message.startswith(
        "a.json: policy_config.replay_size needs a replay buffer of 50,001,000,024 "
    )
    assert "at most 4,294,967,296 can be had" in message
    largest = {"replay_size": 10**9, "frames_before_learning": 10**9}
    tree.write(a=minimal(policy_config=largest))
    assert tree.load().config.replay_capacity < 1 << 32


GOOD_BAD = [
    ("env.reward_scale", [0.5, 3], [0, -1, "1", True, None]),
    ("env.discount", [0, 1, 0.5], [1.01, -0.1, False, True]),
    ("env.max_frames", [1], [0, 1.0, "1", True, None, False]),
    ("env.obs_dims", [[17], None], [[], [1, 2], [0], [1.0], 17, False]),
    ("env.action_dim", [1, None], [0, False, 1.0]),
    ("env.module", ["a", "a.b_c", None], ["", "a..b", "a-b", "import", "a;b", "../a"]),
    ("env.make_kwargs", [{}, {"a": [1, {"b": None}]}], [None, [], "x", False]),
    (
        "env.wrappers",
        [[], [{"entry_point": "a.b:C", "kwargs": {"x": [1]}}]],
        [
            *(None, {}, "a:B", ["a:B"], [{}], [{"entry_point": "a"}], [{"kwargs": {}}]),
            *([{"entry_point": "a:B", "kwarg": {}}], [{"entry_point": "a:B;c"}]),
        ],
    ),
    ("env.rescale_actions", [True, False], [0, 1, "true", None]),
    ("env.inertia", ["2.1", "native", None], [2.1, "3.0", False]),
    ("env.step_timeout", [0.1, 5], [0, None, False]),
    ("env.name", ["A", "ns/A-v0"], ["", "..", "/a", "a/../b", "a/", ".a", "os:A-v0"]),
    ("env.name", [], ["a b", "a\n", 3, None, "a" * 201, "a\\b", "a/b/c"]),
    ("agent_config", [{}], [None, False, 3, []]),
    ("agent_config.count", [1], [0, 1.0]),
    ("agent_config.full_random_n", [0], [-1, False]),
    ("agent_config.vectorization", ["sync", "async"], ["Async", None, True, 1]),
    ("evaluator_config.count", [0], [-1, 1.5]),
    ("evaluator_config.episodes_per_policy", [0, 1], [-1, False]),
    ("evaluator_config.every_n_epochs", [False, 1, 7], [0, True, -1, 1.0, None]),
    ("policy_config.algo", ["ddpg"], ["sac", None]),
    ("policy_config.layers", [1], [0, "4"]),
    ("policy_config.explore_chance", [0, 1], [2, False]),
    ("policy_config.frames_per_update", [False, 0.25, 1], [0, 0.0, True, None, -1, ""]),
    ("policy_config.learning_rate", [1e-9], [0, False, 10**400]),
    ("policy_config.pre_tanh_penalty", [0, 0.5], [-1e-9, False]),
    ("policy_config.threads", [1, None], [0, False]),
    ("policy_config.bayesian", [None, False], [0, 4, True, {}]),
    ("model_config", [None, False, {}], [0, True, [], "no"]),
    ("model_config.pretrain_n", [False, 1], [0, 0.0, 1.0, True, None, -5]),
    ("model_config.frames_per_update", [False, 0.1], [0, True]),
    ("model_config.weight_decay", [0], [-1, None]),
    ("policy_config.value_expansion", [None, False], [0, True, []]),
    ("policy_config.value_expansion.rollout_len", [1], [0, 1.0, False, None]),
    (
        "policy_config.value_expansion.lambda_return",
        [False, 0, 0.0, 1, 0.5],
        [True, -0.1, 1.1, None],
    ),
    ("policy_config.value_expansion.tdk_trick", [True, False], [0, 1, 0.0, None]),
    ("policy_config.value_expansion.variance_epsilon", [1e-8], [0, False]),
    ("output_root", ["x", "/abs/x", "../x"], ["", None, 3, "a\0b"]),
    ("log_path", ["logs"], ["", ".", "..", "a/b", ".log"]),
    ("save_model_path", ["c"], ["/", None, "a\n"]),
    ("seed", [0, 2**40], [-1, 1.0, False, None]),
    ("total_frames", [10_001, None], [0, 1.5, False]),
    ("total_hours", [0.1, 2, None], [0, False, True]),
    ("final_episodes", [0], [-1, None]),
    ("keep_all_replay_buffers", [True], [1, 0, None]),
]


def value_at(merged: dict, dotted: str) -> object:
    for name in dotted.split("."):
        merged = merged[name]
    return merged


@pytest.mark.parametrize(
    ("dotted", "value"),
    [(dotted, value) for dotted, good, _ in GOOD_BAD for value in good],
)
def test_good_value_is_taken_as_it_is(tree, dotted, value):
    tree.write(a=with_expansion())
    if dotted == "model_config" and not isinstance(value, dict):
        tree.write(a=minimal())
    merged = tree.load(f"{dotted}={json.dumps(value)}").merged
    found = value_at(merged, dotted)
    is_section = dotted in ("model_config", "agent_config", "policy_config.bayesian")
    if is_section or dotted.endswith("value_expansion"):
        assert (found is None) == (value in (None, False))
    else:
        assert found == value
        assert isinstance(found, bool) == isinstance(value, bool)


@pytest.mark.parametrize(
    ("dotted", "value"),
    [(dotted, value) for dotted, _, bad in GOOD_BAD for value in bad],
)
def test_bad_value_is_refused_where_it_stands(tree, dotted, value):
    keys = value
    for name in reversed(dotted.split(".")):
        keys = {name: keys}
    tree.write(a=updates("b", **keys), b=with_expansion())
    message = tree.refusal()
    assert message.startswith(f"a.json: {dotted}")
    assert " must " in message or " is missing" in message


def test_message_says_what_was_wanted_and_what_was_found(tree):
    tree.write(a=minimal(policy_config={"batch_size": "many"}))
    assert tree.refusal() == (
        "a.json: policy_config.batch_size must be a whole number from 1 to 1,000,000, "
        'not "many" (Transitions of one update)'
    )


def test_further_faults_are_counted_once_for_each_key(tree):
    tree.write(
        a=minimal(seed=-1, policy_config={"batch_size": 0, "frames_per_update": 0})
    )
    message = tree.refusal()
    assert message.startswith("a.json: policy_config.batch_size must be ")
    assert message.endswith(", not 0 (Transitions of one update) (and 2 more)")


def test_missing_keys_are_named(tree):
    tree.write(a=updates())
    assert tree.refusal() == "a.json: env is missing"
    tree.write(a=updates(env={}))
    assert tree.refusal() == "a.json: env.name is missing"
    tree.write(a=minimal(model_config={"bayesian": {"reward": None}}))
    assert "model_config.bayesian.transition is missing" in tree.refusal()


# Keys at odds


@pytest.mark.parametrize("count", ["train_sample_count", "eval_sample_count"])
@pytest.mark.parametrize(
    "section",
    [
        "policy_config.bayesian",
        "model_config.bayesian.transition",
        "model_config.bayesian.reward",
    ],
)
def test_sample_counts_lie_between_one_and_the_ensemble_size(tree, section, count):
    both = {"transition": SIZES, "reward": SIZES}
    tree.write(
        a=minimal(model_config={"bayesian": both}, policy_config={"bayesian": SIZES})
    )
    tree.load(f"{section}.{count}=1")
    assert tree.refusal(f"{section}.{count}=5") == (
        f"--set: {section}.{count} must be at most ensemble_size (4), not 5"
    )
    assert "a whole number from 1 to 1,000" in tree.refusal(f"{section}.{count}=0")


@pytest.mark.parametrize("learner", ["policy_config", "model_config"])
def test_each_training_member_gets_a_share_of_the_batch(tree, learner):
    both = {"transition": SIZES, "reward": SIZES}
    tree.write(
        a=minimal(model_config={"bayesian": both}, policy_config={"bayesian": SIZES})
    )
    tree.load(f"{learner}.batch_size=4")
    message = tree.refusal(f"{learner}.batch_size=3")
    assert message.startswith(f"--set: {learner}.batch_size must be at least bayesian.")


@pytest.mark.parametrize(
    ("switches", "words"),
    [
        ({"mean_k_return": True, "lambda_return": 0}, "excludes lambda_return"),
        ({"lambda_return": 0.5, "steve_reweight": True}, "excludes steve_reweight"),
        ({"mean_k_return": True, "steve_reweight": True}, "excludes steve_reweight"),
        ({"covariances": True}, "needs steve_reweight"),
    ],
)
def test_targets_that_exclude_each_other_are_refused(tree, switches, words):
    tree.write(a=with_expansion(**switches))
    message = tree.refusal()
    assert message.startswith(
        f"a.json: policy_config.value_expansion.{next(iter(switches))}"
    )
    assert words in message


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"mean_k_return": True},
        {"lambda_return": 0},
        {"steve_reweight": True},
        {"steve_reweight": True, "covariances": True},
    ],
)
def test_tdk_combines_with_every_target(tree, switches):
    unused = {"mean_k_return": False, "lambda_return": False, "covariances": False}
    tree.write(a=with_expansion(tdk_trick=True, **{**unused, **switches}))
    assert tree.load().config.policy_config.value_expansion.tdk_trick


def test_value_expansion_needs_a_model_and_not_the_reverse(tree):
    tree.write(a=minimal(policy_config={"value_expansion": {"rollout_len": 1}}))
    message = tree.refusal()
    assert message.startswith(
        "a.json: policy_config.value_expansion needs a model_config"
    )
    tree.write(a=minimal(model_config={}))
    assert tree.load().config.has_model


def test_log_and_checkpoints_do_not_share_a_folder(tree):
    tree.write(a=minimal(log_path="checkpoints"))
    assert tree.refusal() == (
        'a.json: save_model_path must not be the folder of log_path too ("checkpoints")'
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "must set decay of lambda_return"),
        ({"decay": None}, "must set decay of lambda_return"),
        ({"decay": "high"}, "must set decay of lambda_return to a number from 0 to 1"),
        ({"decay": True}, "must set decay of lambda_return to a number from 0 to 1"),
        ({"decay": 5}, "must set decay of lambda_return to a number from 0 to 1"),
        ({"decay": 0.5}, None),
    ],
)
def test_a_weighting_has_a_name_whatever_its_settings_are(settings, said):
    """They are checked where the user's own weightings are registered too."""
    expansion = {
        "rollout_len": 3,
        "weighting": "lambda_return",
        "weighting_settings": settings,
    }
    content = {"env": {"name": "x"}, "policy_config": {"value_expansion": expansion}}
    config = Config.model_validate(content | {"model_config": {}})
    assert config.algorithm
    assert WEIGHTINGS["lambda_return"].settings_fault(settings) == said
