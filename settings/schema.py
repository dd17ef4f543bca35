"""The keys of a configuration: types, ranges, defaults, and the rules between keys.

SPEC section 7 gives the defaults; what the 2018 release hard-coded is a key here.
Every type is strict: 1.0 is no whole number, 0 is not false and false is not 0. The
models are frozen. A field's `description` finishes the sentence "KEY must be ...".
"""

import keyword
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from .extensions import WEIGHTINGS, WORLD_MODELS, Entry, Weighting

SAFE_NAME = r"^[A-Za-z0-9_+=,-][A-Za-z0-9._+=,-]{0,199}$"
# What gymnasium accepts as an id, but for "module:" in front: only env.module is ever
# imported. "+" does not occur in it, so environment_folder maps no two ids to one.
ENVIRONMENT_ID = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?$"
VECTOR_STEPS_AHEAD = 2  # of the interactors, ahead of the slower learner
MOST_FOR_EPISODES = 1_000_000  # rows of the replay buffer
PAPER_HORIZON = 3  # rollout_len of all experiments but the ablation of it


def _refuse_true(value: Any) -> Any:
    if value is True:
        raise ValueError("only false has a meaning here")
    return value


def _null_if_false(value: Any) -> Any:
    # 2018 release: false switches a whole section off; here null does, and false
    # still reads as null so that those files load.
    return None if value is False else value


def _dotted_identifier(value: str) -> str:
    if not all(p.isidentifier() and not keyword.iskeyword(p) for p in value.split(".")):
        raise ValueError("not the name of a module")
    return value


def _entry_point(value: str) -> str:
    module, colon, name = value.partition(":")
    if not colon or not name.isidentifier():
        raise ValueError("not of the form module:name")
    _dotted_identifier(module)
    return value


Switch = Annotated[bool, Field(description="true or false")]
SwitchOrNull = Annotated[bool | None, Field(description="true, false or null")]
Count = Annotated[int, Field(ge=1, description="a whole number of at least 1")]
CountOrZero = Annotated[int, Field(ge=0, description="a whole number of at least 0")]
Positive = Annotated[float, Field(gt=0, description="a number above 0")]
NonNegative = Annotated[float, Field(ge=0, description="a number of at least 0")]
Fraction = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")]

CountOrNull = Annotated[
    Count | None, Field(description="a whole number of at least 1, or null")
]
PositiveOrNull = Annotated[
    Positive | None, Field(description="a number above 0, or null")
]
# false is its own value, apart from 0: bool is strict and true is refused.
CountOrFalse = Annotated[
    Count | bool,
    BeforeValidator(_refuse_true),
    Field(description="a whole number of at least 1, or false"),
]
PositiveOrFalse = Annotated[
    Positive | bool,
    BeforeValidator(_refuse_true),
    Field(description="a number above 0, or false"),
]
FractionOrFalse = Annotated[
    Fraction | bool,
    BeforeValidator(_refuse_true),
    Field(description="a number from 0 to 1, or false"),
]

FolderName = Annotated[
    str,
    Field(
        pattern=SAFE_NAME,
        description="one plain folder name (letters, digits and . _ - + = , only; "
        "no dot in front)",
    ),
]


Module = Annotated[str, AfterValidator(_dotted_identifier)]
Settings = Annotated[
    dict[str, JsonValue], Field(description="an object of keyword arguments")
]
Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,99}$", description="a name"),
]


class _Changeable:
    """Marks a key, and all below it, that a resumed run may change (SPEC section 9)."""


ON_RESUME = _Changeable()


def broken_rule(keys: tuple[str, ...], text: str) -> PydanticCustomError:
    """An error about several keys together.

    Args:
        keys: the dotted keys that take part, relative to the model that complains;
            whichever was set last gets the blame.
        text: a sentence that continues the name of the first key.
    """
    return PydanticCustomError("broken_rule", "{text}", {"keys": keys, "text": text})


class Section(BaseModel):
    """One JSON object of a configuration."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False
    )


class Ensemble(Section):
    """How many members there are, and how many are drawn for each batch."""

    ensemble_size: Count
    train_sample_count: Count
    eval_sample_count: Count

    @model_validator(mode="after")
    def _samples_are_members(self) -> Self:
        for key in ("train_sample_count", "eval_sample_count"):
            if getattr(self, key) > self.ensemble_size:
                raise broken_rule(
                    (key, "ensemble_size"),
                    f"must be at most ensemble_size ({self.ensemble_size}), "
                    f"not {getattr(self, key)}",
                )
        return self


SINGLE_NET = Ensemble(ensemble_size=1, train_sample_count=1, eval_sample_count=1)
EnsembleOrNull = Annotated[
    Ensemble | None,
    BeforeValidator(_null_if_false),
    Field(description="an object, or null"),
]


class ModelEnsembles(Section):
    """Ensembles of the world model; termination follows transition."""

    transition: Annotated[Ensemble, Field(description="an object")]
    reward: Annotated[Ensemble, Field(description="an object")]


EntryPoint = Annotated[str, AfterValidator(_entry_point)]


class Wrapper(Section):
    """A wrapper of the user's own around the environment."""

    entry_point: EntryPoint
    kwargs: Settings = {}


