"""What a module may register: names, arguments, settings and titles."""

import functools

import pytest
import tensorflow as tf

import steve
from steve.settings.extensions import WEIGHTINGS, WORLD_MODELS, check
from steve.settings.schema import ValueExpansion
from steve.util import UserError
from steve.valuerl import mean_weights


@pytest.fixture(autouse=True)
def _tables_as_before():
    tables = WEIGHTINGS, WORLD_MODELS
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


def mine(candidates, epsilon=None, *, scale):
    return candidates


class Model:
    def __init__(self, config, obs_dim, action_dim, generator, width=8):
        pass


class PassesOn(Model):
    def __init__(self, *args, width=9, **others):
        super().__init__(*args, width=width, **others)


def refusal(make) -> str:
    with pytest.raises(UserError) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fault(settings: dict) -> str | None:
    return WEIGHTINGS["mine"].settings_fault(settings)


def test_only_what_has_no_default_must_be_given():
    steve.weighting("mine")(mine)
    assert fault({}) == "must set scale of mine"
    assert fault({"scale": 1}) is None
    assert fault({"scale": 1, "epsilon": 2}) is None
    assert fault({"scale": 1, "sigma": 2}) == (
        "has no sigma (settings of mine: epsilon, scale)"
    )


def wrong_shape(candidates):
    return candidates[:, :1, 0]


def wrong_type(candidates):
    return tf.ones(candidates.shape[:2], tf.float64)


def wrong_sums(candidates, factor=1.0):
    return factor * tf.ones(candidates.shape[:2])


def not_finite(candidates):
    return tf.math.log(-tf.ones(candidates.shape[:2]))


def needs_three(candidates):
    return tf.broadcast_to([0.5, 0.25, 0.25], candidates.shape[:2])


def not_traceable(candidates):
    return mean_weights(candidates).numpy()


def no_epsilon(candidates, power=1):
    weights = tf.math.reduce_std(candidates, -1) ** power
    return weights / tf.reduce_sum(weights, -1, keepdims=True)


def fine(candidates, epsilon=1e-8):
    weights = tf.math.reduce_std(candidates, -1) + epsilon
    return weights / tf.reduce_sum(weights, -1, keepdims=True)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            wrong_shape,
            "gives float32 of shape (2, 1), not float32 of shape (2, 3), for",
        ),
        (wrong_type, "gives float64 of shape (2, 3), not float32"),
        (
            wrong_sums,
            "gives random candidates rows of weights with the sums [3.0, 3.0], not 1",
        ),
        (
            not_finite,
            "gives random candidates rows of weights with the sums [nan, nan]",
        ),
        (no_epsilon, "gives equal candidates rows of weights with the sums [nan, "),
        (not_traceable, "failed when it was tried (AttributeError: "),
        (fine, None),
        (needs_three, None),
    ],
)
def test_a_weighting_is_tried_on_candidates(function, said):
    steve.weighting("mine")(function)
    found = WEIGHTINGS["mine"].trial_fault({}, [3])
    assert (found is None) if said is None else found.startswith(said)


def test_a_weighting_is_tried_with_its_settings_and_for_each_number_of_candidates():
    steve.weighting("mine")(wrong_sums)
    assert WEIGHTINGS["mine"].trial_fault({"factor": 0.5}, [2]) is None
    steve.weighting("threes")(needs_three)
    assert "tried" in WEIGHTINGS["threes"].trial_fault({}, range(1, 4))


@pytest.mark.parametrize(
    ("name", "setting"), [("steve", "epsilon"), ("covariances", "ridge")]
)
def test_what_is_divided_by_is_above_zero(name, setting):
    weighting = WEIGHTINGS[name]
    assert weighting.settings_fault({setting: 1e-6}) is None
    for value in (0, -1.0, float("nan"), 1e31):
        assert weighting.settings_fault({setting: value}) == (
            f"must set {setting} of {name} to a number from 1e-30 to 1e+30"
        )


