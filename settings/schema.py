"""The keys of a configuration: defaults, and the rules between keys.

SPEC section 7 gives the defaults; what the 2018 release hard-coded is a key here.
The models are frozen. The text below a key is its description: what it means, in which
unit, what it was in 2018 and where it acts. `values` has the types, and `keys.allowed`
says what one takes.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    model_validator,
)
from pydantic_core import PydanticCustomError

from .extensions import WEIGHTINGS, WORLD_MODELS, Entry, Weighting
from .values import (
    ENVIRONMENT_ID,
    ID_TEXT,
    ON_RESUME,
    Allowed,
    Count,
    CountOrFalse,
    CountOrZero,
    DatasetName,
    Dimension,
    EntryPoint,
    Few,
    FolderName,
    Fraction,
    FractionOrFalse,
    Frames,
    Hours,
    Many,
    Module,
    Name,
    NonNegative,
    PaceOrFalse,
    Positive,
    Range,
    Rows,
    RowsOrZero,
    Seconds,
    Settings,
    Width,
    logger_name,
    null_if_false,
)

VECTOR_STEPS_AHEAD = 2  # of the interactors, ahead of the slower learner
MOST_ROWS = 1 << 32  # of the replay buffer
MOST_FOR_EPISODES = 1_000_000  # rows of the replay buffer
PAPER_HORIZON = 3  # rollout_len of all experiments but the ablation of it


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
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class Ensemble(Section):
    """How many members there are, and how many are sampled for each batch."""

    ensemble_size: Few
    """Members of an ensemble. 2018: 4 with config/core/bayesian.json, 1 without. Acts
    in: nn.py."""
    train_sample_count: Few
    """Members, sampled for each batch, that an update trains; each gets a share of the
    batch. 2018: 4, and every member saw the whole batch. Acts in: valuerl.py,
    worldmodel.py."""
    eval_sample_count: Few
    """Members, sampled for each batch, that targets and the policy loss average over.
    2018: 4. Acts in: valuerl.py."""

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
EnsembleOrNull = Annotated[Ensemble | None, BeforeValidator(null_if_false)]


class ModelEnsembles(Section):
    """Ensembles of the world model; termination follows transition."""

    transition: Ensemble
    """The ensemble of transition nets, and of termination nets, which follow it. 2018:
    4 members with config/core/bayesian.json. Acts in: worldmodel.py."""
    reward: Ensemble
    """The ensemble of reward nets. 2018: 4 members with config/core/bayesian.json. Acts
    in: worldmodel.py."""


class Wrapper(Section):
    """A wrapper of the user's own around the environment."""

    entry_point: EntryPoint
    """The class, called with the environment and `kwargs`. 2018: no such key. Acts in:
    envwrap.py."""
    kwargs: Settings = {}
    """Keyword arguments of the class. 2018: no such key. Acts in: envwrap.py."""


class LoggerConfig(Section):
    """What a run's numbers go to, in addition to csv files and TensorBoard."""

    entry_point: Annotated[
        str,
        AfterValidator(logger_name),
        Allowed('"wandb", "mlflow" or "package.module:Class"'),
    ]
    """"wandb", "mlflow", or a class of the user's own, called with the experiment and
    `kwargs`. 2018: no such key. Acts in: loggers/process.py."""
    kwargs: Settings = {}
    """Keyword arguments of the class; of "wandb" those of wandb.init. 2018: no such
    key. Acts in: loggers/process.py."""