class Environment(Section):
    """The environment; its sizes are read from it and checked where given here."""

    name: Annotated[
        str,
        Field(
            pattern=ENVIRONMENT_ID,
            max_length=200,
            description="an environment id such as Hopper-v1 (a module that is to be "
            "imported first goes into env.module)",
        ),
    ]
    reward_scale: Positive = 1.0
    discount: Fraction = 0.99
    max_frames: Count = 1000
    obs_dims: Annotated[
        list[Count] | None,
        Field(
            min_length=1,
            max_length=1,
            description="a list of one whole number such as [17], or null",
        ),
    ] = None
    action_dim: CountOrNull = None
    module: Annotated[
        Module | None, Field(description="the dotted name of a Python module, or null")
    ] = None
    entry_point: Annotated[
        EntryPoint | None,
        Field(description='"package.module:Class" (what makes it), or null'),
    ] = None
    make_kwargs: Annotated[
        dict[str, JsonValue], Field(description="an object of keyword arguments")
    ] = {}
    wrappers: Annotated[
        list[Wrapper],
        Field(
            description='a list of {"entry_point": "package.module:Class", "kwargs": '
            "{...}}, the innermost first"
        ),
    ] = []
    rescale_actions: Switch = False
    inertia: Annotated[
        Literal["2.1", "native"] | None, Field(description='"2.1", "native" or null')
    ] = None
    step_timeout: Annotated[Positive, ON_RESUME] = 60.0


class AgentConfig(Section):
    """The interactors: processes that step environments with the exploring policy."""

    count: Annotated[Count, ON_RESUME] = 1
    batch_size: Count = 8
    reload_every_n: Count = 1
    full_random_n: CountOrZero = 10_000
    vectorization: Annotated[
        Literal["sync", "async"], ON_RESUME, Field(description='"sync" or "async"')
    ] = "sync"


class EvaluatorConfig(Section):
    """The evaluators: processes that run whole episodes with the greedy policy."""

    count: CountOrZero = 2
    batch_size: Count = 1
    episodes_per_policy: CountOrZero = 1  # 0: without end, as in the 2018 release
    every_n_epochs: CountOrFalse = 1  # false: the newest policy, whichever it is

    @property
    def in_order(self) -> bool:
        """Whether the epoch decides which policies are evaluated, not timing."""
        return self.every_n_epochs is not False and self.episodes_per_policy > 0


class ValueExpansion(Section):
    """The kind of target (SPEC section 5); no switch on is MVE at rollout_len.

    `weighting` names an entry of `extensions.WEIGHTINGS`. The switches of the 2018
    release are other spellings of the five that come along.
    """

    rollout_len: Count
    weighting: Annotated[
        Name | None, Field(description="the name of a weighting, or null")
    ] = None
    weighting_settings: Settings = {}
    tdk_trick: Switch = False
    mean_k_return: Switch = False
    lambda_return: FractionOrFalse = False  # 0 is a lambda: ask `is not False`
    steve_reweight: Switch = False
    covariances: Switch = False
    variance_epsilon: Positive = 1e-8
    covariance_ridge: Positive = 0.001

    @model_validator(mode="after")
    def _one_kind_of_target(self) -> Self:
        kinds = {
            "mean_k_return": self.mean_k_return,
            "lambda_return": self.lambda_return is not False,
            "steve_reweight": self.steve_reweight,
        }
        if self.weighting is None and self.weighting_settings:
            raise broken_rule(
                ("weighting_settings", "weighting"), "needs weighting to be a name"
            )
        kinds["weighting"] = self.weighting is not None
        chosen = tuple(key for key, on in kinds.items() if on)
        if len(chosen) > 1:
            raise broken_rule(chosen, f"excludes {' and '.join(chosen[1:])}")
        if self.covariances and not self.steve_reweight:
            raise broken_rule(
                ("covariances", "steve_reweight"), "needs steve_reweight to be true"
            )
        return self

    @property
    def choice(self) -> tuple[str, dict[str, JsonValue]]:
        """The weighting's name and the settings that are not its own defaults."""
        if self.weighting is not None:
            return self.weighting, dict(self.weighting_settings)
        if self.covariances:
            return "covariances", {"ridge": self.covariance_ridge}
        if self.steve_reweight:
            return "steve", {"epsilon": self.variance_epsilon}
        if self.mean_k_return:
            return "mean", {}
        if self.lambda_return is not False:
            return "lambda_return", {"decay": self.lambda_return}
        return "last", {}

    @property
    def entry(self) -> Weighting:
        """The weighting's entry; for one that no module has registered here, a
        stand-in that knows its name."""
        name, _ = self.choice
        title = name.replace("_", " ")
        return WEIGHTINGS.get(name) or Weighting(name, "", title=title)

    @property
    def title(self) -> str:
        """What tables and figures call the weighting."""
        settings = {**self.entry.defaults, **self.choice[1]}
        return self.entry.title.format(**settings)


