"""The job script, also as bash runs it, and Slurm's answers.

The programs of Slurm are stand-ins here; tests/programs/check_slurm.sh uses real ones.
"""

import os
import shlex
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from support import make_sweep, poll

from steve.sweeps import slurm
from steve.sweeps.record import SLURM, Sweep
from steve.sweeps.slurm import Resources, Task
from steve.util import UserError

# Says what it is told; ends by SIGTERM with the code in the file "code".
MAIN = """
import pathlib, signal, sys
folder = pathlib.Path(__file__).parent
code = int((folder / "code").read_text())
def end(*_):
    print("saved", flush=True)
    sys.exit(code)
signal.signal(signal.SIGTERM, end)
print("arguments", sys.argv[1:], flush=True)
(folder / "ready").touch()
if (folder / "waits").exists():
    signal.pause()
sys.exit(code)
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch) -> Sweep:
    """Two runs whose main.py is the stand-in, in a folder with a difficult name."""
    main = tmp_path / "main.py"
    main.write_text(MAIN)
    (tmp_path / "code").write_text("0")
    monkeypatch.setattr(slurm, "MAIN", main)
    made = make_sweep(tmp_path / "a b%'c", "first", "second", engine=SLURM)
    folder = str(tmp_path)
    return replace(made, working_folder=folder, gpus_per_run=2, max_parallel=8)


def start(sweep: Sweep, index: int) -> subprocess.Popen[str]:
    slurm.write_script(sweep, slurm.job_script(sweep, Resources(cpus=5)))
    return subprocess.Popen(
        ["bash", str(sweep.script)],
        env={
            **os.environ,
            "SLURM_ARRAY_JOB_ID": "7",
            "SLURM_ARRAY_TASK_ID": str(index),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def signalled(sweep: Sweep, number: int) -> tuple[str, int]:
    """Output and exit code of an element that gets a signal while its run continues."""
    folder = Path(sweep.working_folder)
    (folder / "waits").touch()
    job = start(sweep, 1)
    poll((folder / "ready").exists, "the run's start")
    job.send_signal(number)
    return job.communicate(timeout=30)[0], job.returncode


# The script


def test_the_script_asks_for_what_was_given_and_leaves_the_rest_to_the_cluster(sweep):
    given = Resources(cpus=6, partition="gpu", time="24:00:00", mem="16G")
    lines = slurm.job_script(sweep, given).splitlines()
    asked = [line.removeprefix("#SBATCH --") for line in lines if "#SBATCH" in line]
    assert asked[:6] == [
        "job-name=sweep-1",
        "array=0-1%8",
        "partition=gpu",
        "time=24:00:00",
        "nodes=1",
        "ntasks=1",
    ]
    assert {"cpus-per-task=6", "mem=16G", "gres=gpu:2", "open-mode=append"} <= {*asked}
    assert {"requeue", "signal=B:USR1@60"} <= {*asked}
    output = next(line for line in asked if line.startswith("output="))
    pattern = str(sweep.folder).replace("%", "%%") + "/%a.txt"
    assert shlex.split(output) == [f"output={pattern}"]
    assert lines[0] == "#!/bin/bash"

    plain = replace(sweep, gpus_per_run=0, max_parallel=None)
    script = slurm.job_script(plain, Resources(cpus=5))
    for option in ("gres", "mem", "partition", "time", "%8"):
        assert f"--{option}=" not in script
    assert "--array=0-1\n" in script


@pytest.mark.parametrize("fault", ["no folder", "no run"])
def test_a_job_that_fails_before_its_run_says_that_it_started(sweep, stand_in, fault):
    if fault == "no folder":
        sweep = replace(sweep, working_folder=f"{sweep.working_folder}/gone")
        slurm.write_script(sweep, slurm.job_script(sweep, Resources(cpus=5)))
    job = start(sweep, 0 if fault == "no folder" else 99)
    output = job.communicate(timeout=30)[0]
    assert job.returncode != 0
    first, why, last = output.splitlines()
    assert first.startswith("== started ")
    assert "gone" in why if fault == "no folder" else "no run 99" in why
    assert last.startswith("== ended ")
    assert last.endswith(f" with exit code {job.returncode}")


def test_each_element_runs_its_own_command_and_passes_the_exit_code_on(sweep, stand_in):
    requeued = stand_in("scontrol")
    for index, code in ((0, 0), (1, 1)):
        (Path(sweep.working_folder) / "code").write_text(str(code))
        job = start(sweep, index)
        output = job.communicate(timeout=30)[0]
        assert job.returncode == code
        assert f"arguments {list(sweep.runs[index].arguments)}" in output
        assert f"by job 7_{index}\n" in output.splitlines(keepends=True)[0]
        assert output.endswith(f"with exit code {code}\n")
    assert start(sweep, 2).wait(timeout=30) == 2
    assert not requeued.exists()


def test_before_the_time_limit_the_run_saves_and_is_queued_again(sweep, stand_in):
    requeued = stand_in("scontrol")
    output, code = signalled(sweep, signal.SIGUSR1)
    assert code == 0
    assert "saved\n" in output
    assert "with exit code 0" in output
    assert requeued.read_text() == "requeue 7_1\n"


def test_after_scancel_or_preemption_the_run_saves_and_slurm_decides(sweep, stand_in):
    requeued = stand_in("scontrol")
    output, code = signalled(sweep, signal.SIGTERM)
    assert code == 0
    assert "saved\n" in output
    assert not requeued.exists()


@pytest.mark.parametrize("code", [1, 2])
def test_a_failure_is_not_queued_again(sweep, stand_in, code):
    requeued = stand_in("scontrol")
    (Path(sweep.working_folder) / "code").write_text(str(code))
    output, ended = signalled(sweep, signal.SIGUSR1)
    assert ended == code
    assert f"with exit code {code}" in output
    assert not requeued.exists()


# Slurm's programs


def test_the_script_is_submitted_whole_or_for_some_runs(sweep, stand_in):
    calls = stand_in("sbatch", "echo '42;cluster'")
    assert slurm.submit(sweep) == "42"
    assert slurm.submit(sweep, [0, 1]) == "42"
    whole, some = calls.read_text().splitlines()
    assert whole == f"--parsable {sweep.script}"
    assert some == f"--parsable --array=0,1%8 {sweep.script}"


def test_a_refusal_of_sbatch_is_one_line_that_names_the_script(sweep, stand_in):
    stand_in(
        "sbatch", "echo noise >&2; echo 'sbatch: error: Invalid partition' >&2; exit 1"
    )
    with pytest.raises(UserError) as caught:
        slurm.submit(sweep)
    command = f"sbatch {shlex.quote(str(sweep.script))}"
    assert str(caught.value) == (
        f"sbatch: Invalid partition; the script stays: {command}"
    )


def test_a_refusal_names_every_reason(sweep, stand_in):
    stand_in("scontrol", "echo 'MaxArraySize            = 50'")
    stand_in(
        "sbatch",
        "echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2\n"
        "echo 'sbatch: error: Batch job submission failed: Invalid job array "
        "specification' >&2; exit 1",
    )
    with pytest.raises(UserError) as caught:
        slurm.submit(sweep)
    assert str(caught.value).startswith(
        "sbatch: QOSMaxSubmitJobPerUserLimit; Batch job submission failed: Invalid "
        "job array specification (MaxArraySize is 50 here); the script stays: sbatch "
    )


@pytest.mark.parametrize(
    ("answer", "longest"),
    [
        ("MailProg = /bin/mail\nMaxArraySize            = 50\n", 50),
        ("MaxArraySize = 0\n", 1),
        ("", 1001),
    ],
)
def test_the_longest_array_is_what_the_cluster_says(stand_in, answer, longest):
    stand_in("scontrol", f"echo '{answer}'")
    assert slurm.longest_array() == longest


def test_without_slurm_it_is_said_and_the_queue_is_empty(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert slurm.queue() == {}
    assert slurm.past_states(["1_0"]) == {}
    with pytest.raises(UserError, match="--engine local"):
        slurm.require()


def test_queued_jobs_are_known_by_their_script_also_if_submitted_by_hand(stand_in):
    calls = stand_in(
        "squeue",
        "echo '3\tRUNNING\t7_3\tNone\t/home\t/out/sweeps/1/job.sh'\n"
        "echo '4\tPENDING\t7_4\tPriority\t/out|sweeps/1\t./job.sh'\n"
        "echo 'N/A\tRUNNING\t8\tNone\t/home\t(null)'\n"
        "printf '2\tRUNNING\t9_2\tNone\t/home/m\\374ller\t/their/job.sh\\n'",
    )
    running, pending = ("/out/sweeps/1/job.sh", 3), ("/out|sweeps/1/job.sh", 4)
    assert slurm.queue() == {
        running: Task("7_3", "RUNNING", "None"),
        pending: Task("7_4", "PENDING", "Priority"),
        ("/their/job.sh", 2): Task("9_2", "RUNNING", "None"),
    }
    assert f"--user={os.getuid()} " in calls.read_text()  # a name it may not have
    assert [t.is_pending for t in slurm.queue().values()] == [False, True, False]
    stand_in("squeue", "echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1")
    with pytest.raises(UserError, match="Unable to contact"):
        slurm.queue()


def test_how_jobs_ended_is_known_where_accounts_are_kept(stand_in):
    calls = stand_in("sacct", "echo '7_3|TIMEOUT'; echo '7_4|CANCELLED by 0'")
    ended = {"7_3": "TIMEOUT", "7_4": "CANCELLED by 0"}
    assert slurm.past_states(["7_3", "7_4"]) == ended
    assert "--jobs=7_3,7_4" in calls.read_text()
    calls.write_text("")
    many = [f"{job}_0" for job in range(2500)]  # more than an argument may hold
    assert slurm.past_states(many) == ended
    asked = [line.partition("--jobs=")[2] for line in calls.read_text().splitlines()]
    assert len(asked) == 3
    assert ",".join(asked).split(",") == many
    stand_in("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert slurm.past_states(["7_3"]) == {}
