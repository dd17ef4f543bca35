"""The toy chain: targets by hand, a scalar implementation, the reference figures."""

import csv
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from steve import toy_chain, toy_demo
from steve.toy_chain import LAST_STATE, TERMINAL

UPDATES = (1, 500, 1000, 2000, 3000, 5000, 7500, 10000)

# Measured with the 2018 release's script, 10 trials: mean and standard deviation of
# the error at UPDATES, and the first update with a mean error below 1.
REFERENCE = {
    "basic_q": (
        [1615, 1460, 1470, 1337, 1187, 917, 751, 214],
        [132, 246, 292, 420, 505, 698, 683, 300],
        None,
    ),
    "mve_oracle": (
        [957, 329, 223, 11.4, 0.01, 0, 0, 0],
        [43, 33, 37, 2.3, 0, 0, 0, 0],
        2367,
    ),
    "steve_oracle": (
        [946, 353, 289, 178, 0.02, 0, 0, 0],
        [39, 60, 46, 31, 0.04, 0, 0, 0],
        2706,
    ),
    "mve_noisy": (
        [969, 608, 753, 1154, 1457, 1754, 1890, 1856],
        [71, 37, 56, 38, 58, 93, 73, 67],
        None,
    ),
    "steve_noisy": (
        [941, 580, 549, 575, 569, 259, 1.0, 0],
        [45, 49, 51, 63, 64, 29, 0.4, 0],
        7502,
    ),
}


# ---- Targets ----


def test_candidate_targets_add_each_members_value_to_each_models_return():
    returns = np.array([[-1.0, -1.0], [-2.0, 99.0]])  # [H+1 = 2, M = 2]
    q_reached = np.array([[[10.0, 20.0], [30.0, 40.0]], [[5.0, 6.0], [0.0, 0.0]]])
    samples = toy_chain.toy_candidate_targets(returns, q_reached)
    # -1 + 10, -1 + 20, -1 + 30, -1 + 40; -2 + 5, -2 + 6, 99 + 0, 99 + 0
    assert samples.tolist() == [[9, 19, 29, 39], [3, 4, 99, 99]]


def test_steve_example_by_hand():
    samples = np.array([[4.0, 8.0], [6.0, 8.0]])
    mu, var = toy_chain.mean_and_variance(samples)
    assert mu.tolist() == [6, 7]
    assert var.tolist() == [4, 1]  # ((-2)^2 + 2^2) / 2, ((-1)^2 + 1^2) / 2
    # 1/4 : 1/1 = 0.2 : 0.8, and 0.2 * 6 + 0.8 * 7 = 6.8
    np.testing.assert_allclose(toy_chain.toy_steve_weights(var), [0.2, 0.8], rtol=1e-7)
    np.testing.assert_allclose(toy_chain.steve_target(mu, var), 6.8, rtol=1e-7)
    assert toy_chain.td_target(mu, var) == 6
    assert toy_chain.mve_target(mu, var) == 7


def test_weights_sum_to_one_over_horizons_and_are_equal_without_variance():
    var = np.array([[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 3.0, 1e4]])
    weights = toy_chain.toy_steve_weights(var)
    np.testing.assert_allclose(weights.sum(-1), 1.0)
    np.testing.assert_allclose(weights[0], 0.25)
    # 1e8 against 1 + 1/3 + 1e-4: the candidate without variance takes all but 1.3e-8
    np.testing.assert_allclose(1 - weights[1, 1], 1.3334e-8, rtol=1e-3)


def test_horizon_zero_gives_the_td_target_for_every_method():
    samples = np.random.default_rng(0).normal(size=(5, 1, 6))
    mu, var = toy_chain.mean_and_variance(samples)
    expected = samples[:, 0].mean(-1)
    for target in (toy_chain.td_target, toy_chain.mve_target, toy_chain.steve_target):
        np.testing.assert_allclose(target(mu, var), expected)


def test_best_candidate_is_the_nearest_to_the_true_value_from_either_side():
    mu = np.array([[10.0, 13.0, 20.0], [10.0, 13.0, 20.0], [10.0, 13.0, 20.0]])
    best = toy_chain.best_candidate(mu, np.array([11.0, 12.0, 90.0]))
    assert best.tolist() == [10, 13, 20]


# ---- The chain ----