class LearnerConfig(Section):
    """What both learners have."""

    batch_size: Count = 512
    replay_size: Count = 1_000_000
    frames_before_learning: CountOrZero = 10_000
    log_every_n: Annotated[Count, ON_RESUME] = 500
    epoch_every_n: Count = 500
    backup_every_n: Annotated[Count, ON_RESUME] = 2_500_000
    frames_per_update: PositiveOrFalse = 0.25
    learning_rate: Positive = 3e-4
    threads: Annotated[CountOrNull, ON_RESUME] = (
        None  # null: all cores; on a GPU TensorFlow decides
    )
    xla: Annotated[SwitchOrNull, ON_RESUME] = (
        None  # null: true on a GPU, and for small nets on a CPU
    )
    updates_per_call: Annotated[CountOrNull, ON_RESUME] = (
        None  # null: with XLA up to 16, else 1
    )

    def _check_shares(self, members: int, key: str) -> None:
        """Every member that takes part in training gets a share of the batch."""
        if self.batch_size < members:
            raise broken_rule(
                ("batch_size", key),
                f"must be at least {key} ({members}), not {self.batch_size}",
            )


class PolicyConfig(LearnerConfig):
    """The value learner: policy and Q-functions."""

    algo: Annotated[Literal["ddpg"], Field(description='"ddpg"')] = "ddpg"
    hidden_dim: Count = 128
    layers: Count = 4
    explore_chance: Fraction = 0.05
    pre_tanh_penalty: NonNegative = 0.001
    bayesian: EnsembleOrNull = None
    value_expansion: Annotated[
        ValueExpansion | None,
        BeforeValidator(_null_if_false),
        Field(description="an object, or null"),
    ] = None

    @model_validator(mode="after")
    def _shares_of_the_batch(self) -> Self:
        if self.bayesian:
            members = self.bayesian.train_sample_count
            self._check_shares(members, "bayesian.train_sample_count")
        return self


class WorldModelConfig(LearnerConfig):
    """The world-model learner."""

    transition_hidden_dim: Count = 512
    aux_hidden_dim: Count = 128
    transition_layers: Count = 8
    aux_layers: Count = 4
    pretrain_n: CountOrFalse = 10_000
    weight_decay: NonNegative = 0.0001
    kind: Name = "ensemble"
    kind_settings: Settings = {}
    bayesian: Annotated[
        ModelEnsembles | None,
        BeforeValidator(_null_if_false),
        Field(description="an object, or null"),
    ] = None

    @model_validator(mode="after")
    def _shares_of_the_batch(self) -> Self:
        for part in ("transition", "reward") if self.bayesian else ():
            members = getattr(self.bayesian, part).train_sample_count
            self._check_shares(members, f"bayesian.{part}.train_sample_count")
        return self


