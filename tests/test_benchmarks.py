"""The arithmetic of the benchmarks, and what they print; no test asks for speed."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import arithmetic
import gpu
import imagination
import numpy as np
import parts
import pytest
import scaling
import tensorflow as tf
import vectorization
from arithmetic import Net
from support_learner import build, open_model

from steve.compute import Updater
from steve.settings import loading
from steve.util import UserError
from steve.worldmodel import weight_penalty
from steve.worldmodel_learner import WorldmodelLearner

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    "env.obs_dims=[4]",
    "env.action_dim=1",
    "policy_config.batch_size=8",
    "model_config.batch_size=8",
    "policy_config.hidden_dim=8",
    "model_config.transition_hidden_dim=8",
    "model_config.aux_hidden_dim=8",
]


def halfcheetah(algorithm, *overrides):
    path = ROOT / f"config/experiments/goodruns/halfcheetah/{algorithm}0.json"
    return loading.load(path, overrides=list(overrides)).config


def test_a_net_has_two_operations_for_each_weight_and_row():
    net = Net(in_dim=3, hidden_dim=5, out_dim=2, layers=3)
    assert net.forward(7) == 2 * 7 * (3 * 5 + 5 * 5 + 5 * 2)
    # Nobody asks for the gradient of the first layer's inputs.
    assert net.training(7) == 3 * net.forward(7) - 2 * 7 * 3 * 5
    line = Net(in_dim=3, hidden_dim=5, out_dim=2, layers=1)
    assert line.forward(7) == 2 * 7 * 3 * 2
    assert line.training(7) == 2 * line.forward(7)


def test_an_update_of_full_size_steve_costs_what_was_measured_in_2018():
    """SPEC's reference: 26.0 and 5.2 GFLOP for HalfCheetah."""
    config = halfcheetah("steve")
    value = arithmetic.valuerl_flop(config, 17, 6, shared=False)
    assert value == pytest.approx(26.0e9, rel=0.03)
    assert arithmetic.worldmodel_flop(config, 17, 6) == pytest.approx(5.2e9, rel=0.03)


def test_what_depends_on_the_first_state_alone_is_counted_once():
    config = halfcheetah("steve")
    saved = arithmetic.valuerl_flop(config, 17, 6, shared=False)
    saved -= arithmetic.valuerl_flop(config, 17, 6)
    policy, q = Net(17, 128, 6, 4), Net(23, 128, 1, 4)
    rows = 3 * 512  # of the four transition members, all but one
    assert saved == policy.forward(rows) + 4 * q.forward(rows)


def test_the_other_algorithms_cost_what_they_add():
    ddpg = arithmetic.valuerl_flop(halfcheetah("ddpg"), 17, 6)
    policy, q = Net(17, 128, 6, 4), Net(23, 128, 1, 4)
    update = policy.training(512) + 2 * q.forward(512) + q.training(512)
    assert ddpg == update + policy.forward(512) + q.forward(512)

    tdk = arithmetic.valuerl_flop(halfcheetah("mve_tdk"), 17, 6)
    switched_off = "policy_config.value_expansion.tdk_trick=false"
    mve = arithmetic.valuerl_flop(halfcheetah("mve_tdk", switched_off), 17, 6)
    assert tdk - mve == q.training(3 * 512)
    transition, aux = Net(23, 512, 17, 8), Net(40, 128, 1, 4)
    imagined = 3 * 512
    rollout = transition.forward(imagined) + 2 * aux.forward(imagined)
    assert mve == ddpg + rollout + policy.forward(imagined) + q.forward(imagined)


def output(*command):
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


@pytest.mark.slow  # three to six processes with TensorFlow
@pytest.mark.parametrize("algorithm", ["ddpg", "steve"])
def test_the_learners_benchmark_prints_one_json_object_and_nothing_else(algorithm):
    keys = [k for k in TINY if algorithm == "steve" or "model_" not in k]
    path = f"config/experiments/goodruns/halfcheetah/{algorithm}0.json"
    keys += ["policy_config.xla=false"]  # which takes longer to compile than all else
    keys += ["model_config.xla=false"] * (algorithm == "steve")
    result = json.loads(
        output(
            "benchmarks/learners.py", path, "--json", "--seconds=0.1", "--set", *keys
        )
    )
    assert set(result) == {"valuerl", "worldmodel", "side_by_side", "machine"}
    learners = ["valuerl"] + ["worldmodel"] * (algorithm == "steve")
    assert list(result["side_by_side"]) == learners
    assert (result["worldmodel"] is None) == (algorithm == "ddpg")
    for figures in (
        *(result[name] for name in learners),
        *result["side_by_side"].values(),
    ):
        rate, gflop = figures["updates_per_s"], figures["gflop_per_update"]
        assert figures["gflops"] == pytest.approx(rate * gflop)
        limit = result["machine"]["limit_gflops"]
        assert figures["share"] == pytest.approx(rate * gflop / limit)
        assert rate > 0


