"""Experiments read back from their folders: `steve.load_run`, `steve.load_policy`."""

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..acting.deployed import DeployedPolicy
from ..settings import loading
from ..settings.interface import Interface
from ..settings.loading import LoadedConfig
from ..settings.roles import VALUERL, WORLDMODEL
from ..settings.schema import Config
from ..storage import checkpoint
from ..storage.folders import HYPERPARAMETERS
from ..storage.record import read_json
from ..util import UserError, counted
from .trained import as_published, load_state

if TYPE_CHECKING:
    import pandas as pd

SCORE_COLUMNS = ("hours", "epochs", "frames", "score")


@dataclass(frozen=True)
class LoadedRun:
    """One experiment, finished or not.

    Attributes:
        folder: the experiment's.
        log_folder: where its scores and logs are.
        config: as in hps.json.
    """

    folder: Path
    log_folder: Path
    config: Config

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.folder.resolve().name

    @property
    def finished(self) -> bool:
        """Whether the run ended at its limit.

        Raises:
            UserError: its record is damaged.
        """
        from .records import RECORDS

        for name in RECORDS:
            path = self.log_folder / name
            if path.is_file():
                return bool(read_json(path).get("finished"))
        return False

    @property
    def scores(self) -> "pd.DataFrame":
        """A row for each evaluation episode: hours, epochs, frames, score.

        Raises:
            UserError: there is more than one table of scores, or it cannot be read.
        """
        from .records import SUFFIX

        # A folder that was renamed or put aside has them under the earlier name.
        found = {
            path.name.removesuffix(".gz")
            for path in self.log_folder.glob(f"*{SUFFIX}*")
            if path.name.removesuffix(".gz").endswith(SUFFIX)
        }
        if len(found) > 1:
            raise UserError(
                f"{self.log_folder} holds the scores of more than one run: "
                f"{', '.join(sorted(found))}"
            )
        (name,) = found or {f"{self.name}{SUFFIX}"}
        return self._table(name, SCORE_COLUMNS)

    def log(self, learner: str) -> "pd.DataFrame":
        """The log of a learner, "valuerl" or "worldmodel": a row for each line.

        It is empty where the run has no such learner, or has not got so far.

        Raises:
            UserError: it cannot be read, or no learner has that name.
        """
        if learner not in (VALUERL, WORLDMODEL):
            raise UserError(f"no learner is called {learner}: {VALUERL}, {WORLDMODEL}")
        return self._table(f"{learner}.log", ("hours", "updates", "frames"))

    def _table(self, name: str, required: tuple[str, ...]) -> "pd.DataFrame":
        import pandas as pd

        from .records import read_table

        for path in (self.log_folder / name, self.log_folder / f"{name}.gz"):
            if path.is_file():
                return read_table(path, required)
        return pd.DataFrame(columns=list(required), dtype=float)

    def policy(self) -> DeployedPolicy:
        """The newest policy.

        Raises:
            UserError: there is none.
        """
        return load_policy(self.folder)


def load_run(folder: str | Path) -> LoadedRun:
    """Reads an experiment's folder, or one of results/.

    Raises:
        UserError: it is none.
    """
    from .records import read_config

    folder = Path(folder).absolute()
    for inner in (folder, folder / "log"):
        if (inner / HYPERPARAMETERS).is_file():
            return LoadedRun(folder, inner, read_config(inner / HYPERPARAMETERS))
    others = sorted(folder.glob(f"*/{HYPERPARAMETERS}"))
    for path in others:  # `log_path` has another name
        with contextlib.suppress(UserError):
            config = read_config(path)
            if config.log_path == path.parent.name:
                return LoadedRun(folder, path.parent, config)
    if others:
        raise UserError(
            f"{folder} holds {counted(len(others), 'experiment')}: name one of them, "
            "or use steve.load_runs"
        )
    raise UserError(
        f"{folder} holds no {HYPERPARAMETERS}: give an experiment's folder, such as "
        "output/ENVIRONMENT/EXPERIMENT"
    )