class Config(Section):
    """One run: everything that the processes need to know.

    The JSON key of `world_model_config` is `model_config`, a name that pydantic keeps
    for itself. `Config.model_validate(merged)` reads a merged configuration again.
    """

    env: Annotated[Environment, Field(description="an object")]
    agent_config: Annotated[AgentConfig, Field(description="an object")] = AgentConfig()
    evaluator_config: Annotated[
        EvaluatorConfig, ON_RESUME, Field(description="an object")
    ] = EvaluatorConfig()
    policy_config: Annotated[PolicyConfig, Field(description="an object")] = (
        PolicyConfig()
    )
    world_model_config: Annotated[
        WorldModelConfig | None,
        BeforeValidator(_null_if_false),
        Field(alias="model_config", description="an object, or null"),
    ] = None
    module: Annotated[
        list[Module],
        Field(description="a list of the dotted names of Python modules"),
    ] = []
    output_root: Annotated[
        str,
        ON_RESUME,
        Field(pattern=r"^[^\x00]+$", description="the path of a folder"),
    ] = "output"
    save_model_path: FolderName = "checkpoints"
    log_path: FolderName = "log"
    seed: CountOrZero = 0
    # Of products on a GPU; 2018's were float32, and tf32 is coarser by a thousand.
    precision: Annotated[
        Literal["float32", "tf32"], Field(description='"float32" or "tf32"')
    ] = "float32"
    deterministic: Annotated[Switch, ON_RESUME] = False  # of a GPU, at some cost
    total_frames: Annotated[CountOrNull, ON_RESUME] = None
    total_hours: Annotated[PositiveOrNull, ON_RESUME] = None
    final_episodes: Annotated[CountOrZero, ON_RESUME] = 5
    keep_all_replay_buffers: Annotated[Switch, ON_RESUME] = False
    tensorboard: Annotated[Switch, ON_RESUME] = True

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        if self.policy_config.value_expansion and not self.has_model:
            raise broken_rule(
                ("policy_config.value_expansion", "model_config"),
                "needs a model_config, and there is none (null: no value expansion)",
            )
        for section, learner in self._learners():
            first = learner.frames_before_learning
            if self.total_frames is not None and self.total_frames <= first:
                raise broken_rule(
                    ("total_frames", f"{section}.frames_before_learning"),
                    f"must be above {section}.frames_before_learning ({first}), "
                    f"not {self.total_frames}",
                )
        step = self.agent_config.batch_size
        if self._largest_replay_size < 2 * step:
            raise broken_rule(
                ("policy_config.replay_size", "agent_config.batch_size"),
                f"must be at least twice agent_config.batch_size ({step}), "
                f"not {self.policy_config.replay_size}",
            )
        if self.save_model_path == self.log_path:
            raise broken_rule(
                ("save_model_path", "log_path"),
                f'must not be the folder of log_path too ("{self.log_path}")',
            )
        return self

    @model_validator(mode="after")
    def _extensions_are_known(self) -> Self:
        """Where no module could register it, a name must be known already."""
        expansion, model = self.policy_config.value_expansion, self.world_model_config
        chosen: list[tuple[str, Mapping[str, Entry], str]] = []
        if model is not None:
            chosen.append(("model_config.kind", WORLD_MODELS, model.kind))
        if expansion is not None:
            key = "policy_config.value_expansion.weighting"
            chosen.append((key, WEIGHTINGS, expansion.choice[0]))
        for key, table, name in chosen:
            if name not in table and not self.module:
                raise broken_rule(
                    (key, "module"),
                    f"must be one of {', '.join(table)}, or registered by a module "
                    f"that `module` names, not {name}",
                )
        return self

    @model_validator(mode="after")
    def _calls_keep_the_pace(self) -> Self:
        for section, learner in self._learners():
            most = self.most_updates_per_call(learner)
            if (learner.updates_per_call or 1) > most:
                raise broken_rule(
                    (f"{section}.updates_per_call", f"{section}.frames_per_update"),
                    f"must be at most {most}, the updates for which one vector step "
                    "has the frames (agent_config.batch_size / frames_per_update), "
                    f"not {learner.updates_per_call}",
                )
        return self

    def _learners(self) -> Iterator[tuple[str, LearnerConfig]]:
        yield "policy_config", self.policy_config
        if self.world_model_config:
            yield "model_config", self.world_model_config

    def most_updates_per_call(self, learner: LearnerConfig) -> float:
        """How many updates the pace lets a learner do at once (SPEC section 2).

        Interactors stop two vector steps ahead of the slower learner, so the frames
        of one step are always to be had.
        """
        if learner.frames_per_update is False:
            return math.inf
        step = self.agent_config.batch_size
        return max(1, int(step / learner.frames_per_update))

    @property
    def algorithm(self) -> str:
        """The name of the run's algorithm.

        DDPG, MVE, MVE-TDk, mean-MVE, TD-lambda MVE, STEVE or COV-STEVE. A name says
        what departs from the paper's usual form: "ensemble" where only STEVE has
        ensembles, "single-net" where it has none, "H=5" for a horizon other than 3,
        "unpaced" for the speedruns.
        """
        policy, expansion = self.policy_config, self.policy_config.value_expansion
        name, ensembles = "DDPG", False
        if expansion:
            name, ensembles = expansion.title, expansion.entry.ensembles
        if expansion and expansion.tdk_trick:
            name += "-TDk"
        if bool(policy.bayesian) != ensembles:
            name = f"{'ensemble' if policy.bayesian else 'single-net'} {name}"
        if expansion and expansion.rollout_len != PAPER_HORIZON:
            name += f" H={expansion.rollout_len}"
        return name if policy.frames_per_update else f"{name} unpaced"

    def limit_reached(self, frames: int, hours: float) -> bool:
        """Whether a run of so many frames, or hours of learning, is at its end."""
        return limit_reached(self.total_frames, self.total_hours, frames, hours)

    @property
    def model_section(self) -> WorldModelConfig:
        """`world_model_config` of a run that has one."""
        assert self.world_model_config is not None, "this run has no world model"
        return self.world_model_config

    @property
    def logs_usage(self) -> bool:
        """Whether model usage is a measurement: not where the weights are fixed."""
        expansion = self.policy_config.value_expansion
        return expansion is not None and expansion.entry.adaptive

    @property
    def has_model(self) -> bool:
        """Whether a world model is learned."""
        return self.world_model_config is not None

    @property
    def is_paced(self) -> bool:
        """Whether each learner keeps a pace, so that nothing depends on timing."""
        return all(each.frames_per_update is not False for _, each in self._learners())

    @property
    def replay_capacity(self) -> int:
        """Rows of the one replay buffer: at least the learners' larger replay_size.

        A paced run keeps as many more that nothing has been dropped when it is drawn:
        what interactors are ahead, what a learner that resumes from the state before
        the last goes back, and the running episodes, whose steps a resume repeats.
        """
        if not self.is_paced:
            return self._largest_replay_size
        step = self.agent_config.batch_size
        latest = max(each.frames_before_learning for _, each in self._learners())
        drawn = [
            each.replay_size
            + latest
            - each.frames_before_learning
            + math.ceil(2 * each.epoch_every_n * each.frames_per_update)
            for _, each in self._learners()
        ]
        episodes = self.env.max_frames * step * self.agent_config.count
        rows = max([*drawn, min(episodes, MOST_FOR_EPISODES)])
        return rows + (VECTOR_STEPS_AHEAD + 1) * step

    @property
    def _largest_replay_size(self) -> int:
        return max(each.replay_size for _, each in self._learners())

    @property
    def sources_of_chance(self) -> list[str]:
        """Why two runs of this configuration differ; of a paced run none."""
        found = [
            f"{section}.frames_per_update is false: timing decides what is learned"
            for section, learner in self._learners()
            if learner.frames_per_update is False
        ]
        if self.evaluator_config.count and not self.evaluator_config.in_order:
            found.append(
                "timing decides which policies are scored (evaluator_config: "
                "every_n_epochs false, or episodes_per_policy 0)"
            )
        return found

    @property
    def environment_folder(self) -> str:
        """The environment's id as the name of one folder, another for each id."""
        return self.env.name.replace("/", "+")


