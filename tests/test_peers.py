"""The updates in JAX and PyTorch, where they are installed; no test asks for speed."""

import json
import subprocess
import sys
from pathlib import Path

import peer_work
import peers
import pytest
from peer_work import VALUERL, WORLDMODEL, WrongError

from steve.settings import loading
from steve.util import UserError

ROOT = Path(__file__).resolve().parents[1]
SINGLE = ["ddpg", "mve_tdk", "mve_lambda25", "steve_no_ensemble"]
ENSEMBLES = [
    "ddpg_ensemble",
    "ensemble_mve_mean",
    "ensemble_mve_tdk",
    "steve",
    "steve_reward_scale",
]


def load(*overrides, algorithm="steve"):
    path = ROOT / f"config/experiments/goodruns/halfcheetah/{algorithm}0.json"
    return loading.load(path, overrides=list(overrides)).config


def checked(build, name, learner, block=1):
    return peer_work.check(build, peer_work.read_case(name, learner), block)


@pytest.fixture
def torch_update():
    pytest.importorskip("torch", reason="the peers extra is not installed")
    from peer_torch import TorchUpdate

    def builder(batched):
        return lambda work, parameters, _: TorchUpdate(
            work, parameters, batched=batched, compiled=False
        )

    return builder


@pytest.fixture
def jax_update(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    pytest.importorskip("jax", reason="the peers extra is not installed")
    from peer_jax import JaxUpdate

    def builder(batched):
        return lambda *arguments: JaxUpdate(*arguments, batched=batched)

    return builder


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "members"])
@pytest.mark.parametrize("name", [*SINGLE, *ENSEMBLES])
def test_pytorch_agrees_with_the_reference(torch_update, name, batched):
    checked(torch_update(batched), name, VALUERL)


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "members"])
def test_pytorchs_world_model_agrees_with_the_reference(torch_update, batched):
    checked(torch_update(batched), "steve", WORLDMODEL)


@pytest.mark.parametrize("name", ["ddpg", "ensemble_mve_tdk", "steve"])
def test_jax_agrees_with_the_reference(jax_update, name):
    checked(jax_update(True), name, VALUERL)


@pytest.mark.parametrize("block", [1, 5])
def test_jaxs_world_model_agrees_with_the_reference(jax_update, block):
    checked(jax_update(False), "steve", WORLDMODEL, block)


class Standing:
    """An update that gives what the reference gives, but does not learn."""

    def __init__(self, case, block):
        self.block, self._case = block, case

    def run(self, batches):
        pass

    def finish(self):
        pass

    def gradients(self, batch):
        arrays = self._case.arrays
        losses = peer_work.LOSSES[self._case.work.learner]
        return (
            {n: arrays.get(f"grad/{n}") for n in self._case.parameters},
            {ours: arrays[f"out/{theirs}"] for ours, theirs in losses.items()},
        )

    def parameters(self):
        return self._case.parameters


@pytest.mark.parametrize("learner", [VALUERL, WORLDMODEL])
def test_an_update_that_does_not_learn_is_refused(learner):
    case = peer_work.read_case("steve", learner)
    with pytest.raises(WrongError, match=r"^parameters differ .* by 1"):
        peer_work.check(lambda *_: Standing(case, 1), case, 1)


def test_a_loss_that_is_no_number_is_refused():
    case = peer_work.read_case("ddpg", VALUERL)
    case.arrays["out/q_loss"] = case.arrays["out/q_loss"] * float("nan")
    with pytest.raises(WrongError, match=r"^losses differ .* by nan"):
        peer_work.check(lambda *_: Standing(case, 1), case, 1)


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [("ddpg", "ddpg"), ("mve_tdk", "mve_tdk"), ("steve", "steve")],
)
def test_a_configuration_is_checked_with_the_vector_of_its_algorithm(algorithm, name):
    config = load(algorithm=algorithm)
    assert peer_work.case_of(config, VALUERL) == name
    ours = peer_work.work_of(config, VALUERL)
    theirs = peer_work.read_case(name, VALUERL).work
    assert (ours.weighting, ours.tdk) == (theirs.weighting, theirs.tdk)
    assert ours.fixed_weights(4) == theirs.fixed_weights(4)


def test_every_case_has_the_parameters_of_all_its_nets():
    for name in [*SINGLE, *ENSEMBLES]:
        case = peer_work.read_case(name, VALUERL)
        nets = {key.partition("/")[0] for key in case.parameters}
        assert set(peer_work.TRAINED[VALUERL]) < nets
        for net in nets:
            for w, b in peer_work.layers_of(case.parameters, net):
                assert (w.ndim, b.ndim, len(w)) == (3, 2, len(b))


@pytest.mark.parametrize(
    "override",
    [
        "policy_config.value_expansion.covariances=true",
        "policy_config.bayesian.eval_sample_count=2",
        "policy_config.batch_size=510",
    ],
)
def test_what_the_other_libraries_do_not_have_is_said(override):
    with pytest.raises(UserError, match="other libraries"):
        peer_work.work_of(load(override), VALUERL)


def test_a_library_that_is_missing_is_named():
    """The command says how to install it, and nothing is timed."""
    blocked = (
        "import importlib.util as u, runpy, sys; u.find_spec = lambda name: None;"
        "sys.argv = ['peers.py', 'config/quickstart.json', '--libraries', 'jax'];"
        "sys.path.insert(0, 'benchmarks');"
        "runpy.run_path('benchmarks/peers.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", blocked], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    line = "peers.py: jax: not installed; pip install 'steve-rl[peers]', or name what "
    assert done.stderr == line + "there is with --libraries\n"


def names_of(*only, learner=VALUERL, **keys):
    found = peers.contenders(load(**keys), learner, ["jax", "torch"], list(only))
    return [contender.name for contender in found]


def test_all_ways_of_the_libraries_take_part_or_those_that_are_named():
    everyone = names_of("*")
    assert everyone[0] == "steve"
    assert len(everyone) == len(set(everyone)) == 9
    assert names_of("jax * scan") == ["steve", "jax batched scan", "jax members scan"]
    several = ["steve", "jax batched", "torch members"]
    assert names_of("torch members", "jax batched") == several
    assert names_of("*", algorithm="ddpg") == [
        *("steve", "jax", "jax scan"),
        *("torch", "torch compiled"),
    ]


def test_a_name_that_no_contender_has_is_one_line():
    with pytest.raises(UserError, match=r"^--only tinygrad: fits none of jax batched"):
        names_of("jax *", "tinygrad")


@pytest.mark.slow
def test_the_command_times_ours_next_to_the_others():
    pytest.importorskip("torch", reason="the peers extra is not installed")
    path = "config/experiments/goodruns/halfcheetah/ddpg0.json"
    keys = ["policy_config.batch_size=8", "policy_config.hidden_dim=8"]
    command = [sys.executable, "benchmarks/peers.py", path, "--json", "--rounds=2"]
    command += ["--seconds=0.1", "--libraries", "torch", "--set", *keys]
    printed = subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    result = json.loads(printed)
    part = result["valuerl"]
    assert result["worldmodel"] is None
    assert list(part["contenders"]) == ["steve", "torch", "torch compiled"]
    for name in ("steve", "torch"):
        figures = part["contenders"][name]
        assert figures["lowest"] <= figures["updates_per_s"] <= figures["highest"]
    ours, best = (part["contenders"][n] for n in ("steve", part["best_other"]))
    ratio = ours["updates_per_s"] / best["updates_per_s"]
    assert part["ours_over_best"] == pytest.approx(ratio)