class Environment(Section):
    """The environment; its sizes are read from it and checked where given here."""

    name: Annotated[
        str, Allowed(ID_TEXT), Field(pattern=ENVIRONMENT_ID, max_length=200)
    ]
    """Id under which gymnasium knows the environment; it names the output folder. 2018:
    an id of gym, such as Hopper-v1. Acts in: envwrap.py, storage/folders.py."""
    reward_scale: Positive = 1.0
    """Factor of each reward in the targets; scores are without it. 2018: 1. Acts in:
    valuerl.py."""
    discount: Fraction = 0.99
    """Discount of the reward of one step later. 2018: 0.99. Acts in: valuerl.py."""
    max_frames: Count = 1000
    """Steps after which an episode is cut; a cut is no termination. 2018: 1000. Acts
    in: envwrap.py."""
    obs_dims: Annotated[
        list[Dimension] | None,
        Allowed("a list of one whole number such as [17], or null"),
        Field(min_length=1, max_length=1),
    ] = None
    """Length of an observation, as a list of one number; it is checked against the
    environment. null: not checked. 2018: must be given. Acts in: envwrap.py."""
    action_dim: Dimension | None = None
    """Length of an action; it is checked against the environment. null: not checked.
    2018: must be given. Acts in: envwrap.py."""
    module: Module | None = None
    """Module to import first, where a package registers its environments on import.
    null: none. 2018: no such key. Acts in: envwrap.py."""
    entry_point: EntryPoint | None = None
    """What makes an environment that is registered nowhere; `name` is then only a name.
    null: the registered one. 2018: no such key. Acts in: envwrap.py."""
    make_kwargs: Settings = {}
    """Keyword arguments for gymnasium.make, or for `entry_point`. 2018: no such key.
    Acts in: envwrap.py."""
    wrappers: Annotated[
        list[Wrapper],
        Allowed(
            'a list of {"entry_point": "package.module:Class", "kwargs": {...}}, the '
            "innermost first"
        ),
    ] = []
    """Wrappers of the user's own around the environment, the innermost first. 2018: no
    such key. Acts in: envwrap.py."""
    rescale_actions: bool = False
    """true: actions in [-1, 1] are stretched to the box of the environment. false: they
    are clipped to it. 2018: clipped. Acts in: envwrap.py, settings/interface.py."""
    inertia: Literal["2.1", "native"] | None = None
    """Inertia of the bodies of the MuJoCo environments called -v1: as MuJoCo 2.1
    compiled them, or as the installed one does. null: "2.1". 2018: that of its MuJoCo.
    Acts in: environments/mujoco.py."""
    step_timeout: Annotated[Seconds, ON_RESUME] = 60.0
    """Seconds without life after which a process counts as hung and is killed. 2018:
    none. Acts in: running/supervisor.py."""


class AgentConfig(Section):
    """The interactors: processes that step environments with the exploring policy."""

    count: Annotated[Few, ON_RESUME] = 1
    """Interactors: processes that step environments and fill the replay buffer. 2018:
    1. Acts in: acting/interactor.py."""
    batch_size: Many = 8
    """Environments of each interactor, which it steps together. 2018: 8. Acts in:
    acting/interactor.py."""
    reload_every_n: Count = 1
    """Vector steps after which an interactor looks for a newer policy. 2018: 1. Acts
    in: acting/interactor.py."""
    full_random_n: CountOrZero = 10_000
    """Frames, from the start of the run on, with actions uniform in [-1, 1]. 2018:
    10000. Acts in: acting/interactor.py."""
    vectorization: Annotated[Literal["sync", "async"], ON_RESUME] = "sync"
    """"sync": an interactor steps its environments in turn. "async": each in a process
    of its own, with the same rows. 2018: in processes. Acts in: acting/interactor.py,
    acting/remote_env.py."""


class EvaluatorConfig(Section):
    """The evaluators: processes that run whole episodes with the greedy policy."""

    count: Annotated[int, Range(0, 1000)] = 2
    """Evaluators: processes that run whole episodes with the greedy policy. 0: no
    scores. 2018: 2. Acts in: acting/evaluator.py."""
    batch_size: Many = 1
    """Environments of each evaluator, which it steps together. 2018: 1. Acts in:
    acting/evaluator.py."""
    episodes_per_policy: CountOrZero = 1
    """Episodes that each evaluator runs with one policy. 0: until there is a newer one.
    2018: 0, without a key. Acts in: acting/evaluator.py."""
    every_n_epochs: CountOrFalse = 1
    """Every so many epochs the published policy is evaluated. false: the newest one,
    whichever it is. 2018: false, without a key. Acts in: acting/evaluator.py."""

    @property
    def in_order(self) -> bool:
        """Whether the epoch decides which policies are evaluated, not timing."""
        return self.every_n_epochs is not False and self.episodes_per_policy > 0