def test_a_perfect_model_walks_the_chain_and_stays_in_the_terminal_state():
    rng = np.random.default_rng(0)
    states, returns = toy_chain.sample_rollouts(np.array([97, 100]), 1, 5, 0.0, rng)
    assert states[0, :, 0].tolist() == [98, 99, 100, 101, 101, 101]
    assert returns[0, :, 0].tolist() == [-1, -2, -3, 97, 97, 97]
    assert states[1, :, 0].tolist() == [101] * 6
    assert returns[1, :, 0].tolist() == [100] * 6


def test_true_values_are_a_fixed_point_of_every_candidate_of_a_perfect_model():
    starts = np.arange(LAST_STATE + 1)
    values = np.append(toy_chain.TRUE_VALUES, 0.0)
    states, returns = toy_chain.sample_rollouts(
        starts, 1, 9, 0.0, np.random.default_rng(0)
    )
    np.testing.assert_array_equal(
        returns + values[states], np.broadcast_to(starts[:, None, None], (101, 10, 1))
    )


def test_noise_leaves_the_real_step_and_the_terminal_state_alone():
    rng = np.random.default_rng(0)
    starts = np.array([7, LAST_STATE])
    states, returns = toy_chain.sample_rollouts(starts, 50, 4, 1.0, rng)
    assert (states[0, 0] == 8).all()
    assert (returns[0, 0] == -1).all()
    assert (states[1] == TERMINAL).all()
    assert (returns[1] == 100).all()


def test_a_jump_pays_the_reward_of_the_state_left():
    rng = np.random.default_rng(0)
    states, returns = toy_chain.sample_rollouts(np.array([99]), 200, 1, 1.0, rng)
    assert (states[0, 0] == 100).all()
    assert (states[0, 1] != TERMINAL).all()  # a jump from 100 does not end the chain
    assert (returns[0, 1] == 99).all()  # -1 on leaving 99, 100 on leaving 100


def test_jumps_are_as_frequent_as_told_uniform_and_drawn_again():
    rng = np.random.default_rng(0)
    starts = np.full(20000, 10)
    states, _ = toy_chain.sample_rollouts(starts, 2, 2, 0.1, rng)
    jumped = states[:, 1] != 12
    # Uniform on 101 states: one jump in 101 goes where the chain goes. The standard
    # deviation of the share of 40000 draws is 0.0015.
    assert jumped.mean() == pytest.approx(0.1 * 100 / 101, abs=0.006)
    reached = states[:, 1][jumped]
    assert (reached.min(), reached.max()) == (0, LAST_STATE)
    assert reached.mean() == pytest.approx(50, abs=2)
    both_models = jumped.all(-1).mean()
    both_steps = (jumped & (states[:, 2] != states[:, 1] + 1)).mean()
    assert both_models == pytest.approx(0.01, abs=0.004)
    assert both_steps == pytest.approx(0.01, abs=0.004)


# ---- Learning ----


def scalar_updates(tables, starts, states, returns, method):
    """The learners in plain loops over the draws of one trial; tables[l][s]."""
    members = len(tables)
    errors = []
    for u in range(len(starts)):
        for member in range(members):
            mus, variances = [], []
            for h in range(len(states[u][member])):
                samples = []
                for m, reached in enumerate(states[u][member][h]):
                    for table in tables:
                        samples.append(returns[u][member][h][m] + table[reached])
                mu = sum(samples) / len(samples)
                mus.append(mu)
                variances.append(sum((x - mu) ** 2 for x in samples) / len(samples))
            if method == "td":
                target = mus[0]
            elif method == "mve":
                target = mus[-1]
            else:
                weights = [1 / (var + 1e-8) for var in variances]
                pairs = zip(weights, mus, strict=True)
                target = sum(w * mu for w, mu in pairs) / sum(weights)
            tables[member][starts[u][member]] = target
        error = 0.0
        for s in range(LAST_STATE + 1):
            error += (sum(table[s] for table in tables) / members - s) ** 2
        errors.append(error / (LAST_STATE + 1))
    return errors


