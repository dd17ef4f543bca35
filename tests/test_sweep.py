"""sweep.py as a user calls it: its arguments, a grid on this machine, and after it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import support_env
from support import PROJECT, QUICKSTART, make_sweep
from test_main import DDPG, TINY, environment

from steve import main, sweep
from steve.settings import loading
from steve.storage.folders import Folders
from steve.storage.record import write_json
from steve.sweeps import engines, pool, record
from steve.sweeps.record import SLURM, Sweep
from steve.util import UserError

DEADLINE = 120.0
LOCAL = ["--engine", "local", "--gpus-per-run", "0"]
FAILED_LOG = (
    "== started 2030-01-01T00:00:00Z on host by job 7_0\n"
    "the reason\n"
    "== ended 2030-01-01T00:00:00Z with exit code 1\n"
)


def said(capsys, *arguments: object) -> tuple[int, str]:
    """Exit code and all that a call says, in this process."""
    code = sweep.main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return code, shown.out + shown.err


def child_with(word: str, parent: int) -> int:
    """The process id of the child whose command line has the word."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
    return next(int(pid) for pid, line in lines.items() if word in line)


def test_a_sweep_of_three_runs_one_killed_on_the_way_and_resumed(
    tmp_path, capsys, monkeypatch
):
    """Three runs, two at a time; the others end, a retry finishes the killed one."""
    settings = [*TINY[1:], *DDPG, "policy_config.bayesian=null", "total_frames=60"]
    settings += ["evaluator_config.count=0", f"output_root={tmp_path}"]
    settings += [f"env.name={support_env.NAME}", "env.module=support_env"]
    grid = [
        QUICKSTART,
        *LOCAL,
        "--max-parallel",
        2,
        "--seeds",
        "0-2",
        "--set",
        *settings,
    ]
    name = "quickstart-seed0"
    record = tmp_path / support_env.NAME / name / "log" / "run.json"
    with subprocess.Popen(
        [sys.executable, "sweep.py", *map(str, grid)],
        cwd=PROJECT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as pool:
        deadline = time.monotonic() + DEADLINE
        while not record.exists():
            assert pool.poll() is None, pool.communicate()[0]
            assert time.monotonic() < deadline, "not started in time"
            time.sleep(0.02)
        os.kill(child_with(name, pool.pid), signal.SIGKILL)
        output = pool.communicate(timeout=DEADLINE)[0]
    assert pool.returncode == 1
    assert f"{name} failed with exit code 137" in output
    assert output.count(" finished") == 2

    monkeypatch.chdir(PROJECT)
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    _, status = said(capsys, "status", tmp_path)
    assert status.endswith("3 runs: 2 finished, 1 failed\n")
    assert (
        f"    killed by SIGKILL; see {tmp_path / 'sweeps' / '1' / '0.txt'}\n" in status
    )

    assert said(capsys, "retry", tmp_path)[0] == 0
    starts = json.loads(record.read_text())["starts"]
    assert [start["resumed"] for start in starts] == [False, True]
    assert said(capsys, "status", tmp_path)[1].endswith("3 runs: 3 finished\n")
    again = (0, "3 of 3 runs: finished already\nnothing is left to start\n")
    assert said(capsys, *grid) == again


# The command line


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", [3]), ("0-3", [0, 1, 2, 3]), ("0,2,5-7,5", [0, 2, 5, 6, 7])],
)
def test_seeds_are_numbers_and_ranges(text, seeds):
    assert sweep.seeds(text) == seeds


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([QUICKSTART, "--seeds", "3-0"], "ends before it begins"),
        ([QUICKSTART, "--seeds", "a"], "'a' is not an integer"),
        ([QUICKSTART, "--max-parallel", "0"], "'0' is not an integer"),
        ([QUICKSTART, "--gpus-per-run", "3"], "invalid choice"),
        ([QUICKSTART, "--endless", "--frames", "9000"], "--endless and --frames"),
        ([QUICKSTART, "--endless", "--hours", "1"], "--endless and --hours"),
        ([QUICKSTART, "--updates-per-s", "6"], "--updates-per-s only says"),
        ([QUICKSTART, "--dry-run", "--updates-per-s=-3"], "'-3' is not a number in"),
        ([QUICKSTART, *LOCAL, "--time", "1"], "--time is for --engine slurm"),
        ([QUICKSTART, *LOCAL, "--no-submit"], "--no-submit is for --engine slurm"),
        (["config/experiments"], "has no limit"),
        (["config/none.json", *LOCAL], "config/none.json"),
        (["status"], "required: OUTPUT_ROOT"),
        (["status", "config"], "config holds no sweep"),
        (["retry", "config"], "config holds no sweep"),
        (["cancel", "config"], "config holds no sweep"),
    ],
)
def test_a_mistake_is_one_line(arguments, text, capsys, monkeypatch):
    monkeypatch.chdir(PROJECT)
    try:
        code = sweep.main(arguments)
    except SystemExit as ended:
        code = ended.code
    error = capsys.readouterr().err
    assert code == 2
    assert text in error
    assert error.count("\n") == 1
    assert not (PROJECT / "config" / "sweeps").exists()