class ValueExpansion(Section):
    """The kind of target (SPEC section 5); without a switch it is MVE's.

    `weighting` names an entry of `extensions.WEIGHTINGS`. The switches of the 2018
    release are other spellings of the five that come along.
    """

    rollout_len: Few
    """Steps H of imagined rollouts. 2018: 3; 1, 2 and 5 in the ablation. Acts in:
    valuerl.py."""
    weighting: Name | None = None
    """Name of the weighting of candidate targets. null: what the switches below say.
    2018: no such key. Acts in: valuerl.py, settings/extensions.py."""
    weighting_settings: Settings = {}
    """Keyword arguments of `weighting`. 2018: no such key. Acts in: valuerl.py."""
    tdk_trick: bool = False
    """Trains the Q-functions on every state of a rollout, as Feinberg et al. (2018) do.
    2018: false; true in MVE-TDk. Acts in: valuerl.py."""
    mean_k_return: bool = False
    """Takes the mean of the candidate targets. 2018: false. Acts in: valuerl.py."""
    lambda_return: FractionOrFalse = False
    """Decay of the TD-lambda mean of the candidate targets; 0 is a decay. false: no
    such mean. 2018: false. Acts in: valuerl.py."""
    steve_reweight: bool = False
    """Weights the candidate targets by their inverse variances, as STEVE does. 2018:
    false; true in STEVE. Acts in: valuerl.py."""
    covariances: bool = False
    """With `steve_reweight`: takes the covariances of the candidates into account.
    2018: false; true in COV-STEVE. Acts in: valuerl.py."""
    variance_epsilon: Positive = 1e-8
    """What `steve_reweight` adds to each variance, in squared units of scaled return.
    2018: 1e-8, a constant. Acts in: valuerl.py."""
    covariance_ridge: Positive = 0.001
    """What `covariances` adds to the diagonal of the covariance matrix, in squared
    units of scaled return. 2018: 0.001, a constant. Acts in: valuerl.py."""
    imagination_precision: Literal["float32", "bfloat16"] = "float32"
    """Number type of the products of imagined rollouts. bfloat16 has 8 bits of
    mantissa; it is refused where it is no faster. 2018: float32. Acts in: valuerl.py,
    nn.py."""

    _told: Weighting | None = PrivateAttr(None)  # see `Config.with_weighting`

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
    def without_effect(self) -> list[str]:
        """Keys that are set although the weighting does not use them."""
        uses = {
            "variance_epsilon": self.steve_reweight and not self.covariances,
            "covariance_ridge": self.covariances,
        }
        fields = type(self).model_fields
        return [
            key
            for key, used in uses.items()
            if not used and getattr(self, key) != fields[key].default
        ]

    @property
    def entry(self) -> Weighting:
        """The weighting's entry; for one that no module has registered here, what was
        told of it (`Config.with_weighting`), or else a stand-in that knows its name."""
        name, _ = self.choice
        told = self._told or Weighting(name, "", title=name.replace("_", " "))
        return WEIGHTINGS.get(name, told)

    @property
    def description(self) -> dict[str, Any] | None:
        """What figures need to know of a weighting from a user's module; None for one
        that is always there."""
        entry = self.entry
        if isinstance(entry.target, str):
            return None
        return {
            "title": self.title,
            "adaptive": entry.adaptive,
            "ensembles": entry.ensembles,
        }

    @property
    def title(self) -> str:
        """What tables and figures call the weighting."""
        settings = {**self.entry.defaults, **self.choice[1]}
        try:
            return self.entry.title.format(**settings)
        except (TypeError, ValueError):  # values that its check refuses
            return self.entry.name