@pytest.mark.parametrize(
    ("method", "target", "models", "horizon"),
    [
        ("td", toy_chain.td_target, 1, 0),
        ("mve", toy_chain.mve_target, 2, 3),
        ("steve", toy_chain.steve_target, 2, 3),
    ],
)
def test_vectorised_updates_equal_a_direct_scalar_implementation(
    method, target, models, horizon
):
    rng = np.random.default_rng(3)
    members, trials, updates = 3, 4, 60
    tables = toy_chain.initial_tables(trials, members, rng)
    starts = rng.integers(80, TERMINAL, (updates, members, trials))
    states, returns = toy_chain.sample_rollouts(starts, models, horizon, 0.1, rng)
    scalar = tables.transpose(0, 2, 1).tolist()  # [T][L][S]
    history = toy_chain.update_tables(tables, starts, states, returns, target)
    for trial in range(trials):
        errors = scalar_updates(
            scalar[trial],
            starts[..., trial].tolist(),
            states[:, :, trial].tolist(),
            returns[:, :, trial].tolist(),
            method,
        )
        np.testing.assert_allclose(history.value_error[:, trial], errors, rtol=1e-9)
        np.testing.assert_allclose(tables[trial].T, scalar[trial], rtol=1e-9)


def test_later_members_see_what_earlier_ones_were_set_to():
    tables = np.zeros((1, TERMINAL + 1, 2))
    tables[0, 7] = [20.0, 40.0]
    starts = np.array([[[6], [5]]])  # [U, L, T]: member 0 in state 6, then 1 in 5
    states, returns = toy_chain.sample_rollouts(
        starts, 1, 0, 0.0, np.random.default_rng(0)
    )
    history = toy_chain.update_tables(
        tables, starts, states, returns, toy_chain.td_target
    )
    assert tables[0, 6].tolist() == [29, 0]  # -1 + (20 + 40) / 2
    assert tables[0, 5].tolist() == [0, 13.5]  # -1 + (29 + 0) / 2
    # (29 - 6)^2 = 529 and (13.5 - 5)^2 = 72.25; H = 0 has one candidate
    assert history.target_error[0, :, 0].tolist() == [(529 + 72.25) / 2] * 4


def test_recorded_target_errors_are_those_of_td_mve_used_and_best():
    tables = np.zeros((1, TERMINAL + 1, 2))
    tables[0, 51] = [40.0, 60.0]  # T_0 = {39, 59}: mu 49, var 100
    tables[0, 52] = [52.0, 72.0]  # T_1 = {50, 70}: mu 60, var 100
    starts = np.array([[[50], [50]]])
    states, returns = toy_chain.sample_rollouts(
        starts, 1, 1, 0.0, np.random.default_rng(0)
    )
    history = toy_chain.update_tables(
        tables, starts, states, returns, toy_chain.steve_target
    )
    # Equal variances: the target is (49 + 60) / 2 = 54.5. Errors against 50.
    np.testing.assert_allclose(history.target_error[0, :, 0], [1, 100, 20.25, 1])
    np.testing.assert_allclose(tables[0, 50], [54.5, 54.5])


def test_initial_tables_are_integers_from_0_to_100_and_0_at_the_terminal_state():
    tables = toy_chain.initial_tables(20, 8, np.random.default_rng(0))
    assert tables.shape == (20, 102, 8)
    assert set(np.unique(tables[:, :TERMINAL])) == set(range(101))
    assert not tables[:, TERMINAL].any()


def test_value_error_is_that_of_the_mean_table():
    tables = np.zeros((2, TERMINAL + 1, 2))
    tables[:, :TERMINAL] = toy_chain.TRUE_VALUES[:, None]
    tables[0] += [3.0, -3.0]  # mean 0, at the terminal state too
    tables[1] += [5.0, 1.0]  # mean 3
    tables[1, TERMINAL] = 1e6  # is not counted
    assert toy_chain.value_error(tables).tolist() == [0, 9]


@pytest.mark.parametrize("steps", [3, 7])
def test_fewer_steps_are_a_prefix_of_more(steps, monkeypatch):
    monkeypatch.setattr(toy_chain, "STATES_PER_DRAW", 2 * 3 * 3 * 2 * 5)  # 5 updates
    learner = toy_chain.ToyLearner("x", 2, 2, 2, 0.1, toy_chain.steve_target)
    short = toy_chain.learn(learner, 3, steps, np.random.default_rng(1))
    long = toy_chain.learn(learner, 3, 23, np.random.default_rng(1))
    assert short.value_error.shape == (steps, 3)
    np.testing.assert_array_equal(short.value_error, long.value_error[:steps])
    np.testing.assert_array_equal(short.target_error, long.target_error[:steps])
    assert np.isfinite(long.target_error).all()


