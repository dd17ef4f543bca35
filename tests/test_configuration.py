"""The loader, the schema, and every file under config/."""

import dataclasses
import errno
import json
import math
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from steve.settings.loading import changed_keys, experiment_name, load
from steve.settings.schema import Config, all_paths
from steve.util import UserError

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / "config" / "experiments"
CPU = ROOT / "config" / "cpu"
CPU_EXPERIMENTS = sorted(CPU.glob("*/*.json"))

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


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Writes files (JSON values, or text as it is) and loads one of them.

    The loader's root is the temporary folder; a.json is the file that is loaded.
    """

    class Tree:
        root = tmp_path

        def write(self, **files: object) -> None:
            for name, content in files.items():
                if not isinstance(content, str | bytes):
                    content = json.dumps(content)
                if isinstance(content, str):
                    content = content.encode()
                path = tmp_path / f"{name}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

        def load(self, *overrides: str, **options: object):
            return load("a.json", overrides=overrides, root=tmp_path, **options)

        def refusal(self, *overrides: str, **options: object) -> str:
            with pytest.raises(UserError) as caught:
                self.load(*overrides, **options)
            message = str(caught.value)
            assert message.splitlines() == [message]
            return message

    monkeypatch.chdir(tmp_path)
    return Tree()


def updates(*inherits: str, **keys: object) -> dict:
    return {"inherits": [f"{name}.json" for name in inherits], "updates": keys}


def minimal(**keys: object) -> dict:
    return updates(**{"env": {"name": "Hopper-v1"}, **keys})


def with_expansion(model: object = (), **expansion: object) -> dict:
    return minimal(
        model_config=dict(model),
        policy_config={"value_expansion": {"rollout_len": 3, **expansion}},
    )


# ---- the files under config/ --------------------------------------------------------


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


@pytest.mark.parametrize("path", sorted(ROOT.glob("config/algos/*.json")))
def test_every_algorithm_runs_on_every_environment(path, tree):
    for env in ROOT.glob("config/envs/*.json"):
        tree.write(a={"inherits": [str(path.relative_to(ROOT)), str(env)]})
        assert load(tree.root / "a.json", root=ROOT).config.env.name


def test_every_remaining_file_under_config_is_part_of_an_experiment():
    inherited = {"config/quickstart.json"}
    for path in (ROOT / "config").rglob("*.json"):
        inherited.update(json.loads(path.read_text()).get("inherits", []))
    parts = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "config").rglob("*.json")
        if EXPERIMENTS not in path.parents and path not in CPU_EXPERIMENTS
    }
    assert parts == inherited


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
        paper = load(ROOT / "config/experiments/goodruns/halfcheetah/mve_tdk0.json")
        assert fit == {key: paper.merged["model_config"][key] for key in fit}
    if name.endswith("_lowrate"):
        name = name.removesuffix("_lowrate")
        policy = content["updates"].pop("policy_config")
        paper = load(ROOT / f"config/experiments/goodruns/halfcheetah/{name}0.json")
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
    paper = load(tree.root / "a.json", root=ROOT)
    changed = set(changed_keys(paper.merged, loaded.merged))
    assert changed <= {key for key, _ in cpu_departures()}


def cpu_departures() -> list[tuple[str, object]]:
    """The dotted keys and values of cpu.json."""
    path = ROOT / "config/experimental_setups/cpu.json"
    updates = json.loads(path.read_text())["updates"]
    departures = []
    for section, value in updates.items():
        if isinstance(value, dict):
            name = section.removeprefix("*")
            departures += [(f"{name}.{key}", inner) for key, inner in value.items()]
        else:
            departures.append((section, value))
    return departures


def test_every_departure_of_the_cpu_experiments_has_its_reason():
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (CPU / "README.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    documented = {key.strip("`"): (value, reason) for key, _, value, reason in rows}
    departures = dict(cpu_departures())
    assert documented.keys() == departures.keys()
    for key, value in departures.items():
        assert documented[key][0].replace(",", "") == json.dumps(value)
        assert documented[key][1]


def test_core_files_say_what_the_schema_has_as_defaults(tree):
    tree.write(a=minimal(model_config={}))
    inherits = ["config/core/basic.json", "config/core/model.json"]
    tree.write(b={"inherits": inherits, "updates": {"env": {"name": "Hopper-v1"}}})
    from_core = load(tree.root / "b.json", root=ROOT)
    assert from_core.merged == tree.load().merged


def test_the_papers_values_are_the_defaults(tree):
    """Also of what the 2018 release had in its code (SPEC section 7)."""
    tree.write(a=minimal(model_config={}))
    merged = tree.load().merged
    learner = {
        "batch_size": 512,
        "replay_size": 1_000_000,
        "frames_before_learning": 10_000,
        "frames_per_update": 0.25,
        "log_every_n": 500,
        "epoch_every_n": 500,
        "backup_every_n": 2_500_000,
        "learning_rate": 3e-4,
    }
    expected = {
        "agent_config": {"count": 1, "batch_size": 8, "reload_every_n": 1}
        | {"full_random_n": 10_000},
        "evaluator_config": {"count": 2, "batch_size": 1, "episodes_per_policy": 1},
        "policy_config": learner
        | {"algo": "ddpg", "hidden_dim": 128, "layers": 4}
        | {"explore_chance": 0.05, "pre_tanh_penalty": 0.001},
        "model_config": learner
        | {"transition_hidden_dim": 512, "transition_layers": 8}
        | {"aux_hidden_dim": 128, "aux_layers": 4}
        | {"pretrain_n": 10_000, "weight_decay": 1e-4},
        "env": {"max_frames": 1000, "reward_scale": 1.0, "step_timeout": 60.0},
    }
    for section, values in expected.items():
        found = {key: merged[section][key] for key in values}
        assert found == values, section
    assert merged["final_episodes"] == 5


def test_quickstart_is_steve_on_inverted_pendulum_and_ends():
    config = load(ROOT / "config" / "quickstart.json").config
    assert found_algorithm(config) == STEVE
    assert config.env.name == "InvertedPendulum-v5"
    assert config.env.rescale_actions
    assert config.total_frames


# ---- defaults and derived values ----------------------------------------------------


def test_merged_is_complete_and_reads_again(tree):
    tree.write(a=with_expansion(lambda_return=0))
    loaded = tree.load()
    again = json.loads(json.dumps(loaded.merged, allow_nan=False))
    assert Config.model_validate(again) == loaded.config
    assert Config.model_validate(again).model_dump(by_alias=True) == loaded.merged
    for path in all_paths():
        if "bayesian" not in path[:-1]:
            section = loaded.merged
            for name in path:
                section = section[name]


def test_world_model_goes_by_its_json_name(tree):
    tree.write(a=minimal(model_config={"pretrain_n": 7}))
    loaded = tree.load()
    assert loaded.config.world_model_config.pretrain_n == 7
    assert loaded.merged["model_config"]["pretrain_n"] == 7
    tree.write(a=minimal(world_model_config={}))
    assert "did you mean model_config?" in tree.refusal()


def test_config_is_frozen(tree):
    tree.write(a=minimal())
    config = tree.load().config
    with pytest.raises(ValidationError):
        config.seed = 3
    with pytest.raises(ValidationError):
        config.env.discount = 0.5


@pytest.mark.parametrize(
    ("policy", "model", "capacity"),
    [(20, None, 20), (10, {"replay_size": 20}, 20), (30, {"replay_size": 20}, 30)],
)
def test_replay_capacity_is_the_larger_replay_size(tree, policy, model, capacity):
    tree.write(a=minimal(policy_config={"replay_size": policy}, model_config=model))
    config = tree.load().config
    assert config.replay_capacity == capacity
    assert config.has_model == (model is not None)


def test_a_replay_buffer_smaller_than_two_vector_steps_is_refused(tree):
    tree.write(a=minimal(policy_config={"replay_size": 15}))
    message = tree.refusal()
    assert "policy_config.replay_size must be at least twice" in message
    assert "agent_config.batch_size (8), not 15" in message


def test_environment_folders_are_single_and_distinct(tree):
    names = ["Hopper-v1", "a/b-v0", "a-b-v0", "a.b-v0", "a_b-v0", "a/b.c-v0"]
    tree.write(a=minimal())
    folders = {tree.load(f"env.name={n}").config.environment_folder for n in names}
    assert len(folders) == len(names)
    assert "Hopper-v1" in folders
    assert not any(set(folder) & set("/:\\ ") for folder in folders)


# ---- merging ------------------------------------------------------------------------


def test_later_files_win_and_own_updates_win_over_inherited(tree):
    tree.write(
        a=updates("b", "c", seed=4),
        b=minimal(seed=1, total_frames=10_001, final_episodes=1),
        c=updates(seed=2, total_frames=20_000),
    )
    config = tree.load().config
    found = (config.seed, config.total_frames, config.final_episodes)
    assert found == (4, 20_000, 1)


def test_objects_merge_key_by_key_and_lists_replace(tree):
    tree.write(
        a=updates("b", env={"obs_dims": [5], "make_kwargs": {"y": 2}}),
        b=updates(
            env={"name": "X", "obs_dims": [3], "action_dim": 2, "make_kwargs": {"x": 1}}
        ),
    )
    env = tree.load().config.env
    assert (env.name, env.obs_dims, env.action_dim) == ("X", [5], 2)
    assert env.make_kwargs == {"x": 1, "y": 2}


def test_inherits_are_resolved_depth_first_and_twice_is_no_circle(tree):
    tree.write(
        a=updates("b", "c"),
        b=updates("d", seed=1),
        c=updates("d"),
        d=minimal(seed=2),
    )
    assert tree.load().config.seed == 2


def test_star_fills_only_an_object_that_is_there(tree):
    star = {"*model_config": {"pretrain_n": 7}}
    tree.write(a=updates("b", **star), b=minimal())
    assert tree.load().config.world_model_config is None
    tree.write(b=minimal(model_config=None))
    assert tree.load().config.world_model_config is None
    tree.write(b=minimal(model_config={"aux_layers": 2}))
    model = tree.load().config.world_model_config
    assert (model.pretrain_n, model.aux_layers) == (7, 2)


def test_star_works_at_any_depth_and_sees_what_earlier_files_left(tree):
    star = {"policy_config": {"*bayesian": {"eval_sample_count": 2}}}
    sizes = {"ensemble_size": 4, "train_sample_count": 4, "eval_sample_count": 4}
    tree.write(
        a=minimal(policy_config={}),
        b=updates(policy_config={"bayesian": sizes}),
        c=updates(**star),
    )
    tree.write(a=updates("c", "b", **minimal()["updates"]))
    assert tree.load().config.policy_config.bayesian.eval_sample_count == 4
    tree.write(a=updates("b", "c", **minimal()["updates"]))
    assert tree.load().config.policy_config.bayesian.eval_sample_count == 2


@pytest.mark.parametrize("order", [1, -1])
def test_star_does_not_depend_on_the_order_within_a_file(tree, order):
    pairs = [("*model_config", {"pretrain_n": 7}), ("model_config", {"aux_layers": 2})]
    tree.write(a=minimal(**dict(pairs[::order])))
    assert tree.load().config.world_model_config.pretrain_n == 7


@pytest.mark.parametrize(
    ("starred", "words"),
    [
        ({"*modle_config": {}}, ("*modle_config", "did you mean model_config?")),
        ({"*model_config": {"pretrain": 1}}, ("model_config.pretrain ", "pretrain_n?")),
        ({"*model_config": 3}, ("*model_config must be an object",)),
        ({"env": {"*discount": {}}}, ("env.*discount must be an object",)),
        ({"**model_config": {}}, ("**model_config is not a known key",)),
    ],
)
def test_a_starred_mistake_is_loud_also_where_it_would_be_dropped(tree, starred, words):
    tree.write(a=updates("b", **starred), b=minimal())
    message = tree.refusal()
    assert message.startswith("a.json: ")
    assert all(word in message for word in words)


# ---- keys, types and ranges ---------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "path", "suggestion"),
    [
        ({"sed": 1}, "sed", "seed"),
        ({"policy_config": {"batchsize": 1}}, "policy_config.batchsize", "batch_size"),
        (
            {"policy_config": {"ddpg_explore_chance": 0.1}},
            "policy_config.ddpg_explore_chance",
            "explore_chance",
        ),
        (
            {"policy_config": {"tdk_trick": True}},
            "policy_config.tdk_trick",
            "policy_config.value_expansion.tdk_trick",
        ),
        (
            {"rollout_len": 3},
            "rollout_len",
            "policy_config.value_expansion.rollout_len",
        ),
        ({"env": {"make_kwarg": {}}}, "env.make_kwarg", "make_kwargs"),
        ({"agent_config": {"batches": 1}}, "agent_config.batches", "batch_size"),
        ({"se\ned": 1}, "se\\ned", "seed"),
    ],
)
def test_unknown_key_is_named_with_the_nearest_known_one(tree, keys, path, suggestion):
    tree.write(a=minimal(**keys))
    assert tree.refusal() == (
        f"a.json: {path} is not a known key; did you mean {suggestion}?"
    )


GOOD_BAD = [
    ("env.reward_scale", [0.5, 3], [0, -1, "1", True, None]),
    ("env.discount", [0, 1, 0.5], [1.01, -0.1, False, True]),
    ("env.max_frames", [1], [0, 1.0, "1", True, None, False]),
    ("env.obs_dims", [[17], None], [[], [1, 2], [0], [1.0], 17, False]),
    ("env.action_dim", [1, None], [0, False, 1.0]),
    ("env.module", ["a", "a.b_c", None], ["", "a..b", "a-b", "import", "a;b", "../a"]),
    ("env.make_kwargs", [{}, {"a": [1, {"b": None}]}], [None, [], "x", False]),
    ("env.rescale_actions", [True, False], [0, 1, "true", None]),
    ("env.inertia", ["2.1", "native", None], [2.1, "3.0", False]),
    ("env.step_timeout", [0.1, 5], [0, None, False]),
    ("env.name", ["A", "ns/A-v0"], ["", "..", "/a", "a/../b", "a/", ".a", "os:A-v0"]),
    ("env.name", [], ["a b", "a\n", 3, None, "a" * 201, "a\\b", "a/b/c"]),
    ("agent_config", [{}], [None, False, 3, []]),
    ("agent_config.count", [1], [0, 1.0]),
    ("agent_config.full_random_n", [0], [-1, False]),
    ("evaluator_config.count", [0], [-1, 1.5]),
    ("evaluator_config.episodes_per_policy", [0, 1], [-1, False]),
    ("policy_config.algo", ["ddpg"], ["sac", None]),
    ("policy_config.layers", [1], [0, "4"]),
    ("policy_config.explore_chance", [0, 1], [2, False]),
    ("policy_config.frames_per_update", [False, 0.25, 1], [0, 0.0, True, None, -1, ""]),
    ("policy_config.learning_rate", [1e-9], [0, False, 10**400]),
    ("policy_config.pre_tanh_penalty", [0, 0.5], [-1e-9, False]),
    ("policy_config.threads", [1, None], [0, False]),
    ("policy_config.bayesian", [None, False], [0, 4, True, {}]),
    ("model_config", [None, False, {}], [0, True, [], "no"]),
    ("model_config.pretrain_n", [False, 1], [0, 0.0, 1.0, True, None, -5]),
    ("model_config.frames_per_update", [False, 0.1], [0, True]),
    ("model_config.weight_decay", [0], [-1, None]),
    ("policy_config.value_expansion", [None, False], [0, True, []]),
    ("policy_config.value_expansion.rollout_len", [1], [0, 1.0, False, None]),
    (
        "policy_config.value_expansion.lambda_return",
        [False, 0, 0.0, 1, 0.5],
        [True, -0.1, 1.1, None],
    ),
    ("policy_config.value_expansion.tdk_trick", [True, False], [0, 1, 0.0, None]),
    ("policy_config.value_expansion.variance_epsilon", [1e-8], [0, False]),
    ("output_root", ["x", "/abs/x", "../x"], ["", None, 3, "a\0b"]),
    ("log_path", ["logs"], ["", ".", "..", "a/b", ".log"]),
    ("save_model_path", ["c"], ["/", None, "a\n"]),
    ("seed", [0, 2**40], [-1, 1.0, False, None]),
    ("total_frames", [10_001, None], [0, 1.5, False]),
    ("total_hours", [0.1, 2, None], [0, False, True]),
    ("final_episodes", [0], [-1, None]),
    ("keep_all_replay_buffers", [True], [1, 0, None]),
]


def value_at(merged: dict, dotted: str) -> object:
    for name in dotted.split("."):
        merged = merged[name]
    return merged


@pytest.mark.parametrize(
    ("dotted", "value"),
    [(dotted, value) for dotted, good, _ in GOOD_BAD for value in good],
)
def test_good_value_is_taken_as_it_is(tree, dotted, value):
    tree.write(a=with_expansion())
    if dotted == "model_config" and not isinstance(value, dict):
        tree.write(a=minimal())
    merged = tree.load(f"{dotted}={json.dumps(value)}").merged
    found = value_at(merged, dotted)
    is_section = dotted in ("model_config", "agent_config", "policy_config.bayesian")
    if is_section or dotted.endswith("value_expansion"):
        assert (found is None) == (value in (None, False))
    else:
        assert found == value
        assert isinstance(found, bool) == isinstance(value, bool)


@pytest.mark.parametrize(
    ("dotted", "value"),
    [(dotted, value) for dotted, _, bad in GOOD_BAD for value in bad],
)
def test_bad_value_is_refused_where_it_stands(tree, dotted, value):
    keys = value
    for name in reversed(dotted.split(".")):
        keys = {name: keys}
    tree.write(a=updates("b", **keys), b=with_expansion())
    message = tree.refusal()
    assert message.startswith(f"a.json: {dotted}")
    assert " must " in message or " is missing" in message


def test_message_says_what_was_wanted_and_what_was_found(tree):
    tree.write(a=minimal(policy_config={"batch_size": "many"}))
    assert tree.refusal() == (
        "a.json: policy_config.batch_size must be a whole number of at least 1, "
        'not "many"'
    )


def test_further_faults_are_counted_once_for_each_key(tree):
    tree.write(
        a=minimal(seed=-1, policy_config={"batch_size": 0, "frames_per_update": 0})
    )
    message = tree.refusal()
    assert message.startswith("a.json: policy_config.batch_size must be ")
    assert message.endswith(", not 0 (and 2 more)")


def test_missing_keys_are_named(tree):
    tree.write(a=updates())
    assert tree.refusal() == "a.json: env is missing"
    tree.write(a=updates(env={}))
    assert tree.refusal() == "a.json: env.name is missing"
    tree.write(a=minimal(model_config={"bayesian": {"reward": None}}))
    assert "model_config.bayesian.transition is missing" in tree.refusal()


SIZES = {"ensemble_size": 4, "train_sample_count": 4, "eval_sample_count": 4}


@pytest.mark.parametrize("count", ["train_sample_count", "eval_sample_count"])
@pytest.mark.parametrize(
    "section",
    [
        "policy_config.bayesian",
        "model_config.bayesian.transition",
        "model_config.bayesian.reward",
    ],
)
def test_sample_counts_lie_between_one_and_the_ensemble_size(tree, section, count):
    both = {"transition": SIZES, "reward": SIZES}
    tree.write(
        a=minimal(model_config={"bayesian": both}, policy_config={"bayesian": SIZES})
    )
    tree.load(f"{section}.{count}=1")
    assert tree.refusal(f"{section}.{count}=5") == (
        f"--set: {section}.{count} must be at most ensemble_size (4), not 5"
    )
    assert "at least 1" in tree.refusal(f"{section}.{count}=0")


@pytest.mark.parametrize("learner", ["policy_config", "model_config"])
def test_each_training_member_gets_a_share_of_the_batch(tree, learner):
    both = {"transition": SIZES, "reward": SIZES}
    tree.write(
        a=minimal(model_config={"bayesian": both}, policy_config={"bayesian": SIZES})
    )
    tree.load(f"{learner}.batch_size=4")
    message = tree.refusal(f"{learner}.batch_size=3")
    assert message.startswith(f"--set: {learner}.batch_size must be at least bayesian.")


@pytest.mark.parametrize(
    ("switches", "words"),
    [
        ({"mean_k_return": True, "lambda_return": 0}, "excludes lambda_return"),
        ({"lambda_return": 0.5, "steve_reweight": True}, "excludes steve_reweight"),
        ({"mean_k_return": True, "steve_reweight": True}, "excludes steve_reweight"),
        ({"covariances": True}, "needs steve_reweight"),
    ],
)
def test_targets_that_exclude_each_other_are_refused(tree, switches, words):
    tree.write(a=with_expansion(**switches))
    message = tree.refusal()
    assert message.startswith(
        f"a.json: policy_config.value_expansion.{next(iter(switches))}"
    )
    assert words in message


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"mean_k_return": True},
        {"lambda_return": 0},
        {"steve_reweight": True},
        {"steve_reweight": True, "covariances": True},
    ],
)
def test_tdk_combines_with_every_target(tree, switches):
    unused = {"mean_k_return": False, "lambda_return": False, "covariances": False}
    tree.write(a=with_expansion(tdk_trick=True, **{**unused, **switches}))
    assert tree.load().config.policy_config.value_expansion.tdk_trick


def test_value_expansion_needs_a_model_and_not_the_reverse(tree):
    tree.write(a=minimal(policy_config={"value_expansion": {"rollout_len": 1}}))
    message = tree.refusal()
    assert message.startswith(
        "a.json: policy_config.value_expansion needs a model_config"
    )
    tree.write(a=minimal(model_config={}))
    assert tree.load().config.has_model


def test_log_and_checkpoints_do_not_share_a_folder(tree):
    tree.write(a=minimal(log_path="checkpoints"))
    assert tree.refusal() == (
        'a.json: save_model_path must not be the folder of log_path too ("checkpoints")'
    )


# ---- which file is to blame ---------------------------------------------------------


def test_the_file_that_set_the_key_last_is_named(tree):
    tree.write(
        **{
            "a": updates("sub/b", "c"),
            "sub/b": minimal(seed=-1),
            "c": updates(seed=-2),
        }
    )
    assert tree.refusal().startswith("c.json: seed must be")
    tree.write(c=updates(final_episodes=1))
    assert tree.refusal().startswith("sub/b.json: seed must be")


def test_an_unknown_key_in_an_inherited_file_names_that_file(tree):
    tree.write(a=updates("b", policy_config={}), b=minimal(policy_config={"bach": 1}))
    assert tree.refusal().startswith("b.json: policy_config.bach is not")


def test_a_replaced_object_no_longer_answers_for_its_keys(tree):
    tree.write(
        a=updates("b", "c"),
        b=with_expansion(),
        c=updates(policy_config={"value_expansion": None}),
        d=updates(policy_config={"value_expansion": {"tdk_trick": True}}),
    )
    tree.write(a=updates("b", "c", "d"))
    assert tree.refusal() == (
        "d.json: policy_config.value_expansion.rollout_len is missing"
    )


def test_of_two_keys_at_odds_the_one_set_last_is_blamed(tree):
    tree.write(
        a=updates("b", policy_config={"bayesian": {"ensemble_size": 2}}),
        b=minimal(policy_config={"bayesian": SIZES}),
    )
    assert tree.refusal() == (
        "a.json: policy_config.bayesian.train_sample_count must be at most "
        "ensemble_size (2), not 4"
    )


# ---- files --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON at line 1, column 2"),
        ('{\n "updates": {,}}', "not valid JSON at line 2, column 14"),
        ("", "not valid JSON at line 1, column 1"),
        ("[]", "must hold a JSON object, not []"),
        ("3", "must hold a JSON object, not 3"),
        ('{"updates": {"total_hours": NaN}}', "NaN is not a finite number"),
        ('{"updates": {"total_hours": -Infinity}}', "-Infinity is not a finite number"),
        ('{"updates": {"total_hours": 1e999}}', "1e999 is not a finite number"),
        ('{"updates": {"seed": 1, "seed": 2}}', 'the key "seed" stands twice'),
        ('{"updates": {"seed": ' + "9" * 5000 + "}}", "has more than 1000 digits"),
        ('{"updates": {}, "update": {}}', "update is not a known key of a file"),
        ('{"env": {}}', "did you mean updates.env?"),
        ('{"updates": []}', "updates must be an object, not []"),
        (
            '{"inherits": "b.json"}',
            'inherits must be a list of file names, not "b.json"',
        ),
        ('{"inherits": [3]}', "inherits must be a list of file names, not [3]"),
        ('{"inherits": [""]}', "inherits must be a list of file names"),
        ('{"inherits": ["a\\u0000"]}', "inherits must be a list of file names"),
        ('{"inherits": ["\\ud800"]}', "inherits must be a list of file names"),
        (b'{"updates": {"output_root": "\xff"}}', "not UTF-8 at byte 29"),
        ("{" + " " * (1 << 20) + "}", "larger than 1048576 bytes"),
        (
            '{"updates":{"env":{"make_kwargs":' + '{"a":' * 400 + "1" + "}" * 403,
            "",
        ),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_unusable_file_is_refused_in_one_line(tree, content, words):
    tree.write(a=content)
    message = tree.refusal()
    assert message.startswith("a.json: ")
    assert words in message


def test_unusable_inherited_file_is_named(tree):
    tree.write(a=updates("b"), b="{")
    assert tree.refusal().startswith("b.json: not valid JSON")


def test_missing_files_are_named_with_their_heir(tree):
    assert tree.refusal() == "a.json: no such file"
    tree.write(a=updates("b"), b=updates("sub/c"))
    assert tree.refusal() == "sub/c.json: no such file, inherited by b.json"


def test_a_forgotten_ending_is_pointed_out(tree):
    tree.write(a={"inherits": ["b"]}, b=minimal())
    assert tree.refusal() == ("b: no such file, inherited by a.json; there is b.json")


def test_folders_and_pipes_are_no_files(tree):
    (tree.root / "a.json").mkdir()
    assert tree.refusal() == "a.json: not a file"
    (tree.root / "a.json").rmdir()
    os.mkfifo(tree.root / "a.json")
    assert tree.refusal() == "a.json: not a file"


def test_no_permission_is_said(tree, monkeypatch):
    tree.write(a=minimal())

    def refuse(*_):  # as the system does, but for root
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert tree.refusal() == "a.json: cannot be read (Permission denied)"


def test_unreadable_file_is_said(tree):
    (tree.root / "a.json").symlink_to("a.json")
    assert tree.refusal().startswith("a.json: cannot be read (")


def test_circular_inherits_prints_the_circle(tree):
    tree.write(a=updates("b"), b=updates("c"), c=updates("b"))
    assert tree.refusal().endswith(
        "circular inherits: a.json -> b.json -> c.json -> b.json"
    )
    tree.write(a=updates("a"))
    assert tree.refusal() == "a.json: circular inherits: a.json -> a.json"


def test_endless_fan_out_is_cut(tree):
    files = {f"f{n}": updates(f"f{n + 1}", f"f{n + 1}") for n in range(30)}
    tree.write(a=updates("f0"), f30=minimal(), **files)
    assert tree.refusal() == "a.json: inherits more than 200 files"


def test_inherited_file_outside_is_noted_once(tree):
    elsewhere = tree.root / "elsewhere"
    for folder in ("config", "home", "elsewhere"):
        (tree.root / folder).mkdir()
    tree.write(**{"config/x": minimal(), "home/y": updates(), "elsewhere/z": updates()})
    inherits = [
        "config/x.json",
        "home/y.json",
        "elsewhere/z.json",
        str(elsewhere / "z.json"),
    ]
    (tree.root / "home" / "a.json").write_text(json.dumps({"inherits": inherits[:2]}))
    assert load(tree.root / "home" / "a.json", root=tree.root).notes == []
    (tree.root / "home" / "a.json").write_text(
        json.dumps({"inherits": [inherits[0], inherits[2], inherits[2]]})
    )
    (note,) = load(tree.root / "home" / "a.json", root=tree.root).notes
    assert note.endswith(
        "inherits elsewhere/z.json, which lies outside config/ and the folder of a.json"
    )


def test_loading_writes_nothing(tree):
    tree.write(a=minimal(output_root="new"))
    before = sorted(tree.root.rglob("*"))
    tree.load()
    tree.refusal("seed=-1")
    assert sorted(tree.root.rglob("*")) == before


# ---- the command line ---------------------------------------------------------------


def test_overrides_come_last_and_in_order(tree):
    tree.write(a=minimal(seed=1))
    config = tree.load(
        "seed=2", "seed=3", "policy_config.batch_size=128", "env.name=Pendulum-v1"
    ).config
    assert (config.seed, config.policy_config.batch_size) == (3, 128)
    assert config.env.name == "Pendulum-v1"


def test_overridden_object_replaces_the_old_one(tree):
    tree.write(a=with_expansion(steve_reweight=True, variance_epsilon=0.5))
    config = tree.load(
        'policy_config.value_expansion={"rollout_len":2,"tdk_trick":true}'
    ).config
    expansion = config.policy_config.value_expansion
    assert (expansion.rollout_len, expansion.tdk_trick) == (2, True)
    assert (expansion.steve_reweight, expansion.variance_epsilon) == (False, 1e-8)


def test_steve_becomes_ddpg_with_two_nulls():
    steve = EXPERIMENTS / "goodruns" / "hopper" / "steve0.json"
    nulls = ["model_config=null", "policy_config.value_expansion=null"]
    config = load(steve, overrides=nulls).config
    assert not config.has_model
    assert config.policy_config.value_expansion is None
    with pytest.raises(UserError, match=r"^--set: .* needs a model_config"):
        load(steve, overrides=nulls[:1])


def test_override_makes_a_section_that_defaults_cover_and_no_other(tree):
    tree.write(a=minimal())
    assert tree.load("agent_config.count=3").config.agent_config.count == 3
    assert tree.load("env.make_kwargs.a.b=3").config.env.make_kwargs == {"a": {"b": 3}}
    assert tree.refusal("model_config.pretrain_n=3") == (
        "--set: model_config.pretrain_n cannot be set, as model_config is null in "
        "this configuration"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy_config.batchsize=1", "policy_config.batchsize is not a known key"),
        ("policy_confg.batch_size=1", "policy_confg is not a known key; did you mean"),
        ("*model_config=null", "*model_config is not a known key"),
        ('agent_config={"*count":{}}', "agent_config.*count is not a known key"),
        ("policy_config.batch_size=many", "must be a whole number of at least 1"),
        ("policy_config.frames_per_update=False", 'or false, not "False"'),
        ("policy_config.layers.x=1", "policy_config.layers.x"),
        ("seed", "not of the form KEY=VALUE"),
        ("=3", "is not a known key"),
        ("", "not of the form KEY=VALUE"),
        ("total_hours=NaN", "total_hours: NaN is not a finite number"),
        ("env.make_kwargs={a: 1", 'env.make_kwargs: "{a: 1" is not valid JSON'),
        ('env={"nam": "Hopper-v1"}', "env.nam is not a known key; did you mean name"),
        ('agent_config={"count":1,"count":2}', 'the key "count" stands twice'),
        ("env.make_kwargs=" + '{"a":' * 300 + "1" + "}" * 300, ""),
    ],
)
def test_bad_override_is_refused_under_the_same_rules(tree, override, message):
    tree.write(a=minimal(policy_config={"layers": 3}))
    refusal = tree.refusal(override)
    assert refusal.startswith("--set: ")
    assert message in refusal


def test_a_run_that_would_end_before_learning_is_refused(tree):
    tree.write(a=minimal(policy_config={"frames_before_learning": 100}))
    assert tree.load(frames=101).config.total_frames == 101
    message = tree.refusal(frames=100)
    assert message == (
        "--frames: total_frames must be above policy_config.frames_before_learning "
        "(100), not 100"
    )


def test_frames_and_hours_set_the_limits(tree):
    tree.write(a=minimal(total_frames=15_000))
    config = tree.load(frames=20_000, hours=0.5).config
    assert (config.total_frames, config.total_hours) == (20_000, 0.5)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("frames", value) for value in (0, -1, 1.5, True)),
        *(("hours", value) for value in (0, -1.0, math.nan, math.inf)),
    ],
)
def test_bad_limit_names_the_option(tree, option, value):
    tree.write(a=minimal())
    message = tree.refusal(**{option: value})
    assert message.startswith(f"--{option}: total_{option} must be ")


@pytest.mark.parametrize(
    ("path", "name", "expected"),
    [
        ("config/x/steve0.json", None, "steve0"),
        ("steve.v2.json", None, "steve.v2"),
        ("a.json", "lr=1e-3,b+c_d", "lr=1e-3,b+c_d"),
        ("a.json", "x" * 200, "x" * 200),
    ],
)
def test_experiment_name_is_the_file_name_or_the_option(path, name, expected):
    assert experiment_name(path, name) == expected


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "a/b", "/a", "a b", "a\n", "ü", "x" * 201, "a\\b"]
)
def test_unsafe_experiment_name_is_refused(name):
    with pytest.raises(UserError, match=r"^--name must be .*$"):
        experiment_name("a.json", name)
    if "/" not in name and name not in ("", ".", ".."):
        with pytest.raises(UserError, match=r"give another with --name$"):
            experiment_name(f"folder/{name}.json", None)


# ---- resuming -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "total_frames=20000",
        "total_hours=9",
        "final_episodes=9",
        "keep_all_replay_buffers=true",
        "output_root=elsewhere",
        "agent_config.count=9",
        "evaluator_config.count=9",
        "evaluator_config.episodes_per_policy=9",
        "env.step_timeout=9",
        "policy_config.log_every_n=9",
        "policy_config.backup_every_n=9",
        "policy_config.threads=9",
        "model_config.log_every_n=9",
        "model_config.threads=9",
    ],
)
def test_a_resume_may_change_limits_intervals_and_counts(tree, override):
    tree.write(a=with_expansion())
    assert changed_keys(tree.load().merged, tree.load(override).merged) == []


@pytest.mark.parametrize(
    "override",
    [
        "seed=9",
        "agent_config.batch_size=9",
        "env.name=Hopper-v5",
        "env.obs_dims=[11]",
        "env.make_kwargs.threads=1",
        "policy_config.epoch_every_n=9",
        "policy_config.frames_per_update=false",
        "policy_config.value_expansion.lambda_return=0",
        "policy_config.value_expansion.lambda_return=0.25",
        "model_config.pretrain_n=false",
        'policy_config.bayesian={"ensemble_size":1,"train_sample_count":1,'
        '"eval_sample_count":1}',
    ],
)
def test_a_resume_names_every_other_change(tree, override):
    tree.write(a=with_expansion())
    old, new = tree.load().merged, tree.load(override).merged
    assert changed_keys(old, new) == changed_keys(new, old) == [override.split("=")[0]]


def test_changed_keys_tell_absent_from_null_and_false_from_zero():
    assert changed_keys({"a": None}, {}) == ["a"]
    assert changed_keys({"a": {"b": False, "c": 1}}, {"a": {"b": 0, "c": 1.0}}) == [
        "a.b"
    ]