class LearnerConfig(Section):
    """What both learners have."""

    batch_size: Many = 512
    """Transitions of one update. 2018: 512. Acts in: learner.py."""
    replay_size: Rows = 1_000_000
    """Newest transitions that updates are drawn from. 2018: 1000000. Acts in:
    learner.py, replay.py."""
    frames_before_learning: RowsOrZero = 10_000
    """Frames that are there before the first update. 2018: 10000. Acts in:
    running/pace.py."""
    log_every_n: Annotated[Count, ON_RESUME] = 500
    """Updates between lines of the log, whose losses are means over them. 2018: 500.
    Acts in: learner.py."""
    epoch_every_n: Count = 500
    """Updates of an epoch; at its end the learner saves and publishes. 2018: 500. Acts
    in: learner.py."""
    backup_every_n: Annotated[Count, ON_RESUME] = 2_500_000
    """Updates between numbered checkpoints, which stay. 2018: 2500000. Acts in:
    learner.py."""
    frames_per_update: PaceOrFalse = 0.25
    """Environment frames per update. false: neither side waits for the other. 2018:
    0.25; false in the speedruns. Acts in: running/pace.py."""
    learning_rate: Positive = 3e-4
    """Step size of Adam. 2018: 0.0003, a constant. Acts in: nn.py."""
    threads: Annotated[Few | None, ON_RESUME] = None
    """CPU threads of the learner. null: all cores; on a GPU TensorFlow decides. 2018:
    TensorFlow's choice. Acts in: compute.py."""
    xla: Annotated[bool | None, ON_RESUME] = None
    """Whether updates are compiled by XLA. null: on a GPU, and for
    small nets on a CPU. 2018: no. Acts in: learner.py, compute.py."""
    updates_per_call: Annotated[Many | None, ON_RESUME] = None
    """Updates that one call of TensorFlow makes. null: with XLA up to
    16, else 1. 2018: 1. Acts in: learner.py, compute.py."""

    def _check_shares(self, members: int, key: str) -> None:
        """Every member that takes part in training gets a share of the batch."""
        if self.batch_size < members:
            raise broken_rule(
                ("batch_size", key),
                f"must be at least {key} ({members}), not {self.batch_size}",
            )


class PolicyConfig(LearnerConfig):
    """The value learner: policy and Q-functions."""

    algo: Literal["ddpg"] = "ddpg"
    """Algorithm of policy and Q-functions: there is one. 2018: "ddpg". Acts in:
    settings/schema.py."""
    hidden_dim: Width = 128
    """Width of the hidden layers of policy and Q-functions. 2018: 128. Acts in:
    valuerl.py."""
    layers: Few = 4
    """Weight matrices of the policy and of each Q-function. 2018: 4, a constant. Acts
    in: valuerl.py."""
    explore_chance: Fraction = 0.05
    """Probability with which a dimension of an exploring action gets noise. 2018: 0.05,
    which its code did not read: nobody explored. Acts in: acting/policy.py."""
    pre_tanh_penalty: NonNegative = 0.001
    """Weight of the squared pre-tanh action in the policy loss. 2018: 0.001, a
    constant. Acts in: valuerl.py."""
    bayesian: EnsembleOrNull = None
    """The ensemble of Q-functions. null: a single one. 2018: 4 members with
    config/core/bayesian.json. Acts in: valuerl.py."""
    value_expansion: Annotated[
        ValueExpansion | None, BeforeValidator(null_if_false)
    ] = None
    """Targets from imagined rollouts. null: DDPG. 2018: that of the algorithm. Acts in:
    valuerl.py."""

    @model_validator(mode="after")
    def _shares_of_the_batch(self) -> Self:
        if self.bayesian:
            members = self.bayesian.train_sample_count
            self._check_shares(members, "bayesian.train_sample_count")
        return self


