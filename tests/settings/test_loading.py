"""The loader: merging, the file to blame, what a resume may change."""

import contextlib
import json
import sys

import pytest
from support import PROJECT
from support_settings import SIZES, minimal, updates, with_expansion

from steve.settings import loading
from steve.settings.loading import changed_keys, changes, load
from steve.util import UserError

# Merging


def test_later_files_win_and_own_updates_win_over_inherited(tree):
    tree.write(
        a=updates("b", "c", seed=4),
        b=minimal(seed=1, total_frames=10_001, final_episodes=1),
        c=updates(seed=2, total_frames=20_000),
    )
    config = tree.load().config
    found = (config.seed, config.total_frames, config.final_episodes)
    assert found == (4, 20_000, 1)


def test_objects_merge_key_by_key_and_lists_replace(tree):
    tree.write(
        a=updates("b", env={"obs_dims": [5], "make_kwargs": {"y": 2}}),
        b=updates(
            env={"name": "X", "obs_dims": [3], "action_dim": 2, "make_kwargs": {"x": 1}}
        ),
    )
    env = tree.load().config.env
    assert (env.name, env.obs_dims, env.action_dim) == ("X", [5], 2)
    assert env.make_kwargs == {"x": 1, "y": 2}


def test_inherits_are_resolved_depth_first_and_twice_is_no_circle(tree):
    tree.write(
        a=updates("b", "c"),
        b=updates("d", seed=1),
        c=updates("d"),
        d=minimal(seed=2),
    )
    assert tree.load().config.seed == 2


def test_star_fills_only_an_object_that_is_there(tree):
    star = {"*model_config": {"pretrain_n": 7}}
    tree.write(a=updates("b", **star), b=minimal())
    assert tree.load().config.world_model_config is None
    tree.write(b=minimal(model_config=None))
    assert tree.load().config.world_model_config is None
    tree.write(b=minimal(model_config={"aux_layers": 2}))
    model = tree.load().config.world_model_config
    assert (model.pretrain_n, model.aux_layers) == (7, 2)


def test_star_works_at_any_depth_and_sees_what_earlier_files_left(tree):
    star = {"policy_config": {"*bayesian": {"eval_sample_count": 2}}}
    sizes = {"ensemble_size": 4, "train_sample_count": 4, "eval_sample_count": 4}
    tree.write(
        a=minimal(policy_config={}),
        b=updates(policy_config={"bayesian": sizes}),
        c=updates(**star),
    )
    tree.write(a=updates("c", "b", **minimal()["updates"]))
    assert tree.load().config.policy_config.bayesian.eval_sample_count == 4
    tree.write(a=updates("b", "c", **minimal()["updates"]))
    assert tree.load().config.policy_config.bayesian.eval_sample_count == 2


@pytest.mark.parametrize("order", [1, -1])
def test_star_does_not_depend_on_the_order_within_a_file(tree, order):
    pairs = [("*model_config", {"pretrain_n": 7}), ("model_config", {"aux_layers": 2})]
    tree.write(a=minimal(**dict(pairs[::order])))
    assert tree.load().config.world_model_config.pretrain_n == 7


@pytest.mark.parametrize(
    ("starred", "words"),
    [
        ({"*modle_config": {}}, ("*modle_config", "did you mean model_config?")),
        ({"*model_config": {"pretrain": 1}}, ("model_config.pretrain ", "pretrain_n?")),
        ({"*model_config": 3}, ("*model_config must be an object",)),
        ({"env": {"*discount": {}}}, ("env.*discount must be an object",)),
        ({"**model_config": {}}, ("**model_config is not a known key",)),
    ],
)
def test_a_starred_mistake_is_loud_also_where_it_would_be_dropped(tree, starred, words):
    tree.write(a=updates("b", **starred), b=minimal())
    message = tree.refusal()
    assert message.startswith("a.json: ")
    assert all(word in message for word in words)


# Which file is to blame


def test_the_file_that_set_the_key_last_is_named(tree):
    tree.write(
        **{
            "a": updates("sub/b", "c"),
            "sub/b": minimal(seed=-1),
            "c": updates(seed=-2),
        }
    )
    assert tree.refusal().startswith("c.json: seed must be")
    tree.write(c=updates(final_episodes=1))
    assert tree.refusal().startswith("sub/b.json: seed must be")


