"""Estimates of memory and disk, and what is there."""

import pytest
from support import make_config
from support_settings import minimal

from steve.settings.interface import EnvSizes
from steve.settings.loading import load
from steve.storage import fitting
from steve.storage.folders import Folders
from steve.util import UserError

SPEC = EnvSizes(obs_dim=3, action_dim=2)
GIB = 1 << 30


def config_of(**keys):
    return load(minimal(**keys)).config


@pytest.fixture
def folders(tmp_path):
    return Folders.of(make_config(tmp_path / "output"), "first")


@pytest.fixture
def machine(monkeypatch):
    """Gives the machine other sizes: of memory, of what is available, of the disk."""

    def resize(memory=8 * GIB, available=8 * GIB, free=8 * GIB):
        monkeypatch.setattr(fitting, "memory_bytes", lambda: (memory, available))
        monkeypatch.setattr(fitting, "free_bytes", lambda folders: free)

    resize()
    return resize


def test_a_state_that_could_not_be_loaded_again_is_refused_in_one_line(
    machine, folders, monkeypatch
):
    config = config_of(policy_config={"hidden_dim": 4, "layers": 2})
    state = 3 * 4 * (26 + 29)  # see below
    monkeypatch.setattr(fitting, "MAX_FILE_BYTES", state)
    assert fitting.check_fits(config, SPEC, folders, on_gpus=False) == []
    monkeypatch.setattr(fitting, "MAX_FILE_BYTES", state - 1)
    with pytest.raises(UserError, match="at least 660 bytes, and its file may have"):
        fitting.check_fits(config, SPEC, folders, on_gpus=False)


# What is needed


def test_weights_are_counted_by_hand():
    policy = {"hidden_dim": 4, "layers": 2}
    counted = fitting.parameters(config_of(policy_config=policy), SPEC)
    # policy (3 + 1) 4 + (4 + 1) 2; Q-function (5 + 1) 4 + (4 + 1) 1
    assert counted == {"valuerl": 26 + 29}


def test_as_many_weights_are_counted_as_the_nets_have():
    from steve import nn
    from steve.valuerl import Task, ValueRL
    from steve.worldmodel import WorldModel

    sizes = {"ensemble_size": 3, "train_sample_count": 1, "eval_sample_count": 1}
    other = {**sizes, "ensemble_size": 2}
    config = config_of(
        policy_config={"bayesian": sizes, "hidden_dim": 5, "layers": 3},
        model_config={
            "bayesian": {"transition": sizes, "reward": other},
            "transition_hidden_dim": 6,
            "aux_hidden_dim": 7,
        },
    )
    generator = nn.generator_of(0)
    learner = ValueRL(config.policy_config, Task(3, 2, 0.99, 1.0), generator)
    model = WorldModel(config.model_section, 3, 2, generator)
    trained = [*learner.policy.variables, *learner.q.variables]
    assert fitting.parameters(config, SPEC) == {
        "valuerl": sum(variable.shape.num_elements() for variable in trained),
        "worldmodel": sum(v.shape.num_elements() for v in model.variables),
    }


def test_the_papers_size_needs_less_than_a_small_machine_has():
    size = {"ensemble_size": 4, "train_sample_count": 4, "eval_sample_count": 4}
    config = config_of(
        policy_config={"bayesian": size, "value_expansion": {"rollout_len": 3}},
        model_config={"bayesian": {"transition": size, "reward": size}},
    )
    spec = EnvSizes(obs_dim=376, action_dim=17)  # Humanoid
    assert sum(fitting.learner_bytes(config, spec, False).values()) < GIB
    assert fitting.disk_bytes(config, spec) < 4 * GIB


def test_a_limit_of_frames_bounds_the_replay_buffer():
    keys = {"policy_config": {"replay_size": 10**9}}
    endless = fitting.disk_bytes(config_of(**keys), SPEC)
    short = fitting.disk_bytes(config_of(total_frames=20_000, **keys), SPEC)
    assert endless > 10**9 * 4 * (3 + 3 + 2)
    assert short < 10**7


# What is refused, and what is said


@pytest.mark.parametrize(
    "keys",
    [
        {"policy_config": {"hidden_dim": 65_536}},
        {"policy_config": {"layers": 1000, "hidden_dim": 1000}},
        {"policy_config": {"batch_size": 10**6, "updates_per_call": 1000}}
        | {"agent_config": {"batch_size": 1000}},
        {"model_config": {"transition_hidden_dim": 60_000}},
        {"model_config": {"batch_size": 10**6}},
    ],
)
def test_what_cannot_fit_into_memory_is_refused(folders, machine, keys):
    with pytest.raises(UserError) as caught:
        fitting.check_fits(config_of(**keys), SPEC, folders, on_gpus=False)
    assert "of memory, and this machine has 8 GiB" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not folders.root.exists()


def test_on_gpus_only_the_states_count(folders, machine):
    config = config_of(model_config={"batch_size": 10**6})
    assert fitting.check_fits(config, SPEC, folders, on_gpus=True) == []


def test_what_may_not_fit_is_said(folders, machine):
    config = config_of()
    assert fitting.check_fits(config, SPEC, folders, on_gpus=False) == []
    machine(available=1000, free=1000)
    memory, disk = fitting.check_fits(config, SPEC, folders, on_gpus=False)
    assert memory.endswith("of memory, and 1,000 bytes are available")
    assert "and 1,000 bytes are free" in disk


def test_rows_that_no_replay_buffer_has_are_refused(folders, machine):
    spec = EnvSizes(obs_dim=(1 << 20) + 1, action_dim=1)
    machine(memory=1 << 60, available=1 << 60)
    with pytest.raises(UserError, match="the replay buffer: obs_dim must be 1 to"):
        fitting.check_fits(config_of(), spec, folders, on_gpus=False)


# What is there


@pytest.fixture
def proc(tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text(
        "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 700 kB\nSwapTotal: 24 kB\n"
    )
    return tmp_path


def test_memory_is_that_of_the_machine_with_its_swap(proc, tmp_path):
    assert fitting.memory_bytes(proc, tmp_path / "none") == (1024 * 1024, 700 * 1024)


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/slurm/job_7/step_0", "slurm/job_7/memory.max"),
        ("0::/", "memory.max"),
        ("0::/../outside", "memory.max"),
        ("4:memory:/slurm/job_7", "memory/slurm/job_7/memory.limit_in_bytes"),
    ],
)
def test_a_limit_of_a_control_group_counts(proc, tmp_path, line, file):
    (proc / "self" / "cgroup").write_text(f"9:cpu:/x\n{line}\n")
    limit = tmp_path / "cgroups" / file
    limit.parent.mkdir(parents=True)
    limit.write_text("max\n")
    assert fitting.memory_bytes(proc, tmp_path / "cgroups")[0] == 1024 * 1024
    limit.write_text("512000\n")
    assert fitting.memory_bytes(proc, tmp_path / "cgroups") == (512_000, 512_000)


def test_what_this_run_has_filled_counts_as_free(folders):
    free = fitting.free_bytes(folders)
    folders.checkpoints.mkdir(parents=True)
    (folders.checkpoints / "state").write_bytes(bytes(1 << 20))
    assert fitting.free_bytes(folders) == pytest.approx(free, rel=0.1)
