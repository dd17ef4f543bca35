"""Shows what was learned: python visualizer.py CONFIG.json GPU_ID CHECKPOINT

An experiment's folder alone will also do, with or without a GPU_ID behind it.

Runs greedy episodes with a trained policy, prints length and score of each, and writes
a table and a video of them. With Q-functions it compares the value estimate with what
was then earned; with a world model it also shows the weights w_0 .. w_H that STEVE
gives along the episodes, and how the model's error grows with the rollout (SPEC
section 11).

Nothing but the environment's resets is random: targets and predictions use
all members of the ensembles.

Dimension letters: T visited transitions, H horizon (H + 1 weights), K steps of the
model's rollout, B rollouts, M transition models, N reward models, L Q-functions,
O observation, A action.
"""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if __name__ == "__main__":  # Ctrl-C ends the imports without a stack trace
    signal.signal(signal.SIGINT, signal.SIG_DFL)

try:
    import steve
except ModuleNotFoundError:
    sys.exit("visualizer.py: the package steve is not installed; run: pip install -e .")

import numpy as np

from steve.analysis.drawing import KINDS, csv_bytes, origin, rendered, significant
from steve.analysis.episodes import Episode, EpisodeRunner
from steve.analysis.inspection import (
    LONGEST_ROLLOUT,
    EpisodeValues,
    discounted_returns,
    episode_values,
    model_error,
    predict,
    weight_histogram,
)
from steve.analysis.loaded import named_checkpoint
from steve.analysis.policy_figures import (
    ending,
    episode_csv,
    episode_figure,
    episodes_csv,
    model_error_columns,
    model_error_figure,
    model_error_table,
    summary,
    weights_csv,
    weights_figure,
    weights_table,
)
from steve.analysis.trained import (
    LoadedCheckpoint,
    Nets,
    build_nets,
    differing_keys,
    load_checkpoint,
    policy_shapes,
)
from steve.analysis.video import EpisodeError, Video
from steve.command_line import (
    OneLineParser,
    example,
    exit_code,
    prepare_command,
    whole_number,
)
from steve.running import devices
from steve.settings.extensions import import_modules
from steve.settings.loading import check_registered
from steve.settings.schema import Config
from steve.storage import checkpoint
from steve.util import (
    UserError,
    appearing,
    environment,
    importing_tensorflow,
    is_installed,
    named,
    stop_as_by_ctrl_c,
    unused,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from steve.envwrap import EnvSizes
    from steve.worldmodel import WorldModelProtocol

OUTPUT_NAME = "visualizer"
OUTPUT_ELSEWHERE = Path("visualizer-output")


def parse_arguments(
    arguments: Sequence[str] | None, program: str = "visualizer.py"
) -> argparse.Namespace:
    parser = OneLineParser(
        prog=program,
        description="Runs a trained policy; writes a video, tables and pictures.",
        epilog=f"example: {example(program, 'visualizer.py')} "
        "config/quickstart.json cpu output/InvertedPendulum-v5/quickstart/checkpoints",
    )
    option = parser.add_argument
    option(
        "config",
        metavar="CONFIG.json",
        help="experiment file; or an experiment's folder, without a CHECKPOINT",
    )
    option(
        "gpu_id",
        metavar="GPU_ID",
        nargs="?",
        default="cpu",
        help='GPU that computes, from 0, or "cpu", the default',
    )
    option(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        type=Path,
        help="a policy's or value learner's checkpoint, or an experiment's folder of "
        "checkpoints, whose newest is taken",
    )
    option(
        "--episodes",
        type=whole_number(1, 10**4),
        default=5,
        metavar="N",
        help="how many are run (%(default)s)",
    )
    option(
        "--out",
        type=Path,
        metavar="DIR",
        help="a folder that is not there yet; by default "
        f'"{OUTPUT_NAME}" in the experiment\'s folder, with a number if that is taken',
    )
    option(
        "--video",
        choices=("mp4", "gif", "none"),
        default="mp4",
        help="what it is written as (%(default)s)",
    )
    option(
        "--seed",
        type=whole_number(0, 2**63),
        default=0,
        metavar="S",
        help="of the environment's resets",
    )
    parser.add_settings()
    return parser.parse_args(arguments)


class Shown(NamedTuple):
    """What comes out in addition to the episodes.

    Attributes:
        name: of the table and the figure.
        table: csv.
        figure: of the same numbers.
        lines: to print.
    """

    name: str
    table: bytes
    figure: "Figure"
    lines: list[str]


def show_episode(config: Config, episode: Episode, judged: EpisodeValues) -> Shown:
    """The strip chart of an episode."""
    settings = (config.env.discount, config.env.reward_scale)
    returns = discounted_returns(episode.reward, *settings)
    with_value = discounted_returns(episode.reward, *settings, judged.final_value)
    title = (
        f"{config.env.name}, episode 1: {episode.length} steps, {ending(episode)}, "
        f"score {significant(episode.score)}"
    )
    figure = episode_figure(judged, returns, with_value, title, config.env.reward_scale)
    table = episode_csv(episode, judged, returns, with_value)
    return Shown("episode", table, figure, [])


def show_weights(weights: np.ndarray, weighting: str) -> Shown:
    """Histogram of the weights, as table and picture."""
    histogram = weight_histogram(weights)
    lines = [
        f"\n{weighting}'s weights along the episodes (model usage "
        f"{1 - histogram.mean[0]:.3f}):",
        weights_table(histogram),
    ]
    if histogram.left_out:
        lines.append(
            f"left out: {histogram.left_out} transitions whose imagined values are not "
            "finite"
        )
    figure = weights_figure(histogram, weighting)
    return Shown("weights", weights_csv(histogram), figure, lines)


def show_model(
    config: Config, world_model: "WorldModelProtocol", episodes: Sequence[Episode]
) -> Shown:
    """The model's error against the horizon."""
    expansion = config.policy_config.value_expansion
    horizon = expansion.rollout_len if expansion else None
    errors = model_error(
        lambda obs, actions: predict(world_model, obs, actions),
        episodes,
        max(LONGEST_ROLLOUT, horizon or 0),
    )
    lines = [
        "\nThe model's error along real actions (root mean square), and its ensemble's "
        "spread\n(standard deviation); in the environment's units, of a termination's "
        "probability:",
        model_error_table(errors),
    ]
    table = csv_bytes(*model_error_columns(errors))
    return Shown("model_error", table, model_error_figure(errors, horizon), lines)


def analyse(config: Config, nets: Nets, episodes: Sequence[Episode]) -> list[Shown]:
    """All that the nets show of the episodes."""
    shown = []
    if nets.valuerl:
        judged = [episode_values(nets.valuerl, episode) for episode in episodes]
        shown.append(show_episode(config, episodes[0], judged[0]))
        if nets.world_model:
            weights = np.concatenate([each.weights for each in judged])
            shown.append(show_weights(weights, nets.weighting))
    if nets.world_model:
        shown.append(show_model(config, nets.world_model, episodes))
    return shown


def choose_folder(
    asked: Path | None, trained: LoadedCheckpoint, config: Config
) -> Path:
    """Where the results go; nothing that is there is ever replaced.

    Raises:
        UserError: the folder that was asked for is there.
    """
    if asked is not None:
        if os.path.lexists(asked):
            raise UserError(f"{asked} is there already: pass another --out")
        return Path(os.path.abspath(asked))
    experiment = trained.folder.parent
    is_experiment = (experiment / config.log_path).is_dir()
    first = experiment / OUTPUT_NAME if is_experiment else OUTPUT_ELSEWHERE
    return unused(first)


def gpu_variables(gpu_id: str) -> dict[str, str]:
    """What makes the GPU of that number the only visible one to TensorFlow.

    Raises:
        UserError: no such GPU.
    """
    assignment = devices.assigned(gpu_id, False, os.environ)
    return {
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        **os.environ,
        devices.VARIABLE: assignment.valuerl,
    }


def load_nets(
    gpu_id: str, config: Config, sizes: "EnvSizes", trained: LoadedCheckpoint
) -> Nets:
    """The nets that there are checkpoints of; TensorFlow only where there is one."""
    expected = policy_shapes(config.policy_config, sizes)
    checkpoint.check_tensors(trained.path, trained.policy, expected)
    if not (trained.critic or trained.model):
        return Nets(None, None, "STEVE", [])
    with importing_tensorflow(gpu_id == "cpu"):
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
    if gpu_id != "cpu" and not gpus:
        raise UserError(
            "TensorFlow does not see the GPU; install the gpu extra (pip install "
            "'steve-rl[gpu]') or use cpu"
        )
    return build_nets(config, sizes, trained)


def run(arguments: argparse.Namespace) -> None:
    """Checks everything, runs the episodes, writes and prints what they show.

    Raises:
        UserError: a mistake.
        EpisodeError: the environment failed.
    """
    loaded, path = named_checkpoint(
        arguments.config, arguments.checkpoint, arguments.set
    )
    config = loaded.config
    import_modules(config.module)
    check_registered(config)
    variables = gpu_variables(arguments.gpu_id)
    if arguments.video != "none" and not is_installed("moviepy"):
        raise UserError("videos need moviepy: pip install moviepy, or --video none")
    trained = load_checkpoint(path, config)
    folder = choose_folder(arguments.out, trained, config)
    difference = differing_keys(trained.folder, loaded)
    for note in [*loaded.notes, *trained.notes, *([difference] if difference else [])]:
        print(f"note: {note}", flush=True)

    with appearing(folder) as unfinished, environment(variables):
        video = None
        if arguments.video != "none":
            path = unfinished / f"episodes.{arguments.video}"
            video = Video(path, arguments.episodes)
        with EpisodeRunner(config, video) as runner:
            nets = load_nets(arguments.gpu_id, config, runner.sizes, trained)
            for note in nets.notes:
                print(f"note: {note}", flush=True)
            print(_described(trained), flush=True)
            sequence = np.random.SeedSequence(arguments.seed)
            seeds = [int(s >> 1) for s in sequence.generate_state(arguments.episodes)]
            episodes = []
            for episode in runner.run(trained.policy, seeds):
                episodes.append(episode)
                print(
                    f"episode {len(episodes)}: {episode.length} steps, "
                    f"{ending(episode)}, score {significant(episode.score)}",
                    flush=True,
                )
        print(summary(episodes), flush=True)
        about = origin(
            command_of(arguments, trained.path),
            steve.__version__,
        )
        _write(unfinished / "episodes.csv", episodes_csv(episodes))
        for shown in analyse(config, nets, episodes):
            _write(unfinished / f"{shown.name}.csv", shown.table)
            for kind in KINDS:
                content = rendered(shown.figure, kind, about)
                _write(unfinished / f"{shown.name}.{kind}", content)
            for line in shown.lines:
                print(line, flush=True)
    print(f"\n{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def _write(path: Path, content: bytes) -> None:
    with named(path):
        path.write_bytes(content)


def command_of(arguments: argparse.Namespace, path: Path) -> str:
    """The command that makes these figures again, of the checkpoint at `path`."""
    words = ["visualizer.py", arguments.config, arguments.gpu_id]
    if arguments.checkpoint is not None:  # else the config is the experiment's folder
        words.append(str(path))
    words += ["--episodes", str(arguments.episodes), "--seed", str(arguments.seed)]
    return shlex.join(words + (["--set", *arguments.set] if arguments.set else []))


def _described(trained: LoadedCheckpoint) -> str:
    """Which checkpoint it is."""
    known = trained.policy.metadata
    counters = [
        f"{known[key]:,} {key}" for key in ("updates", "frames") if key in known
    ]
    return f"{trained.path}" + (f": {', '.join(counters)}" if counters else "")


def main(arguments: Sequence[str] | None = None, program: str = "visualizer.py") -> int:
    """The command; returns the exit code (SPEC section 12)."""
    parsed = parse_arguments(arguments, program)
    try:
        with stop_as_by_ctrl_c():
            return exit_code(program, lambda: run(parsed))
    except EpisodeError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    prepare_command()
    sys.exit(main())
