"""Files from strangers: configurations, and whatever lies in a run's folder.

A stranger's code would leave a marker file; none may be there afterwards.
"""

import contextlib
import itertools
import json
import os
import shlex
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import support_env
from support import PROJECT, append_frames, make_config

from steve import sweep
from steve.replay import ReplayBuffer
from steve.storage import checkpoint
from steve.storage.board import ROW, Board
from steve.storage.checkpoint import CheckpointError, check_tensors
from steve.storage.folders import Folders, Run
from steve.storage.opening import check_mode, open_output
from steve.storage.record import read_run
from steve.sweeps import slurm
from steve.util import NOT_IN_A_PATH, UserError

# Tries each value for each key, as far as a launch goes with it before it starts
# processes; prints what became of it.
TRY_ALL = """
import json, os, sys
from pathlib import Path
from steve import envwrap
from steve.settings import loading
from steve.settings.keys import all_paths, field_at, section_of
from steve.storage.folders import Folders
from steve.util import UserError

here = Path(sys.argv[1])
values = json.loads(sys.argv[2])
texts = [
    ".".join(path)
    for path in all_paths()
    if section_of(field_at(path)) is None and path != ("env", "module")
]
for key in texts:
    for value in values:
        settings = [f"output_root={here / 'output'}", f"{key}={json.dumps(value)}"]
        if key.startswith("env.make_kwargs"):
            settings = [settings[0], f"{key}={json.dumps({value: value})}"]
        try:
            loaded = loading.load("config/quickstart.json", overrides=settings)
        except UserError as error:
            print("refused", key, value)
            continue
        folders = Folders.of(loaded.config, "run")
        root = Path(os.path.expanduser(loaded.config.output_root)).resolve()
        for place in (folders.root, folders.log, folders.checkpoints, folders.scores):
            assert place.resolve().is_relative_to(root), (key, value)
        print("taken", key, value)
        try:
            envwrap.measure(loaded.config.env)
        except UserError as error:
            assert "\\n" not in str(error)
for value in values:
    try:
        name = loading.experiment_name("config/quickstart.json", value)
        assert "/" not in name and name not in ("", ".", ".."), value
    except UserError:
        print("refused --name", value)
"""


def test_no_key_reaches_a_shell_an_import_or_a_path_outside(tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / "stranger.py").write_text(f"open({str(marker)!r}, 'w').close()")
    values = [
        "stranger",
        "stranger:Env-v0",
        "stranger/Env-v0",
        "id",
        "entry_point",
        "../../outside",
        "/outside",
        "..",
        "~",
        "a\x00b",
        f"$(touch {marker})",
        f"`touch {marker}`",
        f"x; touch {marker}",
        f"| touch {marker}",
        f"__import__('os').system('touch {marker}')",
        "{0.__class__}",
        "%s%s%n",
    ]
    paths = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", TRY_ALL, str(tmp_path), json.dumps(values)],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "refused env.name stranger:Env-v0" in done.stdout
    assert "taken env.name stranger\n" in done.stdout  # an id that is not registered
    assert "refused log_path ../../outside" in done.stdout
    assert not marker.exists()
    assert not (tmp_path.parent / "outside").exists()


