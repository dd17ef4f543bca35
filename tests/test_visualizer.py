"""The visualizer: whole calls with tiny nets, where their results go, and mistakes.

Videos are made of an environment written below, which draws without any GL library;
one test, marked gl, renders MuJoCo: python -m pytest -m gl tests/test_visualizer.py
"""

import errno
import json
import shlex
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from support import PROJECT
from support_trained import SIZES, build, content, forward, publish

from steve import visualizer
from steve.analysis.trained import load_checkpoint
from steve.running import devices
from steve.settings import loading
from steve.settings.schema import Config, PolicyConfig
from steve.storage import checkpoint
from steve.util import UserError
from steve.valuerl import Task, ValueRL

pytestmark = pytest.mark.usefixtures("own_process_state")
LENGTH = 9
# In a module of its own, as a child process imports it: it must not meet TensorFlow.
DRAWN_ENV = '''
import os
import sys

import gymnasium
import numpy as np
from gymnasium import spaces


class Drawn(gymnasium.Env):
    """Observes (x, steps / 10); x' = x + a; the reward is x'. Each step is lighter."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}

    def __init__(self, length=9, ends=True, fault=None, render_mode=None):
        assert "tensorflow" not in sys.modules
        if fault == "undrawable" and render_mode:
            raise ValueError("no such mode")
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.length, self.ends, self.fault = length, ends, fault

    def _observed(self):
        return np.array([self.x, self.steps / 10], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.steps = float(self.np_random.uniform(-1, 1)), 0
        return self._observed(), {}

    def step(self, action):
        self.steps += 1
        self.x += float(action[0])
        if self.fault == "raise":
            raise ValueError("two\\nlines")
        if self.fault == "nan" or (self.fault == "late nan" and self.steps == 4):
            self.x = np.nan
        over = self.steps >= self.length
        over = over, False
        terminated, truncated = over if self.ends else over[::-1]
        return self._observed(), self.x, terminated, truncated, {}

    def render(self):
        if self.fault == "abort":
            os.write(2, b"the display is on fire\\n")
            os.abort()
        if self.fault == "no picture" or (self.fault == "lost" and self.steps > 4):
            return None
        size = 2 if self.fault == "grows" and self.steps > 4 else 1
        return np.full((size * 31, size * 401, 3), 20 * self.steps, np.uint8)


gymnasium.register("Drawn-v0", Drawn, max_episode_steps=None)
'''


class Lab:
    """A folder with the environment, a configuration, and an experiment."""

    def __init__(self, root: Path, **env) -> None:
        (root / "drawn_env.py").write_text(DRAWN_ENV)
        self.root = root
        self.content = content(root, **env)
        self.config_file = root / "tiny.json"
        self.config_file.write_text(json.dumps({"updates": self.content}))
        self.config = Config.model_validate(self.content)
        self.experiment = root / "output" / "Drawn-v0" / "tiny"
        self.checkpoints = self.experiment / "checkpoints"
        publish(self.checkpoints, self.config)
        (self.experiment / "log").mkdir()
        merged = self.config.model_dump(mode="json", by_alias=True)
        (self.experiment / "log" / "hps.json").write_text(json.dumps(merged))

    def call(self, *options: str, path: Path | None = None) -> int:
        chosen = str(path or self.checkpoints)
        return visualizer.main([str(self.config_file), "cpu", chosen, *options])


