"""Experiments' files as main.py leaves them, with made-up numbers in them."""

import gzip
import json
import zlib
from pathlib import Path

import numpy as np

from steve.settings.schema import Config

SCORES = ("hours", "epochs", "frames", "score")
ENSEMBLE = {"ensemble_size": 4, "train_sample_count": 4, "eval_sample_count": 4}
ENSEMBLES = {
    "policy_config": {"bayesian": ENSEMBLE},
    "model_config": {"bayesian": {"transition": ENSEMBLE, "reward": ENSEMBLE}},
}


def settings(*, ensembles: bool = False, model: bool = True, **expansion) -> dict:
    """A configuration; `expansion` are the keys of value_expansion, at H = 3."""
    content = {"env": {"name": "Chain-v0"}, "policy_config": {}}
    if model:
        content["policy_config"]["value_expansion"] = {"rollout_len": 3, **expansion}
        content["model_config"] = {}
    for section, ensemble in ENSEMBLES.items() if ensembles else ():
        if section in content:
            content[section] |= ensemble
    return content


DDPG = settings(model=False)
MVE_TDK = settings(tdk_trick=True)
STEVE = settings(ensembles=True, steve_reweight=True)


def write_csv(path: Path, columns, rows) -> None:
    lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_experiment(
    folder: Path,
    scores,
    content: dict = DDPG,
    *,
    seed: int = 0,
    environment: str = "Chain-v0",
    suffix: str = "",
    **logs: tuple,
) -> Path:
    """One experiment with everything in its folder, as `results/` has it.

    Args:
        scores: rows of SCORES.
        suffix: "" or ".gz", of csv and logs.
        logs: by learner, columns and rows.

    Returns:
        The csv.
    """
    folder.mkdir(parents=True)
    full = content | {"seed": seed, "env": content["env"] | {"name": environment}}
    merged = Config.model_validate(full).model_dump(mode="json", by_alias=True)
    (folder / "hps.json").write_text(json.dumps(merged))
    path = folder / f"{folder.name}.greedy.csv{suffix}"
    write_csv(path, SCORES, scores)
    for learner, (columns, rows) in logs.items():
        write_csv(folder / f"{learner}.log{suffix}", columns, rows)
    return path


def write_noisy(
    folder: Path,
    content: dict,
    *,
    seed: int,
    environment: str,
    best: float = 5000.0,
    half: float = 40_000.0,
    frames: int = 100_000,
    **options,
) -> Path:
    """An experiment of realistic shape: a sigmoid with seed, policy and episode noise.

    Args:
        best: the score at the end, about.
        half: frames after which half of it is reached.
    """
    rng = np.random.default_rng(
        [zlib.crc32(f"{environment} {folder.name}".encode()), seed]
    )
    published = np.arange(10_000, frames + 1, 125)
    own_best = best * rng.normal(1.0, 0.12)
    own_half = half * rng.normal(1.0, 0.15)
    drift = np.zeros(len(published))
    for i in range(1, len(drift)):
        drift[i] = 0.97 * drift[i - 1] + rng.normal(0.0, 0.02)
    level = own_best * (1 / (1 + np.exp(-(published - own_half) / 9000)) + drift)
    pace = rng.normal(1.0, 0.1) * (8 if "model_config" in content else 2) / 100_000
    rows = [
        (round((x - 10_000) * pace, 6), i + 1, x, y + rng.normal(0.0, 0.08 * abs(best)))
        for i, (x, y) in enumerate(zip(published, level, strict=True))
        for _ in range(2)
    ]
    lines = np.arange(1, len(published))
    decay = np.exp(-lines / 150) + 0.05

    def log(**columns) -> tuple:
        noise = {k: v * rng.lognormal(0, 0.1, len(lines)) for k, v in columns.items()}
        names = ["hours", "epoch", "updates", "frames", *noise]
        hours = (published[1:] - 10_000) * pace
        values = [hours, lines, lines * 500, published[1:], *noise.values()]
        return names, np.stack(values, 1).tolist()

    usage = np.clip(1 - 0.9 * np.exp(-lines / 300), 0, 0.95)
    logs = {"valuerl": log(q_loss=20 * decay, policy_loss=-lines, model_usage=usage)}
    if "model_config" in content:
        logs["worldmodel"] = log(
            transition_loss=300 * decay,
            termination_loss=0.1 * decay,
            reward_loss=1.0 * decay,
        )
    return write_experiment(
        folder, rows, content, seed=seed, environment=environment, **logs, **options
    )