@pytest.mark.slow  # ten processes start
def test_the_replay_benchmark_fills_and_reads_a_buffer():
    result = json.loads(
        output(
            *("benchmarks/replay.py", "--rows=5000", "--obs=3", "--action=1"),
            *("--appends=100", "--json"),
        )
    )
    row = 4 * (3 + 3 + 1 + 2 + 6 + 3)  # bytes
    disk = result["space"]["disk per million transitions, GB"]
    # Whole blocks, and the header's page.
    assert row / 1000 <= disk <= row / 1000 + 2 * 4096 / 5000 / 1000
    assert result["append"]["4 writers, median us"] > 0


def test_environments_step_in_one_process_and_in_several():
    config = loading.load(
        ROOT / "config" / "quickstart.json", overrides=["agent_config.batch_size=2"]
    ).config
    for how in ("sync", "async"):
        stepped = vectorization.made(config, how)
        assert stepped.step() == 2
        stepped.close()


COMPILED = """HloModule an_update, is_scheduled=true

%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %add.1 = f32[4]{0} add(%p, %p)
}

%branch (b: f32[4]) -> f32[4] {
  %b = f32[4]{0} parameter(0)
  ROOT %copy.2 = f32[4]{0} copy(%b)
}

%body (state: (s32[], /*index=1*/f32[4])) -> (s32[], f32[4]) {
  %state = (s32[], f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%state), index=1
  %fusion.1 = f32[4]{0} fusion(%x), kind=kLoop, calls=%fused
  %gemm-start = ((f32[4]{0}), f32[4]{0}) custom-call-start(%fusion.1)
  %gemm-done = f32[4]{0} custom-call-done(%gemm-start)
  %call.1 = f32[4]{0} call(%gemm-done), to_apply=%branch
  %chosen = f32[4]{0} conditional(%k, %x, %x), branch_computations={%branch, %branch}
  ROOT %tuple.1 = (s32[], f32[4]{0}) tuple(%k, %chosen)
}

%condition (state.1: (s32[], f32[4])) -> pred[] {
  %state.1 = (s32[], f32[4]{0}) parameter(0)
  ROOT %compare = pred[] fusion(%state.1), kind=kLoop, calls=%compared
}

ENTRY %main (argument: f32[4]) -> f32[4] {
  %argument = f32[4]{0} parameter(0)
  %copy.1 = f32[4]{0} copy(%argument)
  %while.1 = (s32[], f32[4]{0}) while(%copy.1), condition=%condition, body=%body
  ROOT %last = f32[4]{0} get-tuple-element(%while.1), index=1
}
"""


def test_the_operations_of_an_update_are_counted_in_the_loop_over_updates():
    # In the body a fusion, a product, a copy in a call, two in branches; the condition.
    assert gpu.count_kernels(COMPILED, in_loop=True) == 2 + 1 + 2 + 1
    # Without such a loop the whole program is one update: a copy more.
    assert gpu.count_kernels(COMPILED, in_loop=False) == 6 + 1


@pytest.mark.parametrize(
    ("xla", "name"), [(False, "graph_operations"), (True, "kernels")]
)
def test_operations_are_counted_whether_or_not_there_is_a_program(xla, name):
    weight = tf.Variable(1.0)

    def step(rows):
        weight.assign_add(tf.reduce_mean(rows[:, 0]))
        return {"loss": tf.reduce_mean(rows)}

    learner = SimpleNamespace(
        updater=Updater(step, ["loss"], updates_per_call=1, xla=xla),
        settings=SimpleNamespace(batch_size=2),
        context=SimpleNamespace(run=SimpleNamespace(obs_dim=3, action_dim=1)),
    )
    found = gpu.operations(learner)
    assert list(found) == [name]
    assert 2 <= found[name] <= 30


@pytest.mark.slow
def test_the_gpu_benchmark_is_rehearsed_on_the_cpu(tmp_path):
    path = "config/experiments/goodruns/halfcheetah/ddpg0.json"
    keys = [key for key in TINY if "model_" not in key]
    file = tmp_path / "gpu.json"
    printed = output(
        *("benchmarks/gpu.py", path, "--device=cpu", "--seconds=0.1", "--cases=ddpg"),
        *("--json", f"--output={file}", "--set", *keys),
    )
    result = json.loads(printed)
    assert json.loads(file.read_text()) == result
    assert not [name for name, part in result.items() if "missing" in part]
    for part in ("as operations", "compiled by XLA"):
        found = result["reference vectors"][part]
        assert found["comparisons"] > 0
        assert found["above their tolerance"] == []
    learner = result["halfcheetah/ddpg0: valuerl"]
    limit = max(result["largest product, GFLOP/s"].values())
    assert learner["share"] == pytest.approx(learner["gflops"] / limit)
    assert learner["kernels"] > 0
    assert learner["peak_memory_mib"] > 0