def test_the_dry_run_shows_the_papers_132_commands_the_script_and_the_cost(
    capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(PROJECT)
    code, shown = said(
        *(capsys, "config/experiments", "--frames", 1_000_000, "--dry-run"),
        *("--partition", "gpu", "--time", "24:00:00", "--max-parallel", 20),
        *("--updates-per-s", 6, "--set", f"output_root={tmp_path / 'out'}"),
    )
    assert code == 0
    lines = shown.splitlines()
    assert sum(line.startswith("python main.py ") for line in lines) == 132
    assert lines[0] == (
        "python main.py config/experiments/ablations/baselines/ensemble_mve_tdk0.json "
        f"0 --resume-or-start --frames 1000000 --set output_root={tmp_path / 'out'}"
    )
    assert "#SBATCH --array=0-131%20" in lines
    # 3,960,000 updates / 6 per second = 183.3 hours; 12 of the 132 have no pace.
    assert "120 of 132 runs have a pace" in shown
    assert "183.3 hours each" in shown
    assert "22,000 hours of one machine in all" in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("seeds", "rate", "each", "in_all"),
    [
        ("0-2", 100, "1.6 minutes", "4.8 minutes"),  # 9,500 / 100 = 95 seconds
        ("0-99", 100, "1.6 minutes", "2.6 hours"),
        ("0", 500, "19 seconds", "19 seconds"),
    ],
)
def test_a_cost_is_said_in_its_own_unit(capsys, monkeypatch, seeds, rate, each, in_all):
    monkeypatch.chdir(PROJECT)
    keys = ("--seeds", seeds, "--dry-run", "--updates-per-s", rate)
    shown = said(capsys, QUICKSTART, *LOCAL, *keys)[1]
    assert f"  {each} each (9,500 updates)\n" in shown
    assert f"  {in_all} of one machine in all\n" in shown


# Slurm


def test_what_is_submitted_is_kept_and_not_submitted_twice(
    tmp_path,
    capsys,
    stand_in,
):
    calls = stand_in("sbatch", "echo 7")
    script = tmp_path / "sweeps" / "1" / "job.sh"
    words = [QUICKSTART, "--seeds", "0-1", "--set", f"output_root={tmp_path}"]
    code, shown = said(capsys, *words)
    assert code == 0
    assert f"submitted 2 runs as job 7: {script}" in shown
    assert "quickstart-seed1" in script.read_text()
    stand_in("squeue", f"echo '0\tPENDING\t7_0\tPriority\t/\t{script}'")
    code, shown = said(capsys, *words)
    assert "1 of 2 runs: waiting already" in shown
    assert "submitted 1 run as job 7" in shown
    assert len(calls.read_text().splitlines()) == 2
    words[2] = "2"
    assert sweep.main(words, program="steve sweep") == 0
    assert "to follow them: steve sweep status " in capsys.readouterr().out