COMMANDS = (
    "out'\ntouch marker\n#",
    "out\ntouch marker\n#",
    "out\rtouch marker\r#",
    "out\u2028touch marker",
    "out\x1b]0;title\x07",
    "out\ud800",
    "out'; touch marker; '",
    'out"; touch marker; "',
    "out$(touch marker)",
    "out`touch marker`",
    "out; touch marker #",
    "out & touch marker",
    "out\\",
    "out %a %j",
    "-x",
)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("place", ["output_root", "working folder", "--set"])
def test_the_script_for_slurm_runs_no_command_of_a_stranger(
    tmp_path, monkeypatch, capsys, name, place
):
    """Bash runs the script that is made; what cannot be a path makes none."""
    if name.endswith("\ud800") and place != "output_root":
        pytest.skip("the kernel takes no such name")
    home = tmp_path / (name if place == "working folder" else "home")
    home.mkdir()
    monkeypatch.chdir(home)
    updates = {"output_root": name} if place == "output_root" else {}
    config = {"inherits": ["config/quickstart.json"], "updates": updates}
    (home / "stranger.json").write_text(json.dumps(config))
    main = tmp_path / "main.py"
    main.write_text("print('reached')")
    monkeypatch.setattr(slurm, "MAIN", main)
    words = ["stranger.json", "--frames", "20000", "--gpus-per-run", "0"]
    words += ["--set", f"env.make_kwargs.text={name}"] if place == "--set" else []
    code = sweep.main([*words, "--no-submit"])

    scripts = list(home.rglob("job.sh"))
    is_taken = place == "--set" or not any(
        unicodedata.category(c) in NOT_IN_A_PATH for c in name
    )
    assert (code, len(scripts)) == ((0, 1) if is_taken else (2, 0))
    if is_taken:
        submitted = capsys.readouterr().out.partition("submit it: ")[2]
        assert shlex.split(submitted) == ["sbatch", str(scripts[0])]
    else:
        assert capsys.readouterr().err.count("\n") == 1
        assert not (home / "sweeps").exists()
    for script, index in itertools.product(scripts, (0, 99)):
        done = subprocess.run(
            ["bash", str(script)],
            env={**os.environ, "SLURM_ARRAY_TASK_ID": str(index)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ("reached" in done.stdout) == (index == 0)
        assert done.returncode == (0 if index == 0 else 2)
    assert not list(tmp_path.rglob("marker"))


def test_the_module_that_a_configuration_names_is_imported(tmp_path):
    """So the test above would see an import."""
    marker = tmp_path / "marker"
    (tmp_path / "stranger.py").write_text(f"open({str(marker)!r}, 'w').close()")
    script = (
        "from steve import envwrap\nfrom steve.settings import loading\n"
        "loaded = loading.load('config/quickstart.json', "
        "overrides=['env.module=\"stranger\"'])\n"
        "envwrap.measure(loaded.config.env)\n"
    )
    paths = str(tmp_path)
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": paths},
        timeout=60,
        check=True,
    )
    assert marker.exists()


@pytest.fixture
def run(tmp_path):
    """A run with a transition and a state; returns it and its configuration."""
    config = make_config(tmp_path / "output", policy_config={"replay_size": 16})
    folders = Folders.of(config, "run")
    run = Run(config, folders, support_env.OBS_DIM, support_env.ACTION_DIM, 0, True)
    merged = config.model_dump(mode="json", by_alias=True)
    open_output(run, merged)
    with ReplayBuffer.open(folders.replay, writable=True) as replay:
        append_frames(replay, 1)
    for path in (folders.state("valuerl"), folders.policy):
        checkpoint.publish(path, {"w": np.zeros(2, np.float32)}, {"n": 1})
    folders.run.write_text("{}")
    return run, merged


PLACES = ("state", "policy", "replay", "board", "hps.json", "run.json", "previous")


@pytest.mark.parametrize("place", PLACES)
def test_a_planted_pickle_never_runs(run, tmp_path, place):
    run, merged = run
    marker = tmp_path / "marker"
    # As pickle.dumps writes an object whose __reduce__ is (os.system, ("touch ...",)).
    pickled = b"cposix\nsystem\n(Vtouch " + os.fsencode(marker) + b"\ntR."
    state = run.folders.state("valuerl")
    path = {
        "state": state,
        "previous": checkpoint.previous_path(state),
        "policy": run.folders.policy,
        "replay": run.folders.replay / "replay.bin",
        "board": run.folders.board,
        "hps.json": run.folders.hyperparameters,
        "run.json": run.folders.run,
    }[place]
    path.write_bytes(pickled)
    for use in (
        lambda: check_mode(run.folders, merged, "resume"),
        lambda: read_run(run.folders),
        lambda: open_output(run, merged),
        lambda: checkpoint.load_newest(state),
        lambda: checkpoint.load(run.folders.policy),
        lambda: checkpoint.load(path),
    ):
        with contextlib.suppress(UserError):
            use()
    assert not marker.exists()


def test_a_name_in_a_state_is_no_path(run, tmp_path):
    path = tmp_path / "state.safetensors"
    tensors = {"../../outside": np.ones(2, np.float32), "/outside": np.ones(2, "f4")}
    checkpoint.publish(path, tensors, {"../n": 1})
    before = sorted(tmp_path.parent.rglob("*"))
    state = checkpoint.load(path)
    with pytest.raises(CheckpointError, match=r"2 unknown \((../..)?/outside, ...\)"):
        check_tensors(path, state, {})
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_a_huge_board_is_not_read(run):
    run, _ = run
    with open(run.folders.board, "wb") as file:
        file.truncate(ROW.itemsize << 30)  # takes no space on the disk
    board = Board.create(run.folders.board, run.config)
    assert board["evaluator0"]["epoch"] == 0
    assert run.folders.board.stat().st_size < 1 << 20


@pytest.mark.parametrize("content", [b"[" * 100_000, b"{" * 10 + b"\xff", b'{"a": 1'])
def test_an_object_that_cannot_be_read_is_one_line(run, content):
    run, merged = run
    run.folders.hyperparameters.write_bytes(content)
    with pytest.raises(UserError, match=r"hps.json cannot be read") as caught:
        check_mode(run.folders, merged, "resume")
    assert "\n" not in str(caught.value)