def test_the_six_learners_are_those_of_the_specification():
    described = {
        x.title: (x.members, x.models, x.horizon, x.noise, x.target)
        for x in toy_chain.learners(5, 8, 0.1)
    }
    assert described == {
        "basic Q": (1, 1, 0, 0.0, toy_chain.td_target),
        "ensemble Q": (8, 1, 0, 0.0, toy_chain.td_target),
        "MVE-oracle": (8, 1, 5, 0.0, toy_chain.mve_target),
        "MVE-noisy": (8, 8, 5, 0.1, toy_chain.mve_target),
        "STEVE-oracle": (8, 1, 5, 0.0, toy_chain.steve_target),
        "STEVE-noisy": (8, 8, 5, 0.1, toy_chain.steve_target),
    }


def test_alike_models_give_the_targets_of_one():
    rng = np.random.default_rng(0)
    q_reached = rng.normal(size=(4, 6, 1, 8))
    returns = rng.normal(size=(4, 6, 1))
    one = toy_chain.mean_and_variance(
        toy_chain.toy_candidate_targets(returns, q_reached)
    )
    samples = toy_chain.toy_candidate_targets(
        returns.repeat(8, axis=-1), q_reached.repeat(8, axis=-2)
    )
    np.testing.assert_allclose(toy_chain.mean_and_variance(samples), one)


def test_first_below_counts_updates_from_one():
    assert toy_chain.first_below(np.array([3.0, 1.0, 0.5, 2.0])) == 3
    assert toy_chain.first_below(np.array([3.0, 1.0])) is None


# ---- The command ----


def read_csv(path: Path) -> tuple[list[str], np.ndarray]:
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    return header, np.array(rows, dtype=float)


def small_call(out: Path, *more: str) -> int:
    options = ["--trials", "3", "--steps", "13", "--horizon", "2", "--ensemble", "2"]
    return toy_demo.main([*options, "--out", str(out), *more])