class WorldModelConfig(LearnerConfig):
    """The world-model learner."""

    transition_hidden_dim: Width = 512
    """Width of the hidden layers of transition nets. 2018: 512. Acts in: worldmodel.py.
    """
    aux_hidden_dim: Width = 128
    """Width of the hidden layers of reward and termination nets. 2018: 128. Acts in:
    worldmodel.py."""
    transition_layers: Few = 8
    """Weight matrices of each transition net. 2018: 8, a constant. Acts in:
    worldmodel.py."""
    aux_layers: Few = 4
    """Weight matrices of each reward and termination net. 2018: 4, a constant. Acts in:
    worldmodel.py."""
    pretrain_n: CountOrFalse = 10_000
    """Updates on the first frames, before the value learner begins. false: none. 2018:
    10000; false in the speedruns. Acts in: worldmodel_learner.py."""
    weight_decay: NonNegative = 0.0001
    """Weight of the squared weights in the loss. 2018: 0.0001, a constant. Acts in:
    worldmodel.py."""
    kind: Name = "ensemble"
    """Name of the kind of world model. 2018: no such key. Acts in:
    settings/extensions.py."""
    kind_settings: Settings = {}
    """Keyword arguments of `kind`. 2018: no such key. Acts in: settings/extensions.py.
    """
    bayesian: Annotated[ModelEnsembles | None, BeforeValidator(null_if_false)] = None
    """The ensembles of the world model. null: single nets. 2018: 4 members each with
    config/core/bayesian.json. Acts in: worldmodel.py."""

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

    env: Environment
    """The environment. 2018: a section of the same name. Acts in: envwrap.py."""
    agent_config: AgentConfig = AgentConfig()
    """The interactors. 2018: a section of the same name. Acts in: acting/interactor.py.
    """
    evaluator_config: Annotated[EvaluatorConfig, ON_RESUME] = EvaluatorConfig()
    """The evaluators. 2018: a section of the same name. Acts in: acting/evaluator.py.
    """
    policy_config: PolicyConfig = PolicyConfig()
    """The value learner: policy and Q-functions. 2018: a section of the same name. Acts
    in: valuerl_learner.py."""
    world_model_config: Annotated[
        WorldModelConfig | None,
        BeforeValidator(null_if_false),
        Field(alias="model_config"),
    ] = None
    """The world-model learner. null: there is none. 2018: a section of the same name.
    Acts in: worldmodel_learner.py."""
    module: Annotated[
        list[Module], Allowed("a list of the dotted names of Python modules")
    ] = []
    """Modules that are imported first; they register weightings, world models and
    environments. 2018: no such key. Acts in: settings/extensions.py."""
    output_root: Annotated[
        str, ON_RESUME, Allowed("the path of a folder"), Field(pattern=r"^[^\x00]+$")
    ] = "output"
    """Folder of all output; a relative one is in the working folder. 2018: "output".
    Acts in: storage/folders.py."""
    save_model_path: FolderName = "checkpoints"
    """Name of the folder of states, policies and the replay buffer. 2018:
    "checkpoints". Acts in: storage/folders.py."""
    log_path: FolderName = "log"
    """Name of the folder of scores and logs. 2018: "log". Acts in: storage/folders.py.
    """
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of every draw of the run. 2018: none; one process had NumPy's seed 0. Acts
    in: settings/seeds.py."""
    precision: Literal["float32", "tf32"] = "float32"
    """Precision of products on a GPU; tf32 is coarser by a factor of a thousand. 2018:
    float32. Acts in: compute.py."""
    deterministic: Annotated[bool, ON_RESUME] = False
    """Makes what a GPU computes repeatable to the bit, at some cost. 2018: no. Acts in:
    compute.py, running/launch.py."""
    total_frames: Annotated[Frames | None, ON_RESUME] = None
    """Environment frames at which the run ends. null: no such limit. 2018: none. Acts
    in: running/pace.py."""
    total_hours: Annotated[Hours | None, ON_RESUME] = None
    """Hours of learning at which the run ends. null: no such limit. 2018: none. Acts
    in: running/pace.py."""
    final_episodes: Annotated[Annotated[int, Range(0, 10**6)], ON_RESUME] = 5
    """Episodes that each evaluator runs with the last policy, at the end of a run with
    a limit. 2018: no such key. Acts in: acting/evaluator.py."""
    initial_dataset: DatasetName | None = None
    """Minari dataset whose steps are the first frames of the run and of its replay
    buffer. null: the replay buffer begins empty. 2018: no such key. Acts in:
    storage/datasets.py."""
    keep_all_replay_buffers: Annotated[bool, ON_RESUME] = False
    """Copies the replay buffer to each numbered checkpoint. 2018: not in its
    config/core. Acts in: valuerl_learner.py."""
    tensorboard: Annotated[bool, ON_RESUME] = True
    """Writes event files for TensorBoard. 2018: no such key. Acts in:
    loggers/tensorboard.py."""
    loggers: Annotated[
        list[LoggerConfig],
        ON_RESUME,
        Allowed('a list of {"entry_point": "wandb", "kwargs": {...}}'),
    ] = []
    """Loggers that get what the csv files get, in a process of their own. 2018: no such
    key. Acts in: loggers/process.py."""

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
        if self.replay_capacity > MOST_ROWS:
            raise broken_rule(
                ("policy_config.replay_size", *self._keys_of_the_capacity()),
                f"needs a replay buffer of {self.replay_capacity:,} rows, with "
                "frames_before_learning and 2 * epoch_every_n * frames_per_update of "
                f"the learners; at most {MOST_ROWS:,} can be had",
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

    def _keys_of_the_capacity(self) -> Iterator[str]:
        for section, _ in self._learners():
            yield f"{section}.replay_size"
            yield f"{section}.frames_before_learning"
            yield f"{section}.epoch_every_n"
            yield f"{section}.frames_per_update"

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
        ensembles, "single-net" of STEVE without any, "H=5" for a horizon other than
        3, "unpaced" where a learner keeps no pace, as in the speedruns.
        """
        expansion = self.policy_config.value_expansion
        name, ensembles = "DDPG", False
        if expansion:
            name, ensembles = expansion.title, expansion.entry.ensembles
        if expansion and expansion.tdk_trick:
            name += "-TDk"
        if self.has_ensembles != ensembles:
            name = f"{'ensemble' if self.has_ensembles else 'single-net'} {name}"
        if expansion and expansion.rollout_len != PAPER_HORIZON:
            name += f" H={expansion.rollout_len}"
        return name if self.is_paced else f"{name} unpaced"

    def with_weighting(self, description: Mapping[str, Any] | None) -> Self:
        """The configuration where the weighting's module is not imported.

        Args:
            description: as of `ValueExpansion`, from a process that has imported it.
        """
        expansion = self.policy_config.value_expansion
        if description is None or expansion is None:
            return self
        told = expansion.model_copy()
        told._told = Weighting(
            expansion.choice[0],
            "",
            title=re.sub("[{}]", r"\g<0>\g<0>", str(description.get("title"))),
            adaptive=bool(description.get("adaptive")),
            ensembles=bool(description.get("ensembles")),
        )
        policy = self.policy_config.model_copy(update={"value_expansion": told})
        return self.model_copy(update={"policy_config": policy})

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
    def has_ensembles(self) -> bool:
        """Whether anything that the targets come from is an ensemble."""
        sizes = [self.policy_config.bayesian]
        model = self.world_model_config
        if self.policy_config.value_expansion and model and model.bayesian:
            sizes += [model.bayesian.transition, model.bayesian.reward]
        return any(size is not None and size.ensemble_size > 1 for size in sizes)

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
    def sources_of_nondeterminism(self) -> list[str]:
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