def test_an_unknown_key_in_an_inherited_file_names_that_file(tree):
    tree.write(a=updates("b", policy_config={}), b=minimal(policy_config={"bach": 1}))
    assert tree.refusal().startswith("b.json: policy_config.bach is not")


def test_a_replaced_object_no_longer_answers_for_its_keys(tree):
    tree.write(
        a=updates("b", "c"),
        b=with_expansion(),
        c=updates(policy_config={"value_expansion": None}),
        d=updates(policy_config={"value_expansion": {"tdk_trick": True}}),
    )
    tree.write(a=updates("b", "c", "d"))
    assert tree.refusal() == (
        "d.json: policy_config.value_expansion.rollout_len is missing"
    )


def test_of_two_keys_at_odds_the_one_set_last_is_blamed(tree):
    tree.write(
        a=updates("b", policy_config={"bayesian": {"ensemble_size": 2}}),
        b=minimal(policy_config={"bayesian": SIZES}),
    )
    assert tree.refusal() == (
        "a.json: policy_config.bayesian.train_sample_count must be at most "
        "ensemble_size (2), not 4"
    )


# Resuming


@pytest.mark.parametrize(
    "override",
    [
        "total_frames=20000",
        "total_hours=9",
        "final_episodes=9",
        "keep_all_replay_buffers=true",
        "output_root=elsewhere",
        "agent_config.count=9",
        "agent_config.vectorization=async",
        "evaluator_config.count=9",
        "evaluator_config.episodes_per_policy=9",
        "env.step_timeout=9",
        "policy_config.log_every_n=9",
        "policy_config.backup_every_n=9",
        "policy_config.threads=9",
        "model_config.log_every_n=9",
        "model_config.threads=9",
    ],
)
def test_a_resume_may_change_limits_intervals_and_counts(tree, override):
    tree.write(a=with_expansion())
    assert changed_keys(tree.load().merged, tree.load(override).merged) == []


@pytest.mark.parametrize(
    "override",
    [
        "seed=9",
        "agent_config.batch_size=9",
        "env.name=Hopper-v5",
        "env.obs_dims=[11]",
        "env.make_kwargs.threads=1",
        'env.wrappers=[{"entry_point": "a:B"}]',
        "policy_config.epoch_every_n=9",
        "policy_config.frames_per_update=false",
        "policy_config.value_expansion.lambda_return=0",
        "policy_config.value_expansion.lambda_return=0.25",
        "model_config.pretrain_n=false",
        'policy_config.bayesian={"ensemble_size":1,"train_sample_count":1,'
        '"eval_sample_count":1}',
    ],
)
def test_a_resume_names_every_other_change(tree, override):
    tree.write(a=with_expansion())
    old, new = tree.load().merged, tree.load(override).merged
    assert changed_keys(old, new) == changed_keys(new, old) == [override.split("=")[0]]


@pytest.mark.parametrize(
    ("keys", "unused", "weighting"),
    [
        ({"steve_reweight": True}, "covariance_ridge", "steve"),
        (
            {"steve_reweight": True, "covariances": True},
            "variance_epsilon",
            "covariances",
        ),
        ({"weighting": "steve"}, "variance_epsilon", "steve"),
        ({"mean_k_return": True}, "variance_epsilon", "mean"),
    ],
)
def test_a_number_that_the_weighting_does_not_use_is_a_note(
    tree, keys, unused, weighting
):
    tree.write(a=with_expansion(**keys))
    assert tree.load().notes == []
    assert tree.load(f"policy_config.value_expansion.{unused}=0.5").notes == [
        f"policy_config.value_expansion.{unused} has no effect on the weighting "
        f'"{weighting}"'
    ]


def test_a_number_that_the_weighting_uses_is_no_note(tree):
    tree.write(a=with_expansion(steve_reweight=True, variance_epsilon=0.5))
    assert tree.load().notes == []


def test_a_world_model_that_no_target_uses_is_a_note(tree):
    content = with_expansion()
    tree.write(a=content)
    assert tree.load().notes == []
    assert tree.load("policy_config.value_expansion=null").notes == [
        "model_config: the world model has no effect on the policy, because there is "
        "no policy_config.value_expansion"
    ]