@pytest.fixture
def make_lab(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda **env: Lab(tmp_path, **env)


def error_line(capsys) -> str:
    """What the call said on stderr: one line."""
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text


# ---- Where the results go -----------------------------------------------------------


def test_the_default_folder_gets_a_number_when_it_is_taken(make_lab):
    lab = make_lab()
    trained = load_checkpoint(lab.checkpoints, lab.config)
    first = visualizer.choose_folder(None, trained, lab.config)
    assert first == lab.experiment / "visualizer"
    first.mkdir()
    second = visualizer.choose_folder(None, trained, lab.config)
    assert second == lab.experiment / "visualizer-2"


def test_outside_an_experiment_the_results_go_to_the_working_folder(tmp_path):
    config = Config.model_validate(content(tmp_path))
    publish(tmp_path / "elsewhere", config)
    trained = load_checkpoint(tmp_path / "elsewhere", config)
    chosen = visualizer.choose_folder(None, trained, config)
    assert chosen == Path("visualizer-output")


# ---- Whole calls --------------------------------------------------------------------


def frames_of(path: Path) -> np.ndarray:
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return np.stack(
        [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    )


@pytest.fixture(scope="module")
def whole_call(tmp_path_factory):
    """One call with everything, and the same again."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(devices.VARIABLE, "-1")
        patch.syspath_prepend(str(root))
        lab = Lab(root)
        for out in ("first", "second"):
            options = ["--episodes", "3", "--seed", "5", "--out", str(root / out)]
            assert lab.call(*options) == 0
    return lab


def test_a_released_experiment_of_mujoco_can_be_looked_at(tmp_path):
    """As the paper configures it, but for the nets' width."""
    file = "config/experiments/goodruns/hopper/steve0.json"
    narrow = [
        "policy_config.hidden_dim=8",
        "model_config.transition_hidden_dim=8",
        "model_config.aux_hidden_dim=8",
    ]
    publish(tmp_path, loading.load(PROJECT / file, overrides=narrow).config)
    done = subprocess.run(
        [
            *(sys.executable, "visualizer.py", file, "cpu", str(tmp_path)),
            *("--video", "none", "--episodes", "2", "--out", str(tmp_path / "out")),
            *("--set", *narrow),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"episodes.csv", "weights.csv", "weights.png", "model_error.csv"} <= written
    episodes = (tmp_path / "out" / "episodes.csv").read_text().splitlines()
    assert len(episodes) == 3


def test_a_call_leaves_video_tables_and_pictures(whole_call):
    pictures = {
        f"{name}.{kind}"
        for name in ("weights", "model_error", "episode")
        for kind in ("png", "pdf", "csv")
    }
    names = {path.name for path in (whole_call.root / "first").iterdir()}
    assert names == pictures | {"episodes.csv", "episodes.mp4"}
    for name in names:
        if name.endswith(".png"):
            with Image.open(whole_call.root / "first" / name) as image:
                assert min(image.size) > 500
                assert len(image.convert("L").getcolors(256)) > 10


def test_the_same_seed_gives_the_same_files(whole_call):
    for path in (whole_call.root / "first").iterdir():
        again = whole_call.root / "second" / path.name
        assert path.read_bytes() == again.read_bytes(), path.name


def test_the_video_shows_every_episode_to_its_last_step(whole_call):
    frames = frames_of(whole_call.root / "first" / "episodes.mp4")
    # 50 steps per second: every second one of 0 .. 9, then 9 itself for one second.
    shown = [0, 2, 4, 6, 8] + [LENGTH] * 25
    assert len(frames) == 3 * len(shown)
    brightness = frames[:, 35:60, :400].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(brightness, 20 * np.array(3 * shown), atol=4)
    caption = frames[:, 5:25]
    assert (caption.min(axis=(1, 2, 3)) < 100).all()
    assert np.abs(caption[0].astype(int) - caption[1]).max() > 100  # another text


def test_the_table_of_episodes_is_what_the_policy_earns(whole_call):
    lines = (whole_call.root / "first" / "episodes.csv").read_text().splitlines()
    assert lines[0] == "episode,seed,length,score,ending"
    rows = [line.split(",") for line in lines[1:]]
    assert [row[2] for row in rows] == [str(LENGTH)] * 3
    assert len({row[1] for row in rows}) == 3
    valuerl, _ = build(whole_call.config, 7)
    for row in rows:
        generator = np.random.Generator(np.random.PCG64(int(row[1])))
        x, score = generator.uniform(-1, 1), 0.0
        for step in range(LENGTH):
            obs = np.array([x, step / 10], np.float32)
            x += np.tanh(forward(valuerl.policy, 0, obs))[0]
            score += x
        np.testing.assert_allclose(float(row[3]), score, rtol=1e-4)


def test_the_strip_chart_has_the_realised_return(whole_call):
    text = (whole_call.root / "first" / "episode.csv").read_text().splitlines()
    names = text[0].split(",")
    table = np.array([line.split(",") for line in text[1:]], float)
    reward, returns = (table[:, names.index(n)] for n in ("reward", "return"))
    powers = 0.5 * 0.9 ** np.arange(LENGTH)
    np.testing.assert_allclose(returns[0], powers @ reward, rtol=1e-4)
    weights = table[:, [names.index(f"w_{h}") for h in range(3)]]
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-4)


def test_the_weights_table_counts_every_transition(whole_call):
    lines = (whole_call.root / "first" / "weights.csv").read_text().splitlines()
    assert lines[0] == "low,high,w_0,w_1,w_2"
    table = np.array([line.split(",") for line in lines[1:]], float)
    assert table[:, 2:].sum(axis=0).tolist() == [3 * LENGTH] * 3


def test_a_gif_of_a_cut_episode_without_model_or_values(make_lab, capsys):
    lab = make_lab(ends=False, max_frames=5)
    for learner in ("valuerl", "worldmodel"):
        (lab.checkpoints / f"{learner}.safetensors").unlink()
    out = lab.root / "gif"
    assert lab.call("--episodes", "1", "--video", "gif", "--out", str(out)) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "episode 1: 5 steps, cut, score" in said.out
    assert "median" in said.out
    assert {path.name for path in out.iterdir()} == {"episodes.csv", "episodes.gif"}
    with Image.open(out / "episodes.gif") as image:
        assert image.n_frames > 2  # steps 0, 4, 5; Pillow joins equal ones
        assert image.info["loop"] == 0
        image.seek(image.n_frames - 1)
        grey = np.asarray(image.convert("L"))[40:55, 10:390]
        np.testing.assert_allclose(grey.mean(), 100, atol=6)


def test_another_seed_gives_other_episodes_and_the_configuration_is_compared(
    make_lab, capsys
):
    lab = make_lab()
    common = ["--episodes", "2", "--video", "none", "--set", "env.discount=0.5"]
    assert lab.call("--seed", "1", *common) == 0
    said = capsys.readouterr().out
    assert "env.discount 0.9 there, 0.5 here" in said
    assert "STEVE's weights along the episodes" in said
    without = ["model_config=null", "policy_config.value_expansion=null"]
    assert lab.call("--seed", "2", *common, *without) == 0
    names = {path.name for path in (lab.experiment / "visualizer-2").iterdir()}
    assert names == {"episodes.csv", "episode.csv", "episode.png", "episode.pdf"}
    tables = [
        (lab.experiment / name / "episodes.csv").read_text()
        for name in ("visualizer", "visualizer-2")
    ]
    assert tables[0] != tables[1]


# ---- Mistakes and failures ----------------------------------------------------------


def test_an_out_that_is_there_is_refused(make_lab, capsys):
    lab = make_lab()
    (lab.root / "taken").mkdir()
    assert lab.call("--out", str(lab.root / "taken")) == 2
    assert "pass another --out" in error_line(capsys)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("policy_config.hidden_dim=6", "policy/w0 [2, 8] instead of [2, 6]"),
        ("policy_config.layers=3", "2 missing (policy/w2, ...)"),
        (
            "policy_config.bayesian.ensemble_size=4",
            "q/w0 [2, 3, 8] instead of [4, 3, 8]",
        ),
        ("model_config.aux_hidden_dim=5", "termination/w0 [3, 5, 8] instead of"),
        ("model_config.transition_layers=1", "2 unknown (transition/"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_line(make_lab, capsys, change, said):
    lab = make_lab()
    trained = load_checkpoint(lab.checkpoints, lab.config)
    config = loading.load(lab.config_file, overrides=[change]).config
    with pytest.raises(UserError) as caught:
        visualizer.load_nets("cpu", config, SIZES, trained)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.json", "cpu", "."], "no such file"),
        (["{config}", "cpu", "{root}"], "no policy and no value learner's state"),
        (["{config}", "cpu", "{root}/none"], "there is no checkpoint here"),
        (["{config}", "7", "{root}"], "GPU 7 does not exist"),
        (["{config}", "gpu", "{root}"], 'a whole number or "cpu"'),
        (["{config}", "cpu", "{root}", "--set", "env.nam=x"], "did you mean name"),
        (
            [
                "{config}",
                "cpu",
                "{root}",
                "--set",
                'model_config.kind_settings={{"a": 1}}',
            ],
            "model_config.kind_settings has no a",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(make_lab, capsys, arguments, said):
    lab = make_lab()
    before = sorted(lab.root.rglob("*"))
    texts = {"config": lab.config_file, "root": lab.root}
    assert visualizer.main([part.format(**texts) for part in arguments]) == 2
    assert said in error_line(capsys)
    assert sorted(lab.root.rglob("*")) == before


@pytest.mark.parametrize(
    "wrong", [["--episodes", "0"], ["--video", "avi"], ["--seed", "-1"], ["--speed"]]
)
def test_wrong_options_are_one_line(capsys, wrong):
    with pytest.raises(SystemExit) as caught:
        visualizer.main(["a.json", "cpu", "b", *wrong])
    assert caught.value.code == 2
    assert "visualizer.py: " in error_line(capsys)


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("undrawable", 2, "--video none leaves the video out"),
        ("undrawable", 2, "Drawn-v0 cannot be drawn: made with render_mode rgb_array"),
        ("no picture", 2, "Drawn-v0 gives no pictures"),
        ("lost", 2, "Drawn-v0 gives no pictures"),
        ("abort", 1, "ended (SIGABRT): the display is on fire"),
        ("raise", 1, "ValueError: two lines (drawn_env.py, line"),
        ("nan", 1, "Drawn-v0: step 1 of the episode"),
    ],
)
def test_what_happens_to_the_environment_is_one_line(
    make_lab, capfd, fault, code, said
):
    lab = make_lab(fault=fault)
    (lab.checkpoints / "valuerl.safetensors").unlink()
    (lab.checkpoints / "worldmodel.safetensors").unlink()
    assert lab.call("--episodes", "1") == code
    assert said in error_line(capfd)
    left = {path.name for path in lab.experiment.iterdir()}
    assert left == {"checkpoints", "log"}


def test_pictures_that_change_their_size_are_scaled(make_lab):
    lab = make_lab(fault="grows")
    for learner in ("valuerl", "worldmodel"):
        (lab.checkpoints / f"{learner}.safetensors").unlink()
    out = lab.root / "shown"
    assert lab.call("--episodes", "1", "--out", str(out)) == 0
    frames = frames_of(out / "episodes.mp4")
    shown = [0, 2, 4, 6, 8] + [LENGTH] * 25
    brightness = frames[:, 35:60, :400].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(brightness, 20 * np.array(shown), atol=4)


def test_an_episode_is_kept_up_to_a_step_that_is_not_finite(make_lab, capsys):
    lab = make_lab(fault="late nan")
    shown = lab.root / "shown"
    assert lab.call("--episodes", "2", "--video", "none", "--out", str(shown)) == 0
    assert capsys.readouterr().out.count(": 3 steps, not finite, score") == 2
    rows = (shown / "episodes.csv").read_text().splitlines()
    assert [row.split(",")[-1] for row in rows] == [
        "ending",
        "not finite",
        "not finite",
    ]


def test_a_video_without_moviepy_is_refused_before_the_episodes(
    make_lab, capsys, monkeypatch
):
    lab = make_lab()
    monkeypatch.setitem(sys.modules, "moviepy", None)
    assert lab.call() == 2
    assert "pip install moviepy" in error_line(capsys)


def test_mujoco_without_a_gl_library_names_the_debian_packages(
    make_lab, capfd, monkeypatch
):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    lab = make_lab()
    options = ["env.name=InvertedPendulum-v5", "env.module=null", "env.make_kwargs={}"]
    assert lab.call("--set", *options) == 2
    line = error_line(capfd)
    for package in ("libegl1", "libosmesa6", "libgl1-mesa-dri"):
        assert package in line


def test_a_missing_ffmpeg_is_one_line_and_without_a_video_nobody_needs_it(
    make_lab, capfd, monkeypatch
):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    lab = make_lab()
    for learner in ("valuerl", "worldmodel"):
        (lab.checkpoints / f"{learner}.safetensors").unlink()
    assert lab.call("--episodes", "1") == 2
    line = error_line(capfd)
    assert "videos need ffmpeg" in line
    assert "IMAGEIO_FFMPEG_EXE" in line
    assert lab.call("--episodes", "1", "--video", "none") == 0


def test_neither_the_import_nor_the_help_brings_tensorflow():
    code = (
        "import sys\n"
        "from steve import visualizer\n"
        "from steve.analysis import episodes\n"
        "sys.exit('tensorflow' in sys.modules or 'mujoco' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


@pytest.mark.gl
def test_mujoco_is_drawn_beside_a_tensorflow_parent(make_lab):
    lab = make_lab()
    given = {
        "env": {"name": "Hopper-v1", "max_frames": 40},
        "policy_config": {"hidden_dim": 8, "layers": 2},
    }
    lab.config_file.write_text(json.dumps({"updates": given}))
    settings = PolicyConfig.model_validate(given["policy_config"])
    generator = tf.random.Generator.from_seed(0)
    valuerl = ValueRL(settings, Task(11, 3, 0.99, 1.0), generator)
    tensors = {n: v.numpy() for n, v in valuerl.named_variables().items()}
    metadata = {"updates": 1, "epoch": 1, "frames": 1, "hours": 0.0}
    path = lab.checkpoints / "valuerl.safetensors"
    checkpoint.publish(path, tensors, metadata)
    out = lab.root / "hopper"
    assert lab.call("--episodes", "1", "--out", str(out), path=path) == 0
    frames = frames_of(out / "episodes.mp4")
    assert len(frames) > 25  # at least the last picture's second
    assert frames[0, 40:].std() > 10


@pytest.mark.parametrize(
    "arguments",
    [
        ["quickstart.json", "cpu", "old/policy.safetensors"],
        ["a run", "1", "--seed", "3", "--set", "env.name=x y"],
    ],
)
def test_the_command_in_the_figures_makes_them_again(arguments):
    asked = visualizer.parse_arguments(arguments)
    words = shlex.split(visualizer.command_of(asked, Path("old/policy.safetensors")))
    assert words[0] == "visualizer.py"
    assert visualizer.parse_arguments(words[1:]) == asked


def test_a_full_disk_names_the_file_that_it_did_not_take(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space") as caught:
        visualizer._write(tmp_path / "episode.csv", b"")
    assert caught.value.filename == str(tmp_path / "episode.csv")
