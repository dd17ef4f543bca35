"""The files under config/: the paper's experiments, and those of other sizes."""

import dataclasses
import itertools
import json

import pytest
from support import PROJECT
from support_settings import minimal

from steve.settings.loading import changed_keys, load
from steve.settings.schema import Config

EXPERIMENTS = PROJECT / "config" / "experiments"
CPU = PROJECT / "config" / "cpu"
CPU_EXPERIMENTS = sorted(CPU.glob("*/*.json"))
FULLSIZE = PROJECT / "config" / "fullsize"
FULLSIZE_EXPERIMENTS = sorted(FULLSIZE.glob("*/*.json"))
# folder: (env.name, obs_dims, action_dim), as in the paper's table of environments.
ENVIRONMENTS = {
    "humanoid": ("Humanoid-v1", [376], 17),
    "halfcheetah": ("HalfCheetah-v1", [17], 6),
    "hopper": ("Hopper-v1", [11], 3),
    "walker2d": ("Walker2d-v1", [17], 6),
    "swimmer": ("Swimmer-v1", [8], 2),
    "rshum": ("RoboschoolHumanoid-v1", [44], 17),
    "flagrun": ("RoboschoolHumanoidFlagrun-v1", [44], 17),
    "hardcore": ("BipedalWalkerHardcore-v2", [24], 4),
}


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """What sets one experiment's algorithm apart from the others'."""

    horizon: int | None = 3  # None: no value expansion and no world model
    switches: frozenset[str] = frozenset()
    lambda_return: float | bool = False
    ensemble: bool = False


def algorithm(*switches: str, **rest: object) -> Algorithm:
    return Algorithm(switches=frozenset(switches), **rest)


DDPG = Algorithm(horizon=None)
MVE_TDK = algorithm("tdk_trick")
STEVE = algorithm("steve_reweight", ensemble=True)
COV_STEVE = algorithm("steve_reweight", "covariances", ensemble=True)
# (group, folders, {name: algorithm}, repeats)
TABLE = [
    (
        "goodruns",
        list(ENVIRONMENTS),
        {"ddpg": DDPG, "mve_tdk": MVE_TDK, "steve": STEVE},
        4,
    ),
    (
        "ablations",
        ["horizons"],
        {
            f"steve_{h}h": algorithm("steve_reweight", ensemble=True, horizon=h)
            for h in (1, 2, 5)
        },
        3,
    ),
    (
        "ablations",
        ["baselines"],
        {
            "ensemble_mve_tdk": algorithm("tdk_trick", ensemble=True),
            "mve_25tdlambda": algorithm(lambda_return=0.25),
            "mve_75tdlambda": algorithm(lambda_return=0.75),
            "mve_meank": algorithm("mean_k_return"),
            "steve_cov": COV_STEVE,
        },
        3,
    ),
    (
        "speedruns",
        ["humanoid", "flagrun"],
        {"speedy_ddpg": DDPG, "speedy_mve_tdk": MVE_TDK, "speedy_steve": STEVE},
        2,
    ),
]
EXPECTED = {
    f"{group}/{folder}/{name}{repeat}.json": (folder, kind, repeat)
    for group, folders, names, repeats in TABLE
    for folder in folders
    for name, kind in names.items()
    for repeat in range(repeats)
}


# The paper's experiments


def test_there_are_132_experiments():
    found = {
        str(p.relative_to(EXPERIMENTS)) for p in EXPERIMENTS.rglob("*") if p.suffix
    }
    assert found == set(EXPECTED)
    assert len(found) == 132