def test_a_small_call_writes_csv_files_and_figures_and_prints_the_table(
    tmp_path, capsys
):
    out = tmp_path / "deep" / "folder"
    assert small_call(out) == 0
    names = toy_demo.file_names(toy_chain.learners(2, 2, 0.1))
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert len(names) == 6 + 2 + 4

    header, values = read_csv(out / "mve_noisy.csv")
    assert header == ["update", "mean", "std", "trial_0", "trial_1", "trial_2"]
    assert values[:, 0].tolist() == list(range(1, 14))
    np.testing.assert_allclose(values[:, 1], values[:, 3:].mean(1), rtol=1e-5)
    np.testing.assert_allclose(values[:, 2], values[:, 3:].std(1), rtol=1e-3)

    header, values = read_csv(out / "steve_noisy_targets.csv")
    assert header[:3] == ["update", "td_mean", "td_std"]
    assert header[-2:] == ["best_mean", "best_std"]
    best = values[:, header.index("best_mean")]
    assert (best <= values[:, header.index("td_mean")]).all()
    assert (best <= values[:, header.index("mve_mean")]).all()

    for figure in ("value_error", "target_error"):
        assert (out / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
        assert (out / f"{figure}.png").read_bytes().startswith(b"\x89PNG")

    printed = capsys.readouterr().out
    assert str(out) in printed
    first_words = [line.split()[0] for line in printed.splitlines() if line.strip()]
    assert first_words.count("1") == first_words.count("13") == 1


def test_the_seed_decides_every_draw(tmp_path):
    for folder, seed in (("a", "4"), ("b", "4"), ("c", "5")):
        assert small_call(tmp_path / folder, "--seed", seed) == 0
    contents = [(tmp_path / f / "steve_noisy.csv").read_bytes() for f in "abc"]
    assert contents[0] == contents[1] != contents[2]


def test_existing_results_are_kept_unless_told(tmp_path, capsys):
    kept = tmp_path / "mve_oracle.csv"
    kept.write_text("made by the user")
    assert small_call(tmp_path) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "mve_oracle.csv" in message
    assert "--overwrite" in message
    assert [path.name for path in tmp_path.iterdir()] == ["mve_oracle.csv"]
    assert kept.read_text() == "made by the user"

    assert small_call(tmp_path, "--overwrite") == 0
    assert kept.read_text().startswith("update,mean,std")


@pytest.mark.parametrize(
    "wrong",
    [
        ["--steps", "0"],
        ["--trials", "-1"],
        ["--trials", "2.5"],
        ["--seed", "-3"],
        ["--horizon", "-1"],
        ["--ensemble", "0"],
        ["--noise", "1.5"],
        ["--noise", "nan"],
        ["--noise", "much"],
        ["--stpes", "10"],
        ["extra"],
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(wrong, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        toy_demo.main(["--out", str(tmp_path), *wrong])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert small_call(tmp_path / "file" / "folder") == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "basic Q" not in captured.out  # known before the work, not after it


def test_a_failed_write_is_one_line(tmp_path, capsys, monkeypatch):
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(toy_demo, "atomic_write", full)
    assert small_call(tmp_path) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "No space left on device" in message


def test_matplotlib_is_imported_only_to_draw_and_pyplot_never(tmp_path):
    code = (
        "import sys\n"
        "from steve import toy_demo\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"assert toy_demo.main(['--steps', '2', '--out', {str(tmp_path)!r}]) == 0\n"
        "assert 'matplotlib' in sys.modules\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    root = Path(toy_demo.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_figures_show_every_learner_and_every_target():
    histories = {
        x.title: toy_chain.learn(x, 2, 30, np.random.default_rng(0))
        for x in toy_chain.learners(2, 2, 0.1)
    }
    axes = toy_demo.value_error_figure(histories).axes[0]
    assert [line.get_label() for line in axes.lines] == list(histories)
    drawn = axes.lines[2]
    assert drawn.get_xdata().tolist() == list(range(1, 31))
    np.testing.assert_allclose(
        drawn.get_ydata(), histories["MVE-oracle"].value_error.mean(1)
    )

    steve = {title: x for title, x in histories.items() if "STEVE" in title}
    panels = toy_demo.target_error_figure(steve).axes
    assert len(panels) == 2
    for panel, history in zip(panels, steve.values(), strict=True):
        labels = [line.get_label() for line in panel.lines]
        assert labels == ["TD", "MVE", "STEVE", "best candidate"]
        # 30 updates make windows of one update each
        np.testing.assert_allclose(
            panel.lines[3].get_ydata(), history.target_error[:, 3].mean(1)
        )


# ---- The reference figures: the default call, about 12 s ----


@pytest.fixture(scope="module")
def default_call(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy_demo")
    assert toy_demo.main(["--out", str(out)]) == 0
    return out


def assert_agree(mean, std, other_mean, other_std):
    """Within three standard deviations of both, plus 1."""
    allowed = 3 * np.hypot(std, other_std) + 1.0
    assert (np.abs(np.subtract(mean, other_mean)) <= allowed).all()


@pytest.mark.parametrize("name", REFERENCE)
def test_default_call_reproduces_the_reference_figures(default_call, name):
    _, values = read_csv(default_call / f"{name}.csv")
    means, stds, first = REFERENCE[name]
    rows = values[np.array(UPDATES) - 1]
    assert_agree(rows[:, 1], rows[:, 2], means, stds)
    reached = toy_chain.first_below(values[:, 1])
    if first is None:
        assert reached is None
    else:
        assert reached == pytest.approx(first, rel=0.1)


def scalar_ensemble_q(rng: random.Random, members: int, steps: int) -> list[float]:
    """Ensemble Q of one trial, written out: the error at UPDATES."""
    tables = [[rng.randint(0, 100) for _ in range(101)] + [0] for _ in range(members)]
    errors = []
    for update in range(1, steps + 1):
        for table in tables:
            s = rng.randint(0, 100)
            reward = 100 if s == 100 else -1
            table[s] = reward + sum(q[s + 1] for q in tables) / members
        if update in UPDATES:
            means = [sum(q[s] for q in tables) / members for s in range(101)]
            errors.append(sum((q - s) ** 2 for s, q in enumerate(means)) / 101)
    return errors


def test_ensemble_q_of_the_default_call_agrees_with_a_scalar_implementation(
    default_call,
):
    _, values = read_csv(default_call / "ensemble_q.csv")
    rows = values[np.array(UPDATES) - 1]
    rng = random.Random(0)
    direct = np.array([scalar_ensemble_q(rng, 8, 10000) for _ in range(5)])
    assert_agree(rows[:, 1], rows[:, 2], direct.mean(0), direct.std(0))