def test_changed_keys_tell_absent_from_null_and_false_from_zero():
    assert changed_keys({"a": None}, {}) == ["a"]
    assert changed_keys({"a": {"b": False, "c": 1}}, {"a": {"b": 0, "c": 1.0}}) == [
        "a.b"
    ]


def test_an_environment_that_keeps_the_name_of_another_is_noted(tree):
    mine = {"entry_point": "my_env:Mine"}
    tree.write(a=updates("b", env=mine), b=minimal(env={"name": "Other-v0"}))
    (note,) = tree.load().notes
    assert note == (
        "env.name Other-v0 comes from b.json and env.entry_point from a.json: the "
        "results are filed under that name; set env.name as well"
    )
    tree.write(a=updates("b", env={**mine, "name": "Mine"}))
    assert tree.load().notes == []


def test_what_a_resume_may_change_is_shown_with_its_values():
    old = {"total_frames": 5, "seed": 1, "output_root": "a"}
    new = {"total_frames": 9, "seed": 2, "output_root": "b", "threads": 3}
    assert changes(old, new, on_resume=True) == ["total_frames 5 -> 9"]
    assert changes({"total_hours": 2.0}, {}, on_resume=True) == [
        "total_hours 2 -> null"
    ]


def test_a_run_of_version_1_may_be_resumed():
    """Its hps.json has none of the keys that came later; those have their defaults."""
    merged = json.loads((PROJECT / "tests/data/hps_version_1.json").read_text())
    assert "module" not in merged
    today = load("config/cpu/halfcheetah/steve0.json", root=PROJECT).merged
    assert changed_keys(merged, today) == []
    assert changed_keys(merged, {**today, "module": ["mine"]}) == ["module"]
    model = {**today["model_config"], "kind": "mine"}
    changed = changed_keys(merged, {**today, "model_config": model})
    assert changed == ["model_config.kind"]


# Large files


def lines_run(keys: dict) -> int:
    """How many lines of the loader are run for a configuration with these keys."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        count += event == "line"
        return trace if frame.f_globals["__name__"] == loading.__name__ else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with contextlib.suppress(UserError):
            load(minimal(**keys))
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    "shape",
    [
        lambda keys: {"env": {"name": "A", "make_kwargs": keys}},
        lambda keys: {"env": {"name": "A", "make_kwargs": {"a": {"b": keys}}}},
        lambda keys: {"env": {"name": "A", **keys}},
        lambda keys: {"env": {"name": "A", "make_kwargs": {k: {} for k in keys}}},
    ],
)
def test_loading_is_linear_in_the_number_of_keys(shape):
    few, many = (
        lines_run(shape({f"k{i}": 1 for i in range(count)})) for count in (200, 800)
    )
    none = lines_run(shape({}))
    assert many - none < 4.5 * (few - none)


def test_a_key_of_a_free_object_has_no_default():
    old, new = ({"env": {"make_kwargs": keys}} for keys in ({}, {"goals": {}}))
    assert changes(old, new) == ["env.make_kwargs.goals nothing -> {}"]
    assert changes(new, old) == ["env.make_kwargs.goals {} -> nothing"]


def test_the_source_of_a_key_is_what_set_it_or_replaced_the_object_around_it(tree):
    kwargs = {"a": {"x": 1, "y": 1}, "b": 1}
    tree.write(
        a=updates("b", "c", env={"make_kwargs": {"a": {"y": 3}}}),
        b=minimal(env={"name": "A", "make_kwargs": kwargs}),
        c=updates(env={"make_kwargs": {"b": {"z": 2}}}),
    )
    sources = tree.load("env.make_kwargs.b.z=4").sources
    here = {key.removeprefix("env.make_kwargs."): sources[key] for key in sources}
    assert (here["a.x"], here["a.y"], here["b.z"]) == ("b.json", "a.json", "--set")
    sources = tree.load('env.make_kwargs={"a":{"x":5}}').sources
    assert sources["env.make_kwargs.a.x"] == "--set"
    assert "env.make_kwargs.a.y" not in sources