@pytest.mark.parametrize("name", EXPECTED)
def test_experiment_is_what_the_table_of_the_paper_says(name):
    folder, kind, repeat = EXPECTED[name]
    loaded = load(EXPERIMENTS / name)
    config = loaded.config
    environment = ENVIRONMENTS.get(folder, ENVIRONMENTS["humanoid"])

    assert loaded.notes == []
    assert config.seed == repeat
    env = config.env
    assert (env.name, env.obs_dims, env.action_dim) == environment
    assert (env.reward_scale, env.discount, env.max_frames) == (1.0, 0.99, 1000)
    assert found_algorithm(config) == kind
    nobody_waits = name.startswith("speedruns/")
    pace, pretraining = (False, False) if nobody_waits else (0.25, 10_000)
    # By their text, as Python holds False == 0.
    assert repr(config.policy_config.frames_per_update) == repr(pace)
    if config.has_model:
        model = config.world_model_config
        assert repr(model.frames_per_update) == repr(pace)
        assert repr(model.pretrain_n) == repr(pretraining)


def found_algorithm(config: Config) -> Algorithm:
    ensembles = [config.policy_config.bayesian]
    expansion, model = config.policy_config.value_expansion, config.world_model_config
    assert (expansion is None) == (model is None)
    if expansion is None:
        assert ensembles == [None]
        return Algorithm(horizon=None)
    inner = model.bayesian
    ensembles += [inner.transition, inner.reward] if inner else [None, None]
    sizes = {e and tuple(e.model_dump().values()) for e in ensembles}
    assert sizes in ({None}, {(4, 4, 4)})
    flags = ("tdk_trick", "mean_k_return", "steve_reweight", "covariances")
    return algorithm(
        *(flag for flag in flags if getattr(expansion, flag)),
        horizon=expansion.rollout_len,
        lambda_return=expansion.lambda_return,
        ensemble=sizes == {(4, 4, 4)},
    )


def test_experiment_files_hold_only_what_is_their_own():
    for path in EXPERIMENTS.rglob("*.json"):
        content = json.loads(path.read_text())
        assert content["updates"].keys() <= {"seed", "policy_config"}


@pytest.mark.parametrize("path", sorted(PROJECT.glob("config/algos/*.json")))
def test_every_algorithm_runs_on_every_environment(path, tree):
    for env in PROJECT.glob("config/envs/*.json"):
        tree.write(a={"inherits": [str(path.relative_to(PROJECT)), str(env)]})
        assert load(tree.root / "a.json", root=PROJECT).config.env.name


def test_every_remaining_file_under_config_is_part_of_an_experiment():
    inherited = {"config/quickstart.json"}
    for path in (PROJECT / "config").rglob("*.json"):
        inherited.update(json.loads(path.read_text()).get("inherits", []))
    parts = {
        str(path.relative_to(PROJECT))
        for path in (PROJECT / "config").rglob("*.json")
        if EXPERIMENTS not in path.parents
        and path not in (*CPU_EXPERIMENTS, *FULLSIZE_EXPERIMENTS)
    }
    assert parts == inherited


# The experiments of a CPU


@pytest.mark.parametrize("path", CPU_EXPERIMENTS, ids=lambda path: path.stem)
def test_a_cpu_experiment_is_the_papers_with_what_its_size_changes(path, tree):
    """The same algorithm in the same environment, and cpu.json on top."""
    name, seed = path.stem[:-1], int(path.stem[-1])
    content = json.loads(path.read_text())
    if name.endswith("_noexplore"):
        name = name.removesuffix("_noexplore")
        unexplored = {"policy_config": {"explore_chance": 0}, "seed": seed}
        assert content["updates"] == unexplored
    if name.endswith("_fitted"):
        name = name.removesuffix("_fitted")
        fit = content["updates"].pop("model_config")
        paper = load(PROJECT / "config/experiments/goodruns/halfcheetah/mve_tdk0.json")
        assert fit == {key: paper.merged["model_config"][key] for key in fit}
    if name.endswith("_lowrate"):
        name = name.removesuffix("_lowrate")
        policy = content["updates"].pop("policy_config")
        paper = load(PROJECT / f"config/experiments/goodruns/halfcheetah/{name}0.json")
        rate = paper.merged["policy_config"]["learning_rate"]
        assert policy == {"learning_rate": rate}
    kinds = {"mve": algorithm()}  # MVE-TDk without TDk, which the paper does not show
    kinds |= {n: kind for _, _, names, _ in TABLE for n, kind in names.items()}
    loaded = load(path)
    assert loaded.notes == []
    assert loaded.config.seed == seed
    assert found_algorithm(loaded.config) == kinds[name]
    assert content["updates"].keys() <= {"seed", "policy_config"}
    assert content["inherits"][-2:] == [
        f"config/envs/{path.parent.name}.json",
        "config/experimental_setups/cpu.json",
    ]
    inherits = content["inherits"][:-1]
    tree.write(a={"inherits": inherits, "updates": content["updates"]})
    paper = load(tree.root / "a.json", root=PROJECT)
    changed = set(changed_keys(paper.merged, loaded.merged))
    assert changed <= {key for key, _ in departures_of("cpu")}