@pytest.mark.parametrize("register", [steve.weighting, steve.world_model])
@pytest.mark.parametrize("name", ["inverse std", "", "1st", "a" * 101, "a\n", 3, mine])
def test_a_name_that_no_configuration_can_have_is_refused(register, name):
    said = refusal(lambda: register(name))
    assert said.startswith(f"@steve.{register.__name__}(NAME) needs a name of letters")


@pytest.mark.parametrize("name", ["inverse-std", "a" * 100, "_2"])
def test_a_name_that_is_accepted_can_be_chosen(name):
    steve.weighting(name)(mine)
    expansion = ValueExpansion(rollout_len=1, weighting=name)
    assert expansion.entry.target is mine


@pytest.mark.parametrize(
    "function",
    [
        lambda: 1,
        lambda *, candidates: 1,
        lambda candidates, epsilon=1, /: 1,
    ],
)
def test_a_weighting_takes_candidates_and_settings_by_name(function):
    said = refusal(lambda: steve.weighting("mine")(function))
    assert said.startswith("the weighting mine must take (candidates) and then")
    assert "mine" not in WEIGHTINGS


@pytest.mark.parametrize(
    "factory", [lambda config, obs_dim, action_dim: 1, lambda: 1, lambda **others: 1]
)
def test_a_world_model_takes_four_arguments_and_settings_by_name(factory):
    said = refusal(lambda: steve.world_model("mine")(factory))
    assert said.startswith(
        "the world model mine must take (config, obs_dim, action_dim, generator) and"
    )
    assert "mine" not in WORLD_MODELS


@pytest.mark.parametrize(
    ("register", "what"),
    [(steve.weighting, "weighting"), (steve.world_model, "world model")],
)
def test_what_cannot_be_called_is_refused(register, what):
    assert refusal(lambda: register("mine")(3)).startswith(
        f"the {what} mine cannot be called (TypeError: 3 is not a callable object"
    )


def test_what_has_no_name_is_no_setting():
    steve.world_model("mine")(PassesOn)
    assert WORLD_MODELS["mine"].defaults == {"width": 9}
    steve.weighting("mine")(lambda candidates, *others, **more: 1)
    assert WEIGHTINGS["mine"].defaults == {}


def test_a_world_models_settings_follow_its_four_arguments():
    steve.world_model("mine")(Model)
    check(WORLD_MODELS, "mine", {"width": 16}, "model_config.kind")
    assert WORLD_MODELS["mine"].defaults == {"width": 8}


def test_a_callable_without_a_name_can_be_registered_again_but_no_other_one():
    function = functools.partial(mine, scale=1)
    steve.weighting("mine")(function)
    steve.weighting("mine")(function)
    again = functools.partial(mine, scale=2)
    assert "there already is a weighting called mine" in refusal(
        lambda: steve.weighting("mine")(again)
    )


@pytest.mark.parametrize(
    ("title", "said"),
    [
        ("mine {epsilom:g}", "has the field {epsilom}, which is no setting"),
        ("mine {}", "has the field {}, which is no setting"),
        ("mine {scale:{width}}", "has the field {width}, which is no setting"),
        ("mine {scale.unit}", "has the field {scale.unit}, which is no setting"),
        ("mine {", "the title of the weighting mine: "),
        (3, "is no text: 3"),
    ],
)
def test_a_title_has_no_other_fields_than_settings(title, said):
    message = refusal(lambda: steve.weighting("mine", title=title)(mine))
    assert said in message
    assert message.startswith("the title of the weighting mine")


@pytest.mark.parametrize("title", ["mine {epsilon!q}", "mine {epsilon:Z}"])
def test_a_title_that_cannot_be_filled_in_is_refused(title):
    def with_defaults(candidates, epsilon=0.5):
        return candidates

    said = refusal(lambda: steve.weighting("mine", title=title)(with_defaults))
    assert said.startswith("the title of the weighting mine: ")


def test_a_title_shows_settings():
    steve.weighting("mine", title="mine {{}} {scale:g} {epsilon}")(mine)
    settings = {"scale": 0.5}
    expansion = ValueExpansion(
        rollout_len=1, weighting="mine", weighting_settings=settings
    )
    assert expansion.title == "mine {} 0.5 None"
