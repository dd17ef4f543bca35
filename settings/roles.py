"""The processes of a run and their names."""

from .schema import Config, LearnerConfig

LAUNCHER = "launcher"
VALUERL = "valuerl"
WORLDMODEL = "worldmodel"


def learners(config: Config) -> dict[str, LearnerConfig]:
    """The learners of a run and their sections, the value learner first."""
    found: dict[str, LearnerConfig] = {VALUERL: config.policy_config}
    if config.world_model_config is not None:
        found[WORLDMODEL] = config.world_model_config
    return found


def process_names(config: Config) -> list[str]:
    """All rows of a run's board, the launcher's first."""
    interactors = [f"interactor{i}" for i in range(config.agent_config.count)]
    evaluators = [f"evaluator{i}" for i in range(config.evaluator_config.count)]
    return [LAUNCHER, *learners(config), *interactors, *evaluators]