def test_a_part_without_time_is_missing_and_the_others_are_kept():
    saved = []
    measurement = gpu.Measurement(["0"], 1.0, 1.0, lambda line: None, saved.append)
    measurement.part("first", lambda: {"figure": 1})
    late = gpu.Measurement(["0"], 1.0, 0.0, lambda line: None, saved.append)
    late.part("second", lambda: {"figure": 2})
    assert measurement.result == {"first": {"figure": 1}}
    assert saved == [measurement.result]
    assert late.result == {"second": {"missing": "no time was left"}}
    assert late.missing == ["second"]


def test_differences_of_imagination_are_relative_to_what_they_are_of():
    fine = imagination.Computed(
        targets=np.array([[1.0, 3.0], [5.0, 7.0]]),  # their deviation is 5 ** 0.5
        weights=np.array([[0.5, 0.5], [0.25, 0.75]]),
        gradient=np.array([3.0, 4.0]),
    )
    coarse = imagination.Computed(
        targets=fine.targets + 0.5,
        weights=np.array([[0.5, 0.5], [0.75, 0.25]]),
        gradient=np.array([3.0, 4.5]),
    )
    assert list(imagination.differences(fine, coarse).values()) == pytest.approx(
        [0.5 / 5**0.5, 0.25, 0.25, 0.1]
    )
    assert not any(imagination.differences(fine, fine).values())


def test_costs_are_those_relative_to_the_usual_speed_of_the_configuration(
    monkeypatch, capsys
):
    """One of its measurements is odd; the configuration has ensembles of 4."""
    ensembles, horizons, batches = (20, 20, 20, 5), (40, 20, 10, 4), (40, 20, 5)
    speeds = iter([100, *ensembles, *horizons, *batches])

    def measured(path, overrides, device, seconds):
        figures = {
            "updates_per_s": next(speeds),
            "gflop_per_update": 2.0,
            "share": 0.5,
            "first_call_s": 0.1,
        }
        return {"valuerl": figures, "worldmodel": figures, "machine": {}}

    monkeypatch.setattr(scaling, "measure", measured)
    path = ROOT / "config/experiments/goodruns/halfcheetah/steve0.json"
    monkeypatch.setattr(sys, "argv", ["scaling.py", str(path), "--json"])
    scaling.main()
    rows = json.loads(capsys.readouterr().out)["rows"]
    costs = [row["measured"] for row in rows if row["learner"] == "valuerl"]
    # The median of 100, 20 (4 members), 20 (horizon 3) and 20 (batch 512) is 20.
    assert costs == [20 / speed for speed in (*ensembles, *horizons, *batches)]
    assert all(row["expected"] == 1 for row in rows)


@pytest.mark.slow
def test_the_parts_of_an_update_add_up_to_it():
    path = "config/experiments/goodruns/halfcheetah/steve0.json"
    keys = [*TINY, "model_config.xla=false"]
    command = ["benchmarks/parts.py", path, "--json", "--seconds=0.05", "--rounds=1"]
    result = json.loads(output(*command, "--set", *keys))
    assert list(result["parts"]) == ["losses and gradients", "regulariser", "Adam"]
    assert sum(result["parts"].values()) == pytest.approx(result["update"])
    assert result["its products at the limit"] > 0


def test_each_program_of_an_update_adds_one_part_to_the_one_before_it(tmp_path):
    run, board, _ = open_model(tmp_path)
    learner = build(run, board, WorldmodelLearner)
    calls = parts.programs(learner, run.obs_dim, run.action_dim)
    variables = learner.model.variables
    with tf.GradientTape() as tape:
        penalty = weight_penalty(variables, learner.settings.weight_decay)
    of_penalty = tape.gradient(penalty, variables, unconnected_gradients="zero")
    assert any(tf.reduce_any(gradient != 0) for gradient in of_penalty)
    fits, both = calls["losses and gradients"](), calls["regulariser"]()
    for fit, added, gradient in zip(fits, of_penalty, both, strict=True):
        np.testing.assert_allclose(gradient, fit + added, rtol=1e-5, atol=1e-7)
    before = [variable.numpy() for variable in variables]
    calls["Adam"]()
    assert learner.optimizer.steps == 1
    assert any((b != v.numpy()).any() for b, v in zip(before, variables, strict=True))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("config/quickstart.json", "XLA compiles this update as a whole"),
        ("config/cpu/halfcheetah/ddpg0.json", "there is no world model"),
    ],
)
def test_an_update_without_parts_is_one_line(config, said, monkeypatch):
    monkeypatch.setattr(parts.learners, "product_limit", lambda *_: {"NumPy": 1.0})
    learner = SimpleNamespace(updater=SimpleNamespace(xla=True))
    monkeypatch.setattr(
        parts.learners, "build", lambda *_: SimpleNamespace(learner=learner)
    )
    with pytest.raises(UserError, match=said):
        parts.measure(str(ROOT / config), [], 0.01, 1)