def test_more_runs_than_an_array_takes_are_several_arrays(tmp_path, capsys, stand_in):
    calls = stand_in("sbatch", "echo 7")
    stand_in("scontrol", "echo 'MaxArraySize = 2'")
    words = [QUICKSTART, "--seeds", "0-4", "--set", f"output_root={tmp_path}"]
    code, shown = said(capsys, *words, "--max-parallel", 2)
    assert code == 2
    assert "5 runs are 3 Slurm arrays, each of at most 2" in shown
    assert not list(tmp_path.glob("sweeps/[0-9]*"))

    assert said(capsys, *words, "--max-parallel", 4)[0] == 0
    scripts = [tmp_path / "sweeps" / str(n) / "job.sh" for n in (1, 2, 3)]
    submitted = [line.split()[-1] for line in calls.read_text().splitlines()]
    assert submitted == list(map(str, scripts))
    texts = [script.read_text() for script in scripts]
    arrays = [text.partition("--array=")[2].splitlines()[0] for text in texts]
    assert arrays == ["0-1%2", "0-1%1", "0-0%1"]
    names = [run.name for sweep in record.load_all(tmp_path) for run in sweep.runs]
    assert [name[-5:] for name in names] == [f"seed{n}" for n in range(5)]

    stand_in("squeue", f"echo '0\tPENDING\t7_0\tPriority\t/\t{scripts[2]}'")
    status = said(capsys, "status", tmp_path)[1]
    assert status.endswith("5 runs: 1 waiting, 4 stopped\n")


def test_a_script_can_be_edited_before_it_is_submitted(
    tmp_path,
    capsys,
    stand_in,
):
    calls = stand_in("sbatch", "echo 7")
    words = [QUICKSTART, "--no-submit", "--set", f"output_root={tmp_path}"]
    code, shown = said(capsys, *words)
    assert code == 0
    assert shown == f"written; to submit it: sbatch {tmp_path}/sweeps/1/job.sh\n"
    assert not calls.exists()


def make_slurm_sweep(root: Path) -> Sweep:
    """Three runs: one failed, one waits (once squeue says so), one never started."""
    made = make_sweep(root, "failed", "waits", "new", engine=SLURM)
    made.script.touch()
    made.log(0).write_text(FAILED_LOG)
    return made


def test_status_retry_and_cancel_of_jobs(tmp_path, capsys, stand_in):
    made = make_slurm_sweep(tmp_path)
    stand_in("squeue", f"echo '1\tPENDING\t7_1\tPriority\t/\t{made.script}'")
    submitted, cancelled = stand_in("sbatch", "echo 8"), stand_in("scancel")

    code, shown = said(capsys, "status", tmp_path)
    assert code == 0
    _, first, reason, second, third, counts = shown.splitlines()
    assert first.split()[1] == "failed"
    assert reason == f"    the reason; see {made.log(0)}"
    assert "  waiting (Priority)  " in second
    assert "  stopped (not started)  " in third
    assert counts == "3 runs: 1 waiting, 1 failed, 1 stopped"

    assert said(capsys, "retry", tmp_path)[0] == 0
    assert submitted.read_text() == f"--parsable --array=0 {made.script}\n"
    assert said(capsys, "cancel", tmp_path)[0] == 0
    assert cancelled.read_text() == "7_1\n"


def test_a_run_that_an_earlier_sweep_has_queued_is_not_retried(
    tmp_path, capsys, stand_in
):
    earlier, _ = make_slurm_sweep(tmp_path), make_slurm_sweep(tmp_path)
    stand_in("squeue", f"echo '0\tPENDING\t7_0\tPriority\t/\t{earlier.script}'")
    submitted = stand_in("sbatch", "echo 8")
    name = earlier.runs[0].name
    lines = f"{name}: is queued already, by another sweep\n"
    lines += "there is no failed run to start\n"
    assert said(capsys, "retry", tmp_path) == (0, lines)
    assert not submitted.exists()


