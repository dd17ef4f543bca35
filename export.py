"""A trained policy for other programs: python export.py CONFIG CHECKPOINT --out DIR

Writes the policy with what leads from its output to an action of the environment,

    action = clip(offset + scale * tanh pi(s), low, high)

as `policy.npz`, plain arrays for NumPy, and as `saved_model`, a TensorFlow SavedModel.
Both answer as our greedy policy does, to float32 rounding, and need no module of ours.
`--minari DATASET` writes the replay buffer as a dataset of episodes instead.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # Ctrl-C ends the imports without a stack trace
    signal.signal(signal.SIGINT, signal.SIG_DFL)

try:
    import steve  # noqa: F401
except ModuleNotFoundError:
    sys.exit("export.py: the package steve is not installed; run: pip install -e .")

import numpy as np

from steve import envwrap
from steve.analysis.datasets import write_minari
from steve.analysis.loaded import named_checkpoint
from steve.analysis.trained import (
    as_published,
    differing_keys,
    load_state,
    policy_shapes,
)
from steve.command_line import OneLineParser, example, exit_code, prepare_command
from steve.running import devices
from steve.settings.extensions import import_modules
from steve.settings.schema import Config
from steve.storage import checkpoint
from steve.storage.checkpoint import Checkpoint
from steve.util import UserError, appearing, environment, importing_tensorflow

NUMPY_NAME = "policy.npz"
TENSORFLOW_NAME = "saved_model"


def parse_arguments(
    arguments: Sequence[str] | None, program: str = "export.py"
) -> argparse.Namespace:
    parser = OneLineParser(
        prog=program,
        description="Writes a trained policy as NumPy arrays and as a TensorFlow "
        "SavedModel, for programs that have no module of this one.",
        epilog=f"example: {example(program, 'export.py')} config/quickstart.json "
        "output/InvertedPendulum-v5/quickstart/checkpoints --out output/policy",
    )
    parser.add_argument(
        "config",
        metavar="CONFIG.json",
        help="experiment file; or an experiment's folder, without a CHECKPOINT",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        type=Path,
        help="a policy's or value learner's checkpoint, or an experiment's folder of "
        "checkpoints, whose newest is taken",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="a folder that is not there yet",
    )
    what.add_argument(
        "--minari",
        metavar="DATASET",
        help="instead, write the replay buffer as a Minari dataset of this name, such "
        "as hopper/steve-v0",
    )
    parser.add_settings()
    return parser.parse_args(arguments)


def exported_arrays(config: Config, path: Path, policy: Checkpoint) -> dict:
    """All that is needed to act; makes the environment once, for its action box.

    Args:
        config: the run's.
        path: the checkpoint's, for messages.
        policy: tensors "policy/w0" [O, .], "policy/b0" [.], ...

    Returns:
        "layers", their number; "w0", "b0", ... float32; "offset", "scale", "low" and
        "high" [A], in the box's type; "environment", "updates" and "frames".

    Raises:
        UserError: the environment cannot be had, or the policy is not for it.
    """
    env = envwrap.make_env(config.env)
    box = env.get_wrapper_attr("box")
    sizes = envwrap.sizes_of(env)
    envwrap.close_env(env)
    checkpoint.check_tensors(path, policy, policy_shapes(config.policy_config, sizes))
    nets = {name.removeprefix("policy/"): t for name, t in policy.tensors.items()}
    low, high = (bound.reshape(-1) for bound in (box.low, box.high))
    offset, scale = np.zeros_like(low), np.ones_like(low)
    if config.env.rescale_actions:  # -1 is low, 1 is high
        offset, scale = low / 2 + high / 2, high / 2 - low / 2
    known = {key: policy.metadata.get(key, -1) for key in ("updates", "frames")}
    return {
        "layers": config.policy_config.layers,
        **nets,
        **{"offset": offset, "scale": scale, "low": low, "high": high},
        **{"environment": config.env.name, **known},
    }


def write_saved_model(arrays: dict, folder: Path) -> None:
    """Writes the policy as a SavedModel: `act`, also its default signature.

    It takes "obs" [B, O] float32 and returns {"action": [B, A]}.
    """
    with importing_tensorflow():
        import tensorflow as tf

        tf.config.list_physical_devices()

    layers = [(arrays[f"w{i}"], arrays[f"b{i}"]) for i in range(arrays["layers"])]
    spec = tf.TensorSpec([None, layers[0][0].shape[0]], tf.float32, "obs")

    def act(obs: tf.Tensor) -> dict[str, tf.Tensor]:
        x = obs  # [B, O]
        for w, b in layers[:-1]:
            x = tf.nn.relu(x @ w + b)
        w, b = layers[-1]
        squashed = tf.cast(tf.tanh(x @ w + b), arrays["low"].dtype)  # [B, A]
        action = arrays["offset"] + arrays["scale"] * squashed
        return {"action": tf.clip_by_value(action, arrays["low"], arrays["high"])}

    module = tf.Module()
    module.act = tf.function(act, input_signature=[spec])
    tf.get_logger().setLevel("ERROR")  # else it says where it wrote assets
    tf.saved_model.save(module, str(folder), {"serving_default": module.act})


def run(arguments: argparse.Namespace) -> None:
    """Checks everything, then writes both files.

    Raises:
        UserError: a mistake.
    """
    if os.path.lexists(arguments.out):
        raise UserError(f"{arguments.out} is there already: pass another --out")
    loaded, asked = named_checkpoint(
        arguments.config, arguments.checkpoint, arguments.set
    )
    import_modules(loaded.config.module)
    path, state, warning = load_state(asked, loaded.config)
    difference = differing_keys(Path(os.path.abspath(path)).parent, loaded)
    for note in (*loaded.notes, warning, difference):
        if note:
            print(f"note: {note}", flush=True)
    arrays = exported_arrays(loaded.config, path, as_published(state))
    on_cpu = {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        **os.environ,
        devices.VARIABLE: devices.NO_GPU,
    }
    out = Path(os.path.abspath(arguments.out))
    with appearing(out) as unfinished, environment(on_cpu):
        np.savez(unfinished / NUMPY_NAME, **arrays)
        write_saved_model(arrays, unfinished / TENSORFLOW_NAME)
    counters = ", ".join(f"{arrays[key]:,} {key}" for key in ("updates", "frames"))
    print(f"{path} ({counters}): written to {arguments.out}/")
    print(f"  {NUMPY_NAME}   NumPy arrays, for numpy.load")
    print(f"  {TENSORFLOW_NAME}  for tf.saved_model.load or a TensorFlow server")


def run_minari(arguments: argparse.Namespace) -> None:
    """Writes the replay buffer as a dataset.

    Raises:
        UserError: a mistake.
    """
    loaded, asked = named_checkpoint(
        arguments.config, arguments.checkpoint, arguments.set
    )
    config = loaded.config
    import_modules(config.module)
    folders = (asked, asked / config.save_model_path, asked.parent)
    found = [each / "replay" for each in folders if (each / "replay").is_dir()]
    if not found:
        raise UserError(f"{asked} has no replay buffer; give an experiment's folder")
    for note in (*loaded.notes, differing_keys(found[0].parent.absolute(), loaded)):
        if note:
            print(f"note: {note}", flush=True)
    interface = envwrap.measure(config.env).interface
    assert interface is not None  # the environment was asked
    about = {
        "algorithm_name": config.algorithm,
        "author": "unknown",
        "author_email": "unknown",
        "code_permalink": "unknown",
        "description": f"replay buffer of {config.algorithm} on {config.env.name}",
    }
    episodes, steps = write_minari(found[0], interface, arguments.minari, about)
    print(f"{found[0]}: {episodes:,} episodes of {steps:,} steps written")
    print(f"  minari.load_dataset({arguments.minari!r}) reads them")


def main(arguments: Sequence[str] | None = None, program: str = "export.py") -> int:
    """The command; returns the exit code (SPEC section 12)."""
    parsed = parse_arguments(arguments, program)
    command = run if parsed.minari is None else run_minari
    return exit_code(program, lambda: command(parsed))


if __name__ == "__main__":
    prepare_command()
    sys.exit(main())
