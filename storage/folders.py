"""Where everything of one experiment lies, and what its processes are given."""

import glob
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..settings.interface import Interface
from ..settings.roles import WORLDMODEL
from ..settings.schema import Config
from ..util import UserError
from .published import Published

HYPERPARAMETERS = "hps.json"  # the complete configuration of an experiment
# What a shell would replace: a home folder, or a variable.
UNKNOWN = re.compile(r"^~[^/]*|\$\w+|\$\{[^}]*\}")
# Folders that main.py put aside or has not finished.
ASIDE = re.compile(r"\..*|.*\.old\d+")


def output_folder(config: Config) -> Path:
    """The folder of all output: absolute, `~` and environment variables replaced.

    Raises:
        UserError: a home folder or a variable is not known.
    """
    root = os.path.expanduser(os.path.expandvars(config.output_root))
    if unknown := UNKNOWN.search(root):
        raise UserError(
            f"output_root: {config.output_root!r}: {unknown[0]} is not known here; "
            "give the whole path (./~ is a folder of that name)"
        )
    return Path(root).absolute()


@dataclass(frozen=True)
class Folders:
    """Where everything of one experiment lies (SPEC section 9)."""

    root: Path
    log: Path
    checkpoints: Path
    experiment: str

    @classmethod
    def of(cls, config: Config, experiment: str) -> "Folders":
        """Those of an experiment of this name and configuration."""
        root = output_folder(config) / config.environment_folder / experiment
        return cls.at(root, config.log_path, config.save_model_path, experiment)

    @classmethod
    def at(
        cls, root: Path, log_path: str, save_model_path: str, experiment: str
    ) -> "Folders":
        """Those of an experiment whose folder is `root`.

        They stay the same where an environment changes the working folder.
        """
        root = root.absolute()
        return cls(root, root / log_path, root / save_model_path, experiment)

    @property
    def hyperparameters(self) -> Path:
        return self.log / HYPERPARAMETERS

    @property
    def run(self) -> Path:
        return self.log / "run.json"

    @property
    def scores(self) -> Path:
        return self.log / f"{self.experiment}.greedy.csv"

    @property
    def scores_there(self) -> Path:
        """`scores`; of a folder that was renamed since, those of its earlier name."""
        path = self.scores
        ending = path.name.removeprefix(self.experiment)
        found = [] if path.exists() else list(self.log.glob(f"*{ending}"))
        return found[0] if len(found) == 1 else path

    @property
    def final_scores(self) -> Path:
        """The scores of the final episodes."""
        return self.log / f"{self.experiment}.final.csv"

    @property
    def board(self) -> Path:
        return self.log / "status.bin"

    @property
    def policy(self) -> Path:
        """The policy that interactors and evaluators use."""
        return self.checkpoints / "policy.safetensors"

    @property
    def policies(self) -> Published:
        """The policies by their number of updates."""
        return Published(self.checkpoints / "published", "policy")

    @property
    def models(self) -> Published:
        """The world models by their number of updates."""
        return Published(self.checkpoints / "published", WORLDMODEL)

    @property
    def digests(self) -> Path:
        return self.log / "digests.csv"

    @property
    def replay(self) -> Path:
        return self.checkpoints / "replay"

    def learner_log(self, learner: str) -> Path:
        return self.log / f"{learner}.log"

    @property
    def loggers(self) -> Path:
        """How far the loggers are that the configuration names."""
        return self.log / "loggers.json"

    def process_output(self, process: str) -> Path:
        """What a child process prints; its traceback, if it fails."""
        return self.log / "processes" / f"{process}.txt"

    def state(self, learner: str) -> Path:
        """A learner's newest state."""
        return self.checkpoints / f"{learner}.safetensors"

    def numbered_state(self, learner: str, updates: int) -> Path:
        return self.checkpoints / f"{learner}-{updates}.safetensors"

    def numbered_replay(self, updates: int) -> Path:
        return self.checkpoints / f"replay-{updates}"

    def lock(self, kind: str) -> Path:
        """Beside the folder, so that it stays in place when the folder is moved."""
        return self.root.with_name(f".{self.experiment}.{kind}.lock")


def asides(root: Path) -> list[Path]:
    """The folders that were put aside for an experiment's."""
    name = re.compile(rf"{re.escape(root.name)}\.old\d+")
    found = root.parent.glob(f"{glob.escape(root.name)}.old*")
    return [path for path in found if name.fullmatch(path.name) and path.is_dir()]


def hide_events(folder: Path) -> None:
    """Renames event files in and below a folder, so that TensorBoard passes them over.

    They are for viewing only: one that cannot be renamed stays as it is.
    """
    for path in [*folder.rglob("*tfevents*")]:  # not behind links: others' files
        with suppress(OSError):
            path.rename(path.with_name(path.name.replace("tfevents", "aside")))


@dataclass(frozen=True)
class Run:
    """What every process of a run is given.

    Attributes:
        config: the checked configuration.
        folders: where everything lies.
        obs_dim: O, as measured on the environment.
        action_dim: A.
        launch: 0 for the first start, then one more for each resume.
        cpu_learners: whether the learners compute on the CPU.
        gpus: what selects each learner's GPU in CUDA_VISIBLE_DEVICES, by its name.
        interface: between the environment and the nets; published with the policy.
        env_modules: what interactors and evaluators import first: the configuration's
            `module`, or nothing where that would only load TensorFlow.
    """

    config: Config
    folders: Folders
    obs_dim: int
    action_dim: int
    launch: int
    cpu_learners: bool
    gpus: Mapping[str, str] = field(default_factory=dict)
    interface: Interface | None = None
    env_modules: tuple[str, ...] = ()
