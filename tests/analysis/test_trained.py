"""An experiment's checkpoints: which one is taken, and the nets that come of it."""

import numpy as np
import pytest
import tensorflow as tf
from support_trained import SIZES, content, make_episode, publish

from steve.acting.policy import Policy
from steve.analysis import inspection
from steve.analysis.trained import build_nets, load_checkpoint, policy_shapes
from steve.settings.schema import Config, PolicyConfig
from steve.storage import checkpoint
from steve.util import UserError

pytestmark = pytest.mark.usefixtures("own_process_state")


@pytest.fixture
def config(tmp_path):
    return Config.model_validate(content(tmp_path))


def test_a_folder_gives_its_newest_state_and_the_newest_model(tmp_path, config):
    publish(tmp_path, config, "-5", updates=5)
    publish(tmp_path, config, "-40", updates=40)
    only_numbered = load_checkpoint(tmp_path, config)
    assert only_numbered.path.name == "valuerl-40.safetensors"
    assert only_numbered.model[0].name == "worldmodel-40.safetensors"
    publish(tmp_path, config)
    newest = load_checkpoint(tmp_path, config)
    assert newest.path.name == "valuerl.safetensors"
    assert newest.model[0].name == "worldmodel.safetensors"
    assert newest.notes == []


def test_a_numbered_state_has_the_model_of_its_number_or_none(tmp_path, config):
    publish(tmp_path, config)
    publish(tmp_path, config, "-5", updates=5)
    path = tmp_path / "valuerl-5.safetensors"
    trained = load_checkpoint(path, config)
    assert trained.model[1].metadata["updates"] == 5
    (tmp_path / "worldmodel-5.safetensors").unlink()
    trained = load_checkpoint(path, config)
    assert trained.model is None
    assert "no worldmodel-5.safetensors" in trained.notes[0]


def test_a_policys_values_are_those_beside_it(tmp_path, config):
    publish(tmp_path, config)
    path = tmp_path / "policy.safetensors"
    trained = load_checkpoint(path, config)
    assert trained.critic[0].name == "valuerl.safetensors"
    state = load_checkpoint(tmp_path, config)
    for name, tensor in trained.policy.tensors.items():
        np.testing.assert_array_equal(state.policy.tensors[name], tensor)
    (tmp_path / "valuerl.safetensors").unlink()
    alone = load_checkpoint(path, config)
    assert alone.critic is None
    assert "no values and no weights" in alone.notes[0]


def test_targets_follow_the_policy_that_was_asked_for(tmp_path, config):
    publish(tmp_path, config)
    other = tmp_path / "later"
    publish(other, config, updates=8)
    path = tmp_path / "policy.safetensors"
    (other / "policy.safetensors").replace(path)
    trained = load_checkpoint(path, config)
    assert "of another update" in trained.notes[0]
    nets = build_nets(config, SIZES, trained)
    obs = np.array([[0.3, -0.2]], np.float32)
    asked = Policy(trained.policy, 2, 1).greedy(obs)
    np.testing.assert_allclose(nets.valuerl.action(tf.constant(obs)), asked, atol=1e-6)


def test_a_damaged_newest_state_gives_way_to_the_one_before(tmp_path, config):
    publish(tmp_path, config)
    newest = tmp_path / "valuerl.safetensors"
    newest.rename(checkpoint.previous_path(newest))
    newest.write_bytes(b"torn")
    trained = load_checkpoint(tmp_path, config)
    assert "is used instead" in trained.notes[0]


def test_a_world_model_is_no_policy(tmp_path, config):
    publish(tmp_path, config)
    with pytest.raises(UserError, match="holds no policy"):
        load_checkpoint(tmp_path / "worldmodel.safetensors", config)


def test_the_shapes_expected_of_a_policy_are_those_of_the_net(tmp_path, config):
    publish(tmp_path, config)
    trained = load_checkpoint(tmp_path / "policy.safetensors", config)
    shapes = {name: tensor.shape for name, tensor in trained.policy.tensors.items()}
    assert policy_shapes(config.policy_config, SIZES) == shapes


def test_one_layer_leads_straight_from_observations_to_actions():
    settings = PolicyConfig.model_validate({"layers": 1})
    assert policy_shapes(settings, SIZES) == {
        "policy/w0": (2, 1),
        "policy/b0": (1,),
    }


# The nets


@pytest.mark.parametrize(
    ("expansion", "said"),
    [
        ({"rollout_len": 2, "steve_reweight": True}, None),
        ({"rollout_len": 2, "tdk_trick": True}, "MVE-TDk"),
        ({"rollout_len": 2, "mean_k_return": True}, "mean-MVE"),
        (
            {"rollout_len": 2, "lambda_return": 0},
            "algorithm is ensemble TD-lambda 0 MVE H=2;",
        ),
        ({"rollout_len": 2}, "algorithm is ensemble MVE H=2;"),
        (None, "expands no values"),
    ],
)
def test_another_algorithm_gets_steves_weights_and_it_is_said(
    tmp_path, expansion, said
):
    given = content(tmp_path)
    given["policy_config"]["value_expansion"] = expansion
    config = Config.model_validate(given)
    publish(tmp_path, config)
    trained = load_checkpoint(tmp_path, config)
    nets = build_nets(config, SIZES, trained)
    weights = inspection.episode_values(nets.valuerl, make_episode(3)).weights
    assert weights.shape == (3, (expansion or {"rollout_len": 3})["rollout_len"] + 1)
    # Not the last: behind a termination all candidates are the same.
    assert (weights.max(axis=1) > weights.min(axis=1) + 0.01)[:-1].all()
    assert (weights > 0).all()  # MVE's would be 1 at H and else 0
    if said is None:
        assert nets.notes == []
    else:
        assert said in nets.notes[0]


def test_without_ensembles_the_weights_are_uniform_and_it_is_said(tmp_path):
    given = content(tmp_path)
    given["policy_config"]["bayesian"] = given["model_config"]["bayesian"] = None
    config = Config.model_validate(given)
    publish(tmp_path, config)
    trained = load_checkpoint(tmp_path, config)
    nets = build_nets(config, SIZES, trained)
    weights = inspection.episode_values(nets.valuerl, make_episode(3)).weights
    np.testing.assert_allclose(weights, 1 / 3, atol=1e-6)
    assert "uniform" in nets.notes[0]