def named_checkpoint(
    config: str, checkpoint: Path | None, overrides: Sequence[str]
) -> tuple[LoadedConfig, Path]:
    """What visualizer.py and export.py are to look at.

    Args:
        config: a configuration file; or, without a checkpoint, an experiment's folder,
            whose hps.json is then the configuration.
        checkpoint: a checkpoint, or a folder of them.
        overrides: as of `--set`.

    Raises:
        UserError: a mistake in the configuration, or no experiment's folder.
    """
    if checkpoint is not None:
        return loading.load(config, overrides=overrides), checkpoint
    folder = Path(config)
    if not folder.is_dir():
        raise UserError(
            f"{config} is no folder: give an experiment's folder, or a configuration "
            "and a checkpoint"
        )
    content = load_run(folder).config.model_dump(mode="json", by_alias=True)
    return loading.load({"updates": content}, overrides=overrides), folder


def load_runs(*folders: str | Path) -> list[LoadedRun]:
    """All experiments in or below the folders, each once, in order of their paths.

    Raises:
        UserError: no such folder, or none in one.
    """
    from .records import find_runs

    found: dict[Path, LoadedRun] = {}
    for record in find_runs(folders, lambda note: warnings.warn(note, stacklevel=3)):
        log_folder = record.path.parent.absolute()
        is_inside = log_folder.name == record.config.log_path
        folder = log_folder.parent if is_inside else log_folder
        found.setdefault(folder, LoadedRun(folder, log_folder, record.config))
    return list(found.values())


def load_policy(path: str | Path) -> DeployedPolicy:
    """A trained policy, from an experiment's folder or from a checkpoint's file.

    It needs neither TensorFlow nor the environment: the value learner publishes what
    lies between the two with the policy. For a policy of version 1.0 the environment
    is made once, as hps.json describes it, unless it needs other code than this
    program's: that is not run.

    Raises:
        UserError: there is no policy, or it cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    config = None
    if path.is_dir():
        run = load_run(path)
        config, path = run.config, _newest(path, run.config)
    file, state, _ = load_state(path, config or Config.model_validate(ANY_ENVIRONMENT))
    interface = _interface(state.metadata.get("interface"))
    if interface is None:
        interface = _published_beside(file) or _of_environment(file, config)
    return DeployedPolicy(file, as_published(state), interface)


# Only for its names of folders.
ANY_ENVIRONMENT: dict[str, Any] = {"env": {"name": "any"}}


def _newest(folder: Path, config: Config) -> Path:
    """The published policy, which evaluators score; else what there is."""
    published = folder / config.save_model_path / "policy.safetensors"
    return published if published.exists() else folder


def _interface(text: object) -> Interface | None:
    if not isinstance(text, str):
        return None
    try:
        return Interface.from_json(text)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError("the policy's interface is damaged") from None


def _published_beside(file: Path) -> Interface | None:
    """That of the policy next to a value learner's state."""
    beside = file.with_name("policy.safetensors")
    if not beside.exists():
        return None
    return _interface(checkpoint.load(beside).metadata.get("interface"))


def _of_environment(file: Path, config: Config | None) -> Interface:
    from .. import envwrap

    if config is None:
        config = load_run(file.absolute().parents[1]).config
    env = config.env
    named = [*config.module, env.module, env.entry_point, *env.wrappers]
    if any(named) or ":" in env.name:
        raise UserError(
            f"{file}: this policy of version 1.0 needs its environment, whose code is "
            "named by the configuration; loading a policy runs no such code. Resume "
            "the run with a larger --frames: its policy then needs no environment"
        )
    chance = config.policy_config.explore_chance
    interface = envwrap.measure(config.env, chance).interface
    assert interface is not None  # `measure` asks the environment
    return interface
