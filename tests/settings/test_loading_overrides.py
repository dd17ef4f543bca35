"""The loader: options of the command line, and the experiment's name."""

import math

import pytest
from support import PROJECT
from support_settings import minimal, with_expansion

from steve.settings.loading import experiment_name, load
from steve.util import UserError


def test_overrides_come_last_and_in_order(tree):
    tree.write(a=minimal(seed=1))
    config = tree.load(
        "seed=2", "seed=3", "policy_config.batch_size=128", "env.name=Pendulum-v1"
    ).config
    assert (config.seed, config.policy_config.batch_size) == (3, 128)
    assert config.env.name == "Pendulum-v1"


def test_overridden_object_replaces_the_old_one(tree):
    tree.write(a=with_expansion(steve_reweight=True, variance_epsilon=0.5))
    config = tree.load(
        'policy_config.value_expansion={"rollout_len":2,"tdk_trick":true}'
    ).config
    expansion = config.policy_config.value_expansion
    assert (expansion.rollout_len, expansion.tdk_trick) == (2, True)
    assert (expansion.steve_reweight, expansion.variance_epsilon) == (False, 1e-8)


def test_steve_becomes_ddpg_with_two_nulls():
    steve = PROJECT / "config/experiments/goodruns" / "hopper" / "steve0.json"
    nulls = ["model_config=null", "policy_config.value_expansion=null"]
    config = load(steve, overrides=nulls).config
    assert not config.has_model
    assert config.policy_config.value_expansion is None
    with pytest.raises(UserError, match=r"^--set: .* needs a model_config"):
        load(steve, overrides=nulls[:1])


def test_override_makes_a_section_that_defaults_cover_and_no_other(tree):
    tree.write(a=minimal())
    assert tree.load("agent_config.count=3").config.agent_config.count == 3
    assert tree.load("env.make_kwargs.a.b=3").config.env.make_kwargs == {"a": {"b": 3}}
    assert tree.refusal("model_config.pretrain_n=3") == (
        "--set: model_config.pretrain_n cannot be set, as model_config is null in "
        "this configuration"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env.wrappers.entry_point=a:B", "env.wrappers.entry_point is not a known key"),
        ("policy_config.batchsize=1", "policy_config.batchsize is not a known key"),
        ("policy_confg.batch_size=1", "policy_confg is not a known key; did you mean"),
        ("*model_config=null", "*model_config is not a known key"),
        ('agent_config={"*count":{}}', "agent_config.*count is not a known key"),
        ("policy_config.batch_size=many", "must be a whole number from 1 to 1,000,000"),
        ("policy_config.frames_per_update=False", 'or false, not "False"'),
        ("policy_config.layers.x=1", "policy_config.layers.x"),
        ("seed", "not of the form KEY=VALUE"),
        ("=3", "is not a known key"),
        ("", "not of the form KEY=VALUE"),
        ("total_hours=NaN", "total_hours: NaN is not a finite number"),
        ("env.make_kwargs={a: 1", 'env.make_kwargs: "{a: 1" is not valid JSON'),
        ('env={"nam": "Hopper-v1"}', "env.nam is not a known key; did you mean name"),
        ('agent_config={"count":1,"count":2}', 'the key "count" stands twice'),
        ("env.make_kwargs=" + '{"a":' * 300 + "1" + "}" * 300, ""),
    ],
)
def test_bad_override_is_refused_under_the_same_rules(tree, override, message):
    tree.write(a=minimal(policy_config={"layers": 3}))
    refusal = tree.refusal(override)
    assert refusal.startswith("--set: ")
    assert message in refusal


def test_a_run_that_would_end_before_learning_is_refused(tree):
    tree.write(a=minimal(policy_config={"frames_before_learning": 100}))
    assert tree.load(frames=101).config.total_frames == 101
    message = tree.refusal(frames=100)
    assert message == (
        "--frames: total_frames must be above policy_config.frames_before_learning "
        "(100), not 100"
    )


def test_frames_and_hours_set_the_limits(tree):
    tree.write(a=minimal(total_frames=15_000))
    config = tree.load(frames=20_000, hours=0.5).config
    assert (config.total_frames, config.total_hours) == (20_000, 0.5)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("frames", value) for value in (0, -1, 1.5, True)),
        *(("hours", value) for value in (0, -1.0, math.nan, math.inf)),
    ],
)
def test_bad_limit_names_the_option(tree, option, value):
    tree.write(a=minimal())
    message = tree.refusal(**{option: value})
    assert message.startswith(f"--{option}: total_{option} must be ")


@pytest.mark.parametrize(
    ("path", "name", "expected"),
    [
        ("config/x/steve0.json", None, "steve0"),
        ("steve.v2.json", None, "steve.v2"),
        ("a.json", "lr=1e-3,b+c_d", "lr=1e-3,b+c_d"),
        ("a.json", "x" * 200, "x" * 200),
    ],
)
def test_experiment_name_is_the_file_name_or_the_option(path, name, expected):
    assert experiment_name(path, name) == expected


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "a/b", "/a", "a b", "a\n", "ü", "x" * 201, "a\\b"]
)
def test_unsafe_experiment_name_is_refused(name):
    with pytest.raises(UserError, match=r"^--name must be .*$"):
        experiment_name("a.json", name)
    if "/" not in name and name not in ("", ".", ".."):
        with pytest.raises(UserError, match=r"give another with --name$"):
            experiment_name(f"folder/{name}.json", None)
