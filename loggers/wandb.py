"""Weights & Biases: one of its runs for each experiment, resumed with it."""

from collections.abc import Mapping
from typing import Any

from . import Experiment


class WandbLogger:
    """A logger that writes to Weights & Biases.

    Args:
        experiment: names its run, and gives its id and configuration.
        kwargs: of `wandb.init`, such as project and mode.
    """

    def __init__(self, experiment: Experiment, **kwargs: Any) -> None:
        import wandb

        given = {
            "project": "steve",
            "id": experiment.id,
            "name": experiment.name,
            "resume": "allow",
            "reinit": "create_new",  # where there are several, each has its own run
            "dir": str(experiment.folder),
            "config": dict(experiment.hyperparameters),
        }
        self._run = wandb.init(**given | kwargs)
        self._groups: set[str] = set()

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Logs one point; each group has a step of its own as its axis."""
        axis = f"{group}/step"
        if group not in self._groups:
            self._groups.add(group)
            self._run.define_metric(axis)
            self._run.define_metric(f"{group}/*", step_metric=axis)
        named = {f"{group}/{name}": value for name, value in values.items()}
        self._run.log({axis: step, **named})

    def close(self) -> None:
        """Finishes the run; a resume continues it."""
        self._run.finish()