def limit_reached(
    total_frames: int | None, total_hours: float | None, frames: int, hours: float
) -> bool:
    """Whether frames or hours of learning are at their limit; None: there is none."""
    limits = (total_frames, frames), (total_hours, hours)
    return any(limit is not None and now >= limit for limit, now in limits)


def known_keys(section: type[Section]) -> dict[str, FieldInfo]:
    """The keys of a section as they stand in JSON."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def section_of(field: FieldInfo) -> type[Section] | None:
    """The section that a key holds; None where it holds a plain value, or a list."""
    if get_origin(field.annotation) is list:
        return None
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def is_free_object(field: FieldInfo) -> bool:
    """Whether a key holds an object whose own keys are not fixed (`make_kwargs`)."""
    return get_origin(field.annotation) is dict


def field_at(path: tuple[str, ...]) -> FieldInfo | None:
    """What is known of the key at a path; None where there is no such key.

    A key inside a free object counts as that object.
    """
    section: type[Section] | None = Config
    field = None
    for name in path:
        field = known_keys(section).get(name) if section else None
        if field is None or is_free_object(field):
            return field
        section = section_of(field)
    return field


def is_changeable(path: tuple[str, ...]) -> bool:
    """Whether a resumed run may change the key at a path (SPEC section 9)."""
    fields = [field_at(path[:depth]) for depth in range(1, len(path) + 1)]
    return any(field is not None and ON_RESUME in field.metadata for field in fields)


def all_paths(section: type[Section] = Config) -> Iterator[tuple[str, ...]]:
    """Every known key, as the path of names that leads to it."""
    for name, field in known_keys(section).items():
        yield (name,)
        for rest in all_paths(inner) if (inner := section_of(field)) else ():
            yield (name, *rest)