def test_status_without_an_answer_of_squeue_goes_by_the_files(
    tmp_path,
    capsys,
    stand_in,
):
    make_slurm_sweep(tmp_path)
    stand_in("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    code, shown = said(capsys, "status", tmp_path)
    assert code == 0
    assert "Unable to contact slurm controller: what is queued is not known" in shown
    assert "1 failed, 2 stopped" in shown
    assert said(capsys, "cancel", tmp_path)[0] == 2


def test_a_damaged_record_is_passed_over_or_refused_in_one_line(
    tmp_path, capsys, stand_in
):
    """What starts runs refuses: it cannot know which of them are queued."""
    made = make_slurm_sweep(tmp_path)
    damaged = make_sweep(tmp_path, "lost", engine=SLURM)
    damaged.script.touch()
    path = damaged.folder / "sweep.json"
    path.write_text("{")
    stand_in("squeue", f"echo '0\tPENDING\t8_0\tPriority\t/\t{damaged.script}'")
    stand_in("sbatch", "echo 9")
    cancelled = stand_in("scancel")

    code, shown = said(capsys, "status", tmp_path)
    assert code == 0
    assert shown.count(f"{path} cannot be read") == 1
    assert "\n3 runs: 1 failed, 2 stopped\n" in shown
    again = (QUICKSTART, "--set", f"output_root={tmp_path}")
    for call in (("retry", tmp_path), again):
        code, shown = said(capsys, *call)
        assert (code, shown.count("\n")) == (2, 1)
        assert f"{path} cannot be read" in shown
        assert "rename its folder, 2, once no job of it is queued" in shown
    assert said(capsys, "cancel", tmp_path)[0] == 0
    assert cancelled.read_text() == "8_0\n"

    damaged.folder.rename(tmp_path / "sweeps" / "2.damaged")
    assert said(capsys, "retry", tmp_path)[0] == 0
    made.folder.rename(tmp_path / "sweeps" / "1.damaged")
    (tmp_path / "sweeps" / "2.damaged").rename(damaged.folder)
    code, shown = said(capsys, "status", tmp_path)
    assert (code, shown.count("\n")) == (2, 1)


# A local pool


def test_cancel_ends_the_pool_that_is_at_work(tmp_path, capsys):
    make_sweep(tmp_path, "run")
    assert "no pool is at work" in said(capsys, "cancel", tmp_path)[1]
    code = (
        "import sys, pathlib, signal\n"
        "from steve.sweeps import record\n"
        "with record.claimed(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); signal.pause()"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    with contextlib.ExitStack() as ends:
        pool = subprocess.Popen(words, cwd=PROJECT, stdout=subprocess.PIPE)
        ends.enter_context(pool)
        ends.callback(pool.kill)  # a failed assertion waits for nobody
        assert pool.stdout.readline() == b"held\n"
        assert said(capsys, "status", tmp_path)[1].endswith("1 run: 1 waiting\n")
        assert f"process {pool.pid}" in said(capsys, "cancel", tmp_path)[1]
        assert pool.wait(timeout=DEADLINE) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("error", "code", "said_"),
    [
        (PermissionError, 2, "sweep.py: the pool is process 7 of another user\n"),
        (ProcessLookupError, 0, "nothing is queued, and no pool is at work\n"),
    ],
)
def test_a_pool_that_cannot_be_told_to_end_is_one_line(
    tmp_path, capsys, monkeypatch, error, code, said_
):
    make_sweep(tmp_path, "run")
    pool = record.Holder(7, os.uname().nodename, 0.0)

    def kill(pid, number):
        raise error

    monkeypatch.setattr(record, "holder", lambda root: pool)
    monkeypatch.setattr(os, "kill", kill)
    assert said(capsys, "cancel", tmp_path) == (code, said_)


# A search


SEARCH = ("--engine", "local", "--gpus-per-run", "0", "--optuna", "3")
ON_SLURM = ("--gpus-per-run", "0", "--optuna", "3", "--max-parallel", "2")
VALUES = ("--search", "policy_config.learning_rate=1e-4:1e-2:log")


def finish(arguments: Sequence[str]) -> None:
    """Does as if main.py had reached its limit; the score is the learning rate."""
    parsed = main.parse_arguments(arguments)
    loaded = loading.load(parsed.config, overrides=parsed.set)
    folders = Folders.of(loaded.config, parsed.name)
    folders.log.mkdir(parents=True)
    write_json(folders.hyperparameters, loaded.merged)
    rate = loaded.config.policy_config.learning_rate
    folders.scores.write_text(f"hours,epochs,frames,score\n0,1,9,{rate}\n")
    reached = {"frames": loaded.config.total_frames, "hours": 0.1}
    write_json(folders.run, {"starts": [{}], "finished": reached})


class EndedPool:
    """Ends each run at once; its score is worth its learning rate."""

    fails = ""
    stopped = False

    def __init__(self, runs, slots, tell):
        self._runs = runs

    def run(self):
        for sweep_, index in self._runs:
            run = sweep_.runs[index]
            if run.experiment.endswith(self.fails or "none"):
                text = "== started x on y\nno\n== ended x with exit code 1\n"
                sweep_.log(index).write_text(text)
                continue
            finish(run.arguments)


@pytest.fixture
def call(tmp_path, monkeypatch):
    """The words of a local search of three trials, each of which ends at once."""
    pytest.importorskip("optuna")
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(pool, "Pool", EndedPool)
    return QUICKSTART, *SEARCH, *VALUES, "--set", f"output_root={tmp_path}"


def test_a_search_runs_its_trials_and_names_the_best(
    call, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(EndedPool, "fails", "-trial1")
    code, shown = said(capsys, *call)
    assert code == 0
    *trials, best = shown.splitlines()
    assert len(trials) == 3
    assert trials[1].endswith(": failed")
    values = {float(line.rpartition(" ")[2]): line for line in (trials[0], trials[2])}
    expected = values[max(values)].partition(": ")[2]
    assert best == f"the best: {expected}"
    code, again = said(capsys, *call)
    assert (code, again) == (0, f"{best}\n")
    assert "3 runs: 2 finished, 1 failed" in said(capsys, "status", tmp_path)[1]


def test_values_to_search_may_be_given_one_by_one(capsys):
    words = [QUICKSTART, "--search", "a=1:2", "--search", "b=3:4", "c=5:6"]
    assert sweep.parse_arguments(words).search == ["a=1:2", "b=3:4", "c=5:6"]


def test_what_a_second_ctrl_c_ends_is_continued(call, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(EndedPool, "fails", "-trial0")
    monkeypatch.setattr(EndedPool, "stopped", True)
    code, shown = said(capsys, *call)
    assert (code, shown) == (0, "stopped; the same call continues the search\n")
    monkeypatch.setattr(EndedPool, "fails", "")
    monkeypatch.setattr(EndedPool, "stopped", False)
    code, shown = said(capsys, *call)
    assert code == 0
    assert "failed" not in shown
    assert shown.count("auc") == 4  # three trials and the best


def test_a_trial_whose_values_contradict_each_other_has_failed(
    call, tmp_path, capsys, monkeypatch
):
    """Both ends of the ranges may be trained; not each pair between them."""
    original = loading.load

    def load(path, *, overrides=(), **keys):
        rates = [float(v.partition("=")[2]) for v in overrides if "rate" in v]
        if any(1e-4 < rate < 1e-2 for rate in rates[:1]) and len(found) < 1:
            found.append(rates[0])
            raise UserError("it must be at most 6, not 7")
        return original(path, overrides=overrides, **keys)

    found = []
    monkeypatch.setattr(loading, "load", load)
    code, shown = said(capsys, *call)
    assert code == 0
    assert "trial 0: it must be at most 6, not 7; nothing was started\n" in shown
    assert "-trial2: trial 2" in shown
    assert said(capsys, *call)[1] == f"{shown.splitlines()[-1]}\n"


def test_a_trial_whose_output_is_of_another_configuration_stays_as_it_is(
    call, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(EndedPool, "fails", "-trial0")
    monkeypatch.setattr(EndedPool, "stopped", True)
    assert said(capsys, *call)[0] == 0
    changed = tmp_path / "InvertedPendulum-v5" / "quickstart-trial0" / "log"
    changed.mkdir(parents=True)
    write_json(changed / "hps.json", {"seed": 9})
    monkeypatch.setattr(EndedPool, "stopped", False)
    code, shown = said(capsys, *call)
    assert code == 2
    assert "the configuration differs from that of the run" in shown
    shutil.rmtree(changed.parent)
    monkeypatch.setattr(EndedPool, "fails", "")
    code, shown = said(capsys, *call)
    assert code == 0
    assert "quickstart-trial0: trial 0" in shown


class Element:
    """An element of a search's array, up to where it becomes main.py.

    Calls of `run` act as Slurm does: again for the same element after a kill.
    """

    def __init__(self, monkeypatch, capsys):
        self._capsys = capsys
        self._finishes = True
        self.rates: list[str] = []  # of the runs that were started
        monkeypatch.setattr(os, "execv", self._become_main)

    def _become_main(self, python, words):
        assert words[:2] == [python, str(PROJECT / "main.py")]
        parsed = main.parse_arguments(words[2:])
        assert parsed.resume_or_start
        self.rates.append(parsed.set[-1].partition("=")[2])
        if self._finishes:
            finish(words[2:])
        raise SystemExit(0)  # nothing comes back from exec

    def run(self, made, index, finishes=True):
        """What it says; the rate of its run is added to `rates`."""
        self._finishes = finishes
        with contextlib.suppress(SystemExit):
            sweep.main(made.runs[index].arguments)
        shown = self._capsys.readouterr()
        return shown.out + shown.err


def test_elements_of_an_array_share_a_search(tmp_path, capsys, stand_in, monkeypatch):
    """Each starts one trial, and one that was killed continues its own."""
    pytest.importorskip("optuna")
    monkeypatch.chdir(PROJECT)
    calls = stand_in("sbatch", "echo 7")
    root = tmp_path / "output"
    call = (QUICKSTART, *ON_SLURM, *VALUES, "--set", f"output_root={root}")
    code, shown = said(capsys, *call)
    assert code == 0
    assert "submitted 3 runs as job 7" in shown
    (made,) = record.load_all(root)
    script = made.script.read_text()
    assert "--array=0-2%2" in script
    assert f"{sys.executable} {PROJECT / 'sweep.py'} " in script
    assert said(capsys, "status", root)[1].endswith("3 runs: 3 stopped\n")

    element = Element(monkeypatch, capsys)
    shown = element.run(made, 1, finishes=False)  # killed
    first = element.rates[-1]
    assert shown == f"trial 1: policy_config.learning_rate={first}\n"
    damaged = root / made.runs[1].name / "log" / "hps.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    element.run(made, 0)  # in spite of what another one finds
    shutil.rmtree(damaged.parents[1])
    element.run(made, 1, finishes=False)  # queued again
    assert element.rates[-1] == first
    stand_in("squeue", f"echo '1\tRUNNING\t7_1\tNone\t/\t{made.script}'")
    code, shown = said(capsys, *call)  # after a scancel, say, of element 2
    assert code == 0
    assert "1 of 2 runs: running already\nsubmitted 1 run as job 7" in shown
    assert f"the best so far: trial 0, policy_config.learning_rate={first}" not in shown
    assert "the best so far: trial 0, policy_config.learning_rate=" in shown
    again = record.load_all(root)[1]
    assert [run.experiment for run in again.runs] == ["quickstart-trial2"]

    stand_in("squeue")
    element.run(made, 1)
    element.run(again, 0)
    assert element.run(made, 0) == "trial 0 has ended already\n"
    assert len(element.rates) == 5
    assert len(set(element.rates)) == 3
    code, shown = said(capsys, *call)
    best = max(map(float, element.rates))
    assert (code, shown.count("\n")) == (0, 1)
    assert float(shown.partition("learning_rate=")[2].partition(":")[0]) == best
    assert len(calls.read_text().splitlines()) == 2
    assert said(capsys, "status", root)[1].endswith("3 runs: 3 finished\n")


def test_a_search_that_slurm_had_begun_continues_on_this_machine(
    tmp_path, capsys, stand_in, monkeypatch
):
    pytest.importorskip("optuna")
    stand_in("sbatch", "echo 7")
    monkeypatch.chdir(PROJECT)
    root = tmp_path / "output"
    rest = (*VALUES, "--set", f"output_root={root}")
    said(capsys, QUICKSTART, *ON_SLURM, *rest)
    (made,) = record.load_all(root)
    element = Element(monkeypatch, capsys)
    element.run(made, 0)
    element.run(made, 2, finishes=False)
    monkeypatch.setattr(pool, "Pool", EndedPool)
    code, shown = said(capsys, QUICKSTART, *SEARCH, *rest)
    assert code == 0
    assert f"-trial2: trial 2, policy_config.learning_rate={element.rates[1]}" in shown
    assert shown.splitlines()[-1].startswith("the best: trial ")
    assert said(capsys, "status", root)[1].endswith("3 runs: 3 finished\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*SEARCH], "name what is searched by --search"),
        ([*SEARCH, *VALUES, "--seeds", "0-2"], "--optuna and --seeds contradict"),
        (["--optuna", "3", *VALUES], "--optuna with Slurm: give --max-parallel"),
        ([*ON_SLURM, "--search", "env.name=Hopper-v5,Swimmer-v5"], "not name folders"),
        ([*ON_SLURM, *VALUES, "--dry-run"], "--optuna and --dry-run contradict"),
        ([*SEARCH[:4], *VALUES], "--search is for --optuna N"),
        ([*SEARCH, "--search", "policy_config.hidden_dim=0:8"], "hidden_dim must be"),
        ([*SEARCH, "--search", "policy_config.hidden_dim=8:0"], "LOW below HIGH"),
    ],
)
def test_a_mistake_in_a_search_is_one_line(tmp_path, capsys, arguments, message):
    settings = ("--set", f"output_root={tmp_path}")
    code, shown = said(capsys, QUICKSTART, *arguments, *settings)
    assert code == 2
    assert message in shown
    assert shown.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stops", [False, True])
def test_failed_runs_are_retried_in_places_as_they_had(tmp_path, monkeypatch, stops):
    """One pool after the other; where one is stopped, no other begins."""
    made = []
    for name, gpus_per_run, max_parallel in (("a", 2, 1), ("b", 0, 8), ("c", 2, 1)):
        whole = make_sweep(tmp_path, name)
        content = json.loads((whole.folder / "sweep.json").read_text())
        content |= {"gpus_per_run": gpus_per_run, "max_parallel": max_parallel}
        write_json(whole.folder / "sweep.json", content)
        ended = "== ended 2030-01-01T00:00:00Z with exit code 1\n"
        whole.log(0).write_text(f"== started 2030-01-01T00:00:00Z on host\n{ended}")

    class FakePool:
        def __init__(self, runs, slots, tell):
            made.append(([s.runs[i].experiment for s, i in runs], slots))
            self.stopped = stops

        def run(self):
            return [len(made) - 1]

    monkeypatch.setattr(pool, "Pool", FakePool)
    monkeypatch.setattr(
        engines, "slots_here", lambda *places: [{"places": str(places)}]
    )
    assert sweep.main(["retry", str(tmp_path)]) == (0 if stops else 1)
    expected = [
        (["a", "c"], [{"places": "(2, 1)"}]),
        (["b"], [{"places": "(0, 8)"}]),
    ]
    assert made == expected[: 1 if stops else 2]
