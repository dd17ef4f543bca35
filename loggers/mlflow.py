"""MLflow: one of its runs for each experiment, resumed with it."""

import time
from collections.abc import Mapping

from . import Experiment

TAG = "steve.id"
PARAMETERS_AT_ONCE = 100  # MLflow takes no more in one call


class MlflowLogger:
    """A logger that writes to MLflow.

    Args:
        experiment: names its run, and gives its id and parameters.
        tracking_uri: of the server or store; None: as MLFLOW_TRACKING_URI says.
        experiment_name: the MLflow experiment of the run.
    """

    def __init__(
        self,
        experiment: Experiment,
        tracking_uri: str | None = None,
        experiment_name: str = "steve",
    ) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        self._client = MlflowClient(tracking_uri=tracking_uri)
        known = self._client.get_experiment_by_name(experiment_name)
        where = (
            self._client.create_experiment(experiment_name)
            if known is None
            else known.experiment_id
        )
        mine = f"tags.`{TAG}` = '{experiment.id}'"
        found = self._client.search_runs([where], filter_string=mine)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        run = self._client.create_run(
            where, tags={TAG: experiment.id}, run_name=experiment.name
        )
        self._id = run.info.run_id
        parameters = [
            Param(key, str(value)) for key, value in experiment.hyperparameters.items()
        ]
        for first in range(0, len(parameters), PARAMETERS_AT_ONCE):
            part = parameters[first : first + PARAMETERS_AT_ONCE]
            self._client.log_batch(self._id, params=part)

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Logs one point, all its metrics in one call."""
        now = int(time.time() * 1000)
        metrics = [
            self._metric(f"{group}/{name}", value, now, step)
            for name, value in values.items()
        ]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        """Ends the run; a resume continues it."""
        self._client.set_terminated(self._id)