def departures_of(setup: str) -> list[tuple[str, object]]:
    """The dotted keys and values of a file of config/experimental_setups."""
    path = PROJECT / "config/experimental_setups" / f"{setup}.json"
    updates = json.loads(path.read_text())["updates"]
    departures = []
    for section, value in updates.items():
        if isinstance(value, dict):
            name = section.removeprefix("*")
            departures += [(f"{name}.{key}", inner) for key, inner in value.items()]
        else:
            departures.append((section, value))
    return departures


@pytest.mark.parametrize("folder", [CPU, FULLSIZE], ids=lambda path: path.name)
def test_every_departure_of_a_setup_has_its_reason(folder):
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (folder / "README.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    documented = {key.strip("`"): (value, reason) for key, _, value, reason in rows}
    departures = dict(departures_of(folder.name))
    assert documented.keys() == departures.keys()
    for key, value in departures.items():
        assert documented[key][0].replace(",", "") == json.dumps(value)
        assert documented[key][1]


# The experiments at full size


@pytest.mark.parametrize("path", FULLSIZE_EXPERIMENTS, ids=lambda path: path.stem)
def test_a_fullsize_experiment_learns_as_the_papers_does(path):
    """Nothing but seed and exploration differs where it matters to what is learned."""
    name, seed = path.stem[:-1].removeprefix("full_"), int(path.stem[-1])
    papers = name.removesuffix("_noexplore")
    loaded = load(path)
    paper = load(EXPERIMENTS / "goodruns" / path.parent.name / f"{papers}0.json")
    assert loaded.notes == []
    assert (loaded.config.seed, loaded.config.total_frames) == (seed, 100_000)
    explores = loaded.config.policy_config.explore_chance
    assert explores == (0 if name.endswith("_noexplore") else 0.05)
    learning = ("policy_config", "model_config", "env", "agent_config")
    one, other = (
        {key: merged[key] for key in learning if key in merged}
        for merged in (loaded.merged, paper.merged)
    )
    one["policy_config"] = {**one["policy_config"], "explore_chance": 0.05}
    assert one == other


def test_every_algorithm_has_three_fullsize_seeds_with_and_without_exploration():
    for folder, suffix in itertools.product(
        ("halfcheetah", "hopper"), ("", "_noexplore")
    ):
        for name in ("ddpg", "mve_tdk", "steve"):
            for seed in range(3):
                file = FULLSIZE / folder / f"full_{name}{suffix}{seed}.json"
                assert file in FULLSIZE_EXPERIMENTS


# Other files


def test_core_files_say_what_the_schema_has_as_defaults(tree):
    tree.write(a=minimal(model_config={}))
    inherits = ["config/core/basic.json", "config/core/model.json"]
    tree.write(b={"inherits": inherits, "updates": {"env": {"name": "Hopper-v1"}}})
    from_core = load(tree.root / "b.json", root=PROJECT)
    assert from_core.merged == tree.load().merged


def test_quickstart_is_steve_on_inverted_pendulum_and_ends():
    config = load(PROJECT / "config" / "quickstart.json").config
    assert found_algorithm(config) == STEVE
    assert config.env.name == "InvertedPendulum-v5"
    assert config.env.rescale_actions
    assert config.total_frames
