"""The processes of a run: what each one does, and its name."""

from dataclasses import dataclass
from enum import StrEnum

from .schema import Config, LearnerConfig
from .seeds import Stream, seed_of


class Kind(StrEnum):
    """What a process does."""

    LAUNCHER = "launcher"
    VALUERL = "valuerl"
    WORLDMODEL = "worldmodel"
    INTERACTOR = "interactor"
    EVALUATOR = "evaluator"
    LOGGER = "logger"


LAUNCHER, VALUERL, WORLDMODEL = Kind.LAUNCHER, Kind.VALUERL, Kind.WORLDMODEL


@dataclass(frozen=True)
class Role:
    """One process of a run.

    Attributes:
        kind: what it does.
        number: which of its kind; None where there is only one.
    """

    kind: Kind
    number: int | None = None

    @property
    def name(self) -> str:
        """The name on the status board, in messages and in file names."""
        return str(self.kind) if self.number is None else f"{self.kind}{self.number}"

    @property
    def is_learner(self) -> bool:
        return self.kind in (VALUERL, WORLDMODEL)


def learners(config: Config) -> dict[str, LearnerConfig]:
    """The learners of a run and their sections, the value learner first."""
    found: dict[str, LearnerConfig] = {VALUERL: config.policy_config}
    if config.world_model_config is not None:
        found[WORLDMODEL] = config.world_model_config
    return found


def roles(config: Config) -> list[Role]:
    """All processes of a run, the launcher first."""
    interactors = [Role(Kind.INTERACTOR, i) for i in range(config.agent_config.count)]
    evaluators = [Role(Kind.EVALUATOR, i) for i in range(config.evaluator_config.count)]
    alone = [Role(LAUNCHER), *(Role(Kind(name)) for name in learners(config))]
    # Last: a process's number is its seed's.
    others = [Role(Kind.LOGGER)] if config.loggers else []
    return [*alone, *interactors, *evaluators, *others]


def evaluators(config: Config) -> list[str]:
    """The names of a run's evaluators."""
    return [role.name for role in roles(config) if role.kind is Kind.EVALUATOR]


def actors(config: Config) -> list[str]:
    """The names of the processes that step environments."""
    kinds = (Kind.INTERACTOR, Kind.EVALUATOR)
    return [role.name for role in roles(config) if role.kind in kinds]


def process_names(config: Config) -> list[str]:
    """The names of all processes of a run, the launcher's first."""
    return [role.name for role in roles(config)]


def process_seed(config: Config, process: str) -> int:
    """A process's own seed, the same each time that it is started."""
    if process in (VALUERL, WORLDMODEL):
        stream = Stream.VALUERL if process == VALUERL else Stream.WORLDMODEL
        return seed_of(config.seed, stream)
    number = process_names(config).index(process)
    return seed_of(config.seed, Stream.PROCESS, number)
