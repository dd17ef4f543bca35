"""Interactors and evaluators: pacing, transitions, policies, scores, kills."""

import math
import multiprocessing
import threading
import time
from types import SimpleNamespace

import numpy as np
import portalocker
import pytest
import support_env
from support import PATIENCE, make_config, make_run, publish_policy

from steve.acting import evaluator, interactor, safe_env
from steve.acting.evaluator import ScoreFile, evaluate
from steve.acting.interactor import interact, step_all
from steve.acting.policy import PolicyReader
from steve.acting.safe_env import SafeEnv
from steve.envwrap import make_env
from steve.replay import ReplayBuffer
from steve.running.child import STOPPED, Context, child_main
from steve.running.pace import frame_limit
from steve.settings.roles import LAUNCHER, VALUERL, WORLDMODEL, learners
from steve.storage import checkpoint
from steve.storage.board import FINAL_EPISODES, Board
from steve.storage.tables import CSV_HEADER, MAX_LINE

SPAWN = multiprocessing.get_context("spawn")
IDLE = 20  # questions without a step after which a process counts as waiting


def ask_on(condition):
    """`wait_until` without its sleeps."""
    while not condition():
        pass


@pytest.fixture(autouse=True)
def _nothing_was_done_yet_and_nobody_sleeps(monkeypatch):
    monkeypatch.setattr(evaluator, "wait_until", ask_on)
    support_env.steps.clear()
    support_env.finished_scores.clear()


class Script:
    """A `stop` whose answers a test writes; asked often, it also is the test's eye.

    Args:
        on_question: called with each question; returns whether to stop.
        on_idle: the same, only once nothing was stepped for `IDLE` questions.
        limit: questions after which the test has failed.
    """

    def __init__(self, on_question=None, on_idle=None, limit=20_000):
        self._on_question = on_question or (lambda: False)
        self._on_idle = on_idle or (lambda: False)
        self._limit = limit
        self._steps = 0
        self._idle = 0
        self.asked = 0
        self.stopped = False

    def __call__(self):
        self.asked += 1
        assert self.asked < self._limit, "it does not end"
        progressed = len(support_env.steps) > self._steps
        self._steps = len(support_env.steps)
        self._idle = 0 if progressed else self._idle + 1
        self.stopped = self.stopped or self._on_question()
        if not self.stopped and self._idle >= IDLE:
            self._idle = 0
            self.stopped = self._on_idle()
        return self.stopped


def new_run(tmp_path, model=False, **keys):
    """A run whose learners are ready and in their first epoch."""
    run = make_run(make_config(tmp_path, model, **keys))
    board = Board.create(run.folders.board, run.config)
    for learner in learners(run.config):
        board[learner]["ready"] = board[learner]["epoch"] = 1
    return run, board


def context_of(run, board, name, stop=None, seed=0):
    return Context(run, name, seed, board, stop or Script())


# Pacing


def limit_of(tmp_path, updates=0, model_updates=0, ready=1, epoch=1, **keys):
    config = make_config(tmp_path, "model_config" in keys, **keys)
    board = Board.create(tmp_path / "status.bin", config)
    board[VALUERL]["updates"] = updates
    if config.has_model:
        board[WORLDMODEL]["updates"] = model_updates
    for learner in learners(config):
        board[learner]["ready"], board[learner]["epoch"] = ready, epoch
    return frame_limit(config, board)


def paced(frames_per_update, before=100):
    return {"frames_before_learning": before, "frames_per_update": frames_per_update}


EIGHT = {"batch_size": 8}


@pytest.mark.parametrize(
    ("updates", "limit"),
    [
        (0, 116),  # 100 + 0.25 * 0 + 2 * 8
        (1, 116.25),
        (4, 117),
        (400, 216),
    ],
)
def test_frames_are_paced_by_the_value_learners_updates(tmp_path, updates, limit):
    found = limit_of(tmp_path, updates, policy_config=paced(0.25), agent_config=EIGHT)
    assert found == limit


def test_a_vector_step_is_as_many_frames_as_there_are_environments(tmp_path):
    keys = {"policy_config": paced(2.0), "agent_config": {"batch_size": 3, "count": 4}}
    assert limit_of(tmp_path, 10, **keys) == 100 + 2 * 10 + 2 * 3


@pytest.mark.parametrize(
    ("updates", "model_updates", "limit"),
    [
        (0, 0, 66),  # min(100, 50) + 16
        (0, 400, 116),  # min(100 + 0.25 * 0, 50 + 0.5 * 400) + 16
        (400, 40, 86),  # min(100 + 0.25 * 400, 50 + 0.5 * 40) + 16
    ],
)
def test_the_slower_learner_sets_the_pace(tmp_path, updates, model_updates, limit):
    found = limit_of(
        tmp_path,
        updates,
        model_updates,
        policy_config=paced(0.25),
        model_config=paced(0.5, before=50),
        agent_config=EIGHT,
    )
    assert found == limit


@pytest.mark.parametrize(
    ("value_pace", "model_pace", "limit"),
    [
        (False, 0.5, 50 + 0.5 * 10 + 16),
        (0.25, False, 100 + 0.25 * 4 + 16),
        (False, False, math.inf),
    ],
)
def test_a_learner_with_false_does_not_pace(tmp_path, value_pace, model_pace, limit):
    found = limit_of(
        tmp_path,
        4,
        10,
        policy_config=paced(value_pace),
        model_config=paced(model_pace, before=50),
        agent_config=EIGHT,
    )
    assert found == limit


def test_false_for_the_only_learner_leaves_frames_unlimited(tmp_path):
    assert limit_of(tmp_path, policy_config=paced(False)) == math.inf


@pytest.mark.parametrize("model", [False, True])
def test_a_learner_with_false_is_waited_for_until_its_process_is_ready(tmp_path, model):
    keys = {"policy_config": paced(False), "agent_config": EIGHT}
    if model:
        keys["model_config"] = paced(False)
    assert limit_of(tmp_path, ready=0, **keys) == 116  # 100 + 2 * 8
    assert limit_of(tmp_path, ready=0, epoch=0, **keys) == 116
    assert limit_of(tmp_path, ready=1, **keys) == math.inf


@pytest.mark.parametrize("pace", [False, 0.25])
@pytest.mark.parametrize(("value", "world"), [(100, 50), (50, 100)])
def test_before_the_first_epoch_the_later_start_counts_for_the_value_learner(
    tmp_path, pace, value, world
):
    keys = {
        "policy_config": paced(pace, before=value),
        "model_config": paced(False, before=world),
        "agent_config": EIGHT,
    }
    # The world model may be ready: it trains on, and waits for nobody.
    before = limit_of(tmp_path, epoch=0, **keys)
    after = limit_of(tmp_path, epoch=1, **keys)
    assert before == (math.inf if pace is False else 116)
    assert after == (math.inf if pace is False else value + 16)


@pytest.mark.parametrize("pretrained", [0, 5000])
def test_pretraining_is_no_pace(tmp_path, pretrained):
    config = make_config(tmp_path, model=True, agent_config=EIGHT)
    board = Board.create(tmp_path / "status.bin", config)
    board[WORLDMODEL]["pretrained"] = pretrained
    assert frame_limit(config, board) == 10_016


@pytest.mark.parametrize(
    ("pace", "updates", "limit"),
    [
        (False, 0, 1007),  # a step may begin at 999 frames and end at 1007
        (0.25, 0, 116),
        (0.25, 3600, 1007),  # 100 + 900 + 16 is more
    ],
)
def test_no_vector_step_begins_at_total_frames(tmp_path, pace, updates, limit):
    found = limit_of(
        tmp_path,
        updates,
        policy_config=paced(pace),
        agent_config=EIGHT,
        total_frames=1000,
    )
    assert found == limit


# The newest policy


@pytest.fixture
def loads(monkeypatch):
    """The paths of all checkpoints that were read."""
    read = []
    load = checkpoint.load
    monkeypatch.setattr(
        checkpoint,
        "load",
        lambda path, *rest: (read.append(path), load(path, *rest))[1],
    )
    return read


def test_a_policy_is_read_again_only_when_it_has_changed(tmp_path, loads):
    run, board = new_run(tmp_path)
    reader = PolicyReader(context_of(run, board, "evaluator0"))
    assert reader.refresh() is None
    assert loads == []
    publish_policy(run.folders.policy, 0.5, epoch=1)
    first = reader.refresh()
    assert first.epoch == 1
    for _ in range(5):
        assert reader.refresh() is first
    assert len(loads) == 1
    publish_policy(run.folders.policy, 0.5, epoch=2)
    assert reader.refresh().epoch == 2
    assert reader.policy.epoch == 2
    reader.refresh()
    assert len(loads) == 2


def test_a_policy_that_is_gone_stays_in_use(tmp_path):
    run, board = new_run(tmp_path)
    reader = PolicyReader(context_of(run, board, "evaluator0"))
    publish_policy(run.folders.policy, 0.5, epoch=1)
    first = reader.refresh()
    run.folders.policy.unlink()
    assert reader.refresh() is first


def test_a_damaged_policy_is_named_and_passed_over(tmp_path, capsys):
    run, board = new_run(tmp_path)
    reader = PolicyReader(context_of(run, board, "evaluator0"))
    publish_policy(run.folders.policy, 0.5, epoch=1)
    first = reader.refresh()
    run.folders.policy.write_bytes(run.folders.policy.read_bytes()[:-1])
    assert reader.refresh() is first
    assert str(run.folders.policy) in capsys.readouterr().out
    publish_policy(run.folders.policy, 0.5, epoch=2)
    assert reader.refresh().epoch == 2


# Steps of several environments


def counting_envs(tmp_path, endings, length=3, max_frames=100):
    envs, obs = [], []
    for seed, ending in enumerate(endings):
        settings = {"length": length, "ending": ending, "max_frames": max_frames}
        config = make_config(tmp_path, env=settings).env
        rng = np.random.default_rng(seed)
        envs.append(SafeEnv(config, rng, "test", lambda: None))
        obs.append(envs[-1].reset())
    return envs, np.stack(obs)


def steps_of(envs, obs, count):
    """`count` vector steps with actions that each occur once."""
    batches, beats = [], []
    for step in range(count):
        action = np.linspace(-1, 1, len(envs) * count, dtype=np.float32)
        action = action[step * len(envs) :][: len(envs), None]
        batch, obs = step_all(envs, obs, action, lambda: beats.append(None))
        np.testing.assert_array_equal(batch.action, action)
        np.testing.assert_array_equal(batch.reward, action[:, 0])
        batches.append(batch)
    assert len(beats) >= count * len(envs)
    return batches, obs


def test_only_a_termination_is_stored_as_one(tmp_path):
    envs, obs = counting_envs(tmp_path, ["termination", "truncation", "both"])
    batches, _ = steps_of(envs, obs, 6)
    stored = np.stack([batch.terminated for batch in batches])
    assert stored.dtype == np.float32
    ends = [0, 0, 1, 0, 0, 1]
    np.testing.assert_array_equal(stored.T, [ends, [0] * 6, ends])


def test_an_episode_cut_at_max_frames_is_no_termination(tmp_path):
    envs, obs = counting_envs(tmp_path, ["termination"], length=5, max_frames=2)
    batches, _ = steps_of(envs, obs, 4)
    assert [batch.terminated[0] for batch in batches] == [0, 0, 0, 0]
    assert [batch.next_obs[0, 1:].tolist() for batch in batches] == [
        [0, 1],
        [0, 2],
        [1, 1],
        [1, 2],
    ]


@pytest.mark.parametrize("ending", ["termination", "truncation", "both"])
def test_next_obs_is_the_last_observation_of_an_episode_not_the_first_of_the_next(
    tmp_path, ending
):
    envs, obs = counting_envs(tmp_path, [ending])
    batches, obs = steps_of(envs, obs, 7)
    # (episode, step) before and after; an episode has 3 steps.
    pairs = [
        (*batch.obs[0, 1:].tolist(), *batch.next_obs[0, 1:].tolist())
        for batch in batches
    ]
    assert pairs == [
        (0, 0, 0, 1),
        (0, 1, 0, 2),
        (0, 2, 0, 3),
        (1, 0, 1, 1),
        (1, 1, 1, 2),
        (1, 2, 1, 3),
        (2, 0, 2, 1),
    ]
    assert obs[0, 1:].tolist() == [2, 1]


@pytest.mark.parametrize("what", ["step", "reset"])
def test_life_is_shown_between_any_two_environments(tmp_path, monkeypatch, what):
    """However many there are, a slow one alone counts against `step_timeout`."""
    envs, obs = counting_envs(tmp_path, ["termination"] * 3, length=1)
    seen, real = [], getattr(SafeEnv, what)

    def watched(env, *arguments):
        seen.append(what)
        return real(env, *arguments)

    monkeypatch.setattr(SafeEnv, what, watched)
    step_all(envs, obs, np.zeros((3, 1), np.float32), lambda: seen.append("beat"))
    text = " ".join(seen)
    assert text.count(what) == 3
    assert f"{what} {what}" not in text
    assert seen[-1] == "beat"


def test_each_environment_goes_its_own_way(tmp_path):
    envs, obs = counting_envs(tmp_path, ["termination", "truncation"], length=3)
    envs[1]._env.unwrapped.length = 2
    numbers = obs[:, 0].tolist()
    assert numbers[0] != numbers[1]
    batches, obs = steps_of(envs, obs, 5)
    for batch in batches:
        assert batch.obs[:, 0].tolist() == batch.next_obs[:, 0].tolist() == numbers
    assert obs[:, 1:].tolist() == [[1, 2], [2, 1]]


def test_a_batch_is_float32_in_the_shapes_of_the_replay(tmp_path):
    envs, obs = counting_envs(tmp_path, ["termination", "both"])
    (batch,), _ = steps_of(envs, obs.astype(np.float64), 1)
    assert [field.dtype for field in batch] == [np.float32] * 5
    shapes = [field.shape for field in batch]
    assert shapes == [(2, 3), (2, 1), (2,), (2, 3), (2,)]


# The scores' csv


def policy_of(epoch=1, hours=0.25, frames=1000):
    return SimpleNamespace(epoch=epoch, hours=hours, frames=frames)


def line_of(policy, score):
    return f"{policy.hours:.6f},{policy.epoch},{policy.frames},{score!r}\n".encode()


@pytest.fixture
def row(tmp_path):
    return Board.create(tmp_path / "status.bin", make_config(tmp_path))["evaluator0"]


@pytest.fixture
def csv(tmp_path):
    return tmp_path / "experiment.greedy.csv"


def test_a_header_then_a_row_for_each_episode(csv, row):
    scores = ScoreFile(csv, row)
    scores.record(policy_of(3, 0.5, 12_345), -1.5, False)
    scores.record(policy_of(4, 1.25, 20_000), 1000.125, False)
    assert csv.read_text() == (
        "hours,epochs,frames,score\n0.500000,3,12345,-1.5\n1.250000,4,20000,1000.125\n"
    )


def test_the_header_comes_once_over_all_launches(csv, row):
    for score in range(3):
        ScoreFile(csv, row).record(policy_of(), float(score), False)
    assert csv.read_bytes().count(CSV_HEADER) == 1
    assert len(csv.read_bytes().splitlines()) == 4


def test_an_empty_file_gets_its_header(csv, row):
    csv.touch()
    ScoreFile(csv, row).record(policy_of(), 1.0, False)
    assert csv.read_bytes() == CSV_HEADER + line_of(policy_of(), 1.0)


def test_scores_keep_their_full_precision(csv, row):
    values = [0.1 + 0.2, -1e-300, 1 / 3, 123_456_789.123]
    for value in values:
        ScoreFile(csv, row).record(policy_of(), value, False)
    lines = csv.read_text().splitlines()[1:]
    assert [float(line.split(",")[3]) for line in lines] == values


def test_episodes_are_counted_by_policy_and_apart_from_final_ones(csv, row):
    scores = ScoreFile(csv, row)
    counts = []
    for epoch, final in ((1, False), (1, False), (1, True), (2, False), (2, True)):
        scores.record(policy_of(epoch), 0.0, final)
        counted = ("epoch", "episodes", "final_episodes", "offset")
        counts.append(tuple(int(row[field]) for field in counted))
    assert counts == [
        (1, 1, 0, -1),
        (1, 2, 0, -1),
        (1, 2, 1, -1),
        (2, 1, 0, -1),
        (2, 1, 1, -1),
    ]


LONGEST = policy_of(10**9, 12_345.678901, 10**12)


def test_the_longest_row_fits_the_board_and_the_search_for_torn_lines(csv, row):
    line = line_of(LONGEST, -1.2345678901234567e-308)
    row["pending"] = line
    assert bytes(row["pending"]) == line
    assert len(line) < MAX_LINE
    assert len(CSV_HEADER) < MAX_LINE


# A kill on the way: the board and the file as it leaves them

BEFORE = CSV_HEADER + line_of(policy_of(), 1.0)


def killed_over(row, csv, score, content, final=False):
    """Sets up what an evaluator with one recorded episode leaves when it is killed."""
    row["epoch"], row["episodes"], row["final_episodes"] = 1, 1, 0
    row["pending"], row["phase"] = line_of(policy_of(), score), final
    row["pending_count"] = 1 if final else 2
    row["offset"] = len(BEFORE)
    csv.write_bytes(content)


@pytest.mark.parametrize("final", [False, True])
def test_killed_before_the_write_the_episode_does_not_count(csv, row, final):
    killed_over(row, csv, 2.0, BEFORE, final)
    ScoreFile(csv, row).settle()
    assert csv.read_bytes() == BEFORE
    assert (row["episodes"], row["final_episodes"], row["offset"]) == (1, 0, -1)


@pytest.mark.parametrize("length", range(1, len(line_of(policy_of(), 2.0))))
def test_killed_within_the_write_the_torn_line_is_cut(csv, row, length):
    killed_over(row, csv, 2.0, BEFORE + line_of(policy_of(), 2.0)[:length])
    ScoreFile(csv, row).settle()
    assert csv.read_bytes() == BEFORE
    assert (row["episodes"], row["offset"]) == (1, -1)


@pytest.mark.parametrize(("final", "counts"), [(False, (2, 0)), (True, (1, 1))])
def test_killed_after_the_write_the_episode_counts_once(csv, row, final, counts):
    content = BEFORE + line_of(policy_of(), 2.0)
    killed_over(row, csv, 2.0, content, final)
    for _ in range(3):
        ScoreFile(csv, row).settle()
        assert (int(row["episodes"]), int(row["final_episodes"])) == counts
        assert row["offset"] == -1
    assert csv.read_bytes() == content


class Killed(BaseException):
    """Ends a process where it stands, as SIGKILL does."""


class MortalRow:
    """A row of the board that takes so many values and then kills who writes it."""

    def __init__(self, row, lives):
        self._row = row
        self._lives = lives

    def __getitem__(self, field):
        return self._row[field]

    def __setitem__(self, field, value):
        if self._lives == 0:
            raise Killed
        self._lives -= 1
        self._row[field] = value


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("epoch", [1, 2])
def test_killed_between_any_two_values_each_row_counts_once(
    tmp_path, row, epoch, final
):
    counter = "final_episodes" if final else "episodes"
    for lives in range(20):
        csv = tmp_path / f"{lives}.csv"
        row["epoch"] = 0
        ScoreFile(csv, row).record(policy_of(1), 1.0, final)
        survived = True
        try:
            ScoreFile(csv, MortalRow(row, lives)).record(policy_of(epoch), 2.0, final)
        except Killed:
            survived = False
        ScoreFile(csv, row).settle()
        lines = csv.read_text().splitlines()[1:]
        recorded = [line for line in lines if line.split(",")[1] == str(row["epoch"])]
        if row["epoch"] == epoch:  # else the older policy's counts are of no use
            assert row[counter] == len(recorded), lives
        assert row["offset"] == -1
        if survived:
            break
    assert survived
    assert lives > 3


def test_a_row_that_the_disk_has_no_room_for_is_an_error(csv, row, monkeypatch):
    ScoreFile(csv, row).record(policy_of(), 1.0, False)
    opened = open

    class Full:
        """A file that takes ten bytes of what it is given."""

        def __init__(self, *arguments, **keys):
            self._file = opened(*arguments, **keys)

        def __getattr__(self, name):
            return getattr(self._file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def write(self, content):
            return self._file.write(content[:10])

    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "open", Full, raising=False)
        with pytest.raises(OSError, match="No space left"):
            ScoreFile(csv, row).record(policy_of(), 2.0, False)
    ScoreFile(csv, row).settle()
    assert csv.read_bytes() == BEFORE
    assert row["episodes"] == 1


def test_rows_that_others_appended_meanwhile_do_not_matter(csv, row):
    others = line_of(policy_of(), 5.0) + line_of(policy_of(), 2.0)
    killed_over(row, csv, 2.0, BEFORE + others)  # another's row where ours would be
    ScoreFile(csv, row).settle()
    assert row["episodes"] == 1
    killed_over(row, csv, 2.0, BEFORE + line_of(policy_of(), 2.0) + others)
    ScoreFile(csv, row).settle()
    assert row["episodes"] == 2


def test_where_nothing_was_being_appended_nothing_is_settled(csv, row):
    content = BEFORE + b"torn"
    csv.write_bytes(content)
    ScoreFile(csv, row).settle()
    assert csv.read_bytes() == content
    assert row["episodes"] == 0
    csv.unlink()
    ScoreFile(csv, row).settle()
    assert not csv.exists()


def test_a_scores_file_that_is_gone_counts_nothing(csv, row):
    killed_over(row, csv, 2.0, BEFORE)
    csv.unlink()
    ScoreFile(csv, row).settle()
    assert (row["episodes"], row["offset"]) == (1, -1)


@pytest.mark.parametrize("torn", [b"0", b"0.25", b"0.250000,1,1000,-12.34567"])
def test_another_evaluator_cuts_the_torn_line_before_it_appends(csv, row, torn):
    csv.write_bytes(BEFORE + torn)
    ScoreFile(csv, row).record(policy_of(), 3.0, False)
    assert csv.read_bytes() == BEFORE + line_of(policy_of(), 3.0)


@pytest.mark.parametrize("length", range(1, len(CSV_HEADER)))
def test_a_torn_header_is_written_anew(csv, row, length):
    csv.write_bytes(CSV_HEADER[:length])
    ScoreFile(csv, row).record(policy_of(), 3.0, False)
    assert csv.read_bytes() == CSV_HEADER + line_of(policy_of(), 3.0)


def test_a_torn_line_behind_many_rows_is_cut_alone(csv, row):
    rows = b"".join(line_of(policy_of(epoch), 1.0) for epoch in range(1, 100))
    csv.write_bytes(CSV_HEADER + rows + b"0.25,1")
    ScoreFile(csv, row).record(policy_of(), 3.0, False)
    assert csv.read_bytes() == CSV_HEADER + rows + line_of(policy_of(), 3.0)


def test_an_evaluator_waits_while_another_one_writes(csv, row):
    recording = threading.Thread(
        target=lambda: ScoreFile(csv, row).record(policy_of(), 1.0, False)
    )
    with open(csv, "ab") as others:
        portalocker.lock(others, portalocker.LockFlags.EXCLUSIVE)
        recording.start()
        recording.join(0.2)
        assert recording.is_alive()
        assert csv.read_bytes() == b""
    recording.join(PATIENCE)
    assert csv.read_bytes() == CSV_HEADER + line_of(policy_of(), 1.0)


def record_many(folder, number, count, offset):
    """An evaluator process: `count` rows of 50 to a policy, each score once."""
    board = Board.open(folder / "status.bin")
    scores = ScoreFile(folder / "experiment.greedy.csv", board[f"evaluator{number}"])
    scores.settle()
    for i in range(count):
        scores.record(policy_of(epoch=1 + i // 50), float(offset + i), False)


def recorder(folder, number, count, offset=0):
    recording = SPAWN.Process(
        target=record_many, args=(folder, number, count, offset), daemon=True
    )
    recording.start()
    return recording


def recorded_scores(csv):
    """The scores of the file, once each row is known to be whole."""
    header, *lines = csv.read_bytes().splitlines(keepends=True)
    assert header == CSV_HEADER
    for line in lines:
        epoch, score = int(line.split(b",")[1]), float(line.split(b",")[3])
        assert line == line_of(policy_of(epoch), score)
    return [float(line.split(b",")[3]) for line in lines]


def test_rows_of_two_processes_are_whole_and_each_there_once(tmp_path, csv):
    board = Board.create(tmp_path / "status.bin", make_config(tmp_path))
    processes = [recorder(tmp_path, i, 400, offset=1000 * i) for i in range(2)]
    for one in processes:
        one.join(PATIENCE)
        assert one.exitcode == 0
    scores = recorded_scores(csv)
    assert sorted(scores) == [*range(400), *range(1000, 1400)]
    for number in range(2):  # and each one's in its own order
        own = [score for score in scores if score // 1000 == number]
        assert own == sorted(own)
        row = board[f"evaluator{number}"]
        assert (row["epoch"], row["episodes"], row["offset"]) == (8, 50, -1)


def test_a_killed_evaluators_rows_and_counts_agree(tmp_path, csv):
    board = Board.create(tmp_path / "status.bin", make_config(tmp_path))
    killed, survivor = (recorder(tmp_path, i, 10**9, offset=i * 2**40) for i in (0, 1))
    deadline = time.monotonic() + PATIENCE
    while not all(board[f"evaluator{i}"]["epoch"] >= 3 for i in (0, 1)):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.kill()
    killed.join()
    epoch = int(board["evaluator1"]["epoch"])
    while board["evaluator1"]["epoch"] < epoch + 2:  # the other one goes on
        assert time.monotonic() < deadline
        time.sleep(0.005)
    survivor.kill()
    survivor.join()
    for number in (0, 1):
        row = board[f"evaluator{number}"]
        ScoreFile(csv, row).settle()
        own = [s for s in recorded_scores(csv) if s // 2**40 == number]
        assert own == [number * 2**40 + i for i in range(len(own))]
        # 50 rows to a policy; those of the last one are what the board counts.
        assert len(own) == 50 * (row["epoch"] - 1) + row["episodes"]


# Evaluators


LENGTH = 4  # steps of an episode


def evaluating(tmp_path, model=False, **settings):
    keys = {"final_episodes": settings.pop("final_episodes", 5)}
    keys["evaluator_config"] = {"count": 1} | settings
    return new_run(tmp_path, model, env={"length": LENGTH}, **keys)


def rows_of(run):
    """(hours, epoch, frames, score) of each recorded episode."""
    if not run.folders.scores.exists():
        return []
    header, *lines = run.folders.scores.read_text().splitlines()
    assert header == "hours,epochs,frames,score"
    return [tuple(float(part) for part in line.split(",")) for line in lines]


def epochs_of(run):
    return [int(row[1]) for row in rows_of(run)]


def publishing(run, actions):
    """An `on_idle` that publishes the next policy; true once there is none left."""
    upcoming = iter(enumerate(actions, start=1))

    def publish_next():
        epoch, action = next(upcoming, (None, None))
        if epoch is None:
            return True
        publish_policy(run.folders.policy, action, epoch, 100 * epoch, epoch / 4)
        return False

    return publish_next


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("episodes", [1, 3])
def test_each_policy_gets_its_episodes_then_a_newer_one_is_awaited(
    tmp_path, episodes, batch_size
):
    run, board = evaluating(
        tmp_path, episodes_per_policy=episodes, batch_size=batch_size
    )
    actions = [0.5, -0.25, 0.75]
    stop = Script(on_idle=publishing(run, actions))
    evaluate(context_of(run, board, "evaluator0", stop))
    rows = rows_of(run)
    assert len(rows) == 3 * episodes
    for i, (hours, epoch, frames, score) in enumerate(rows):
        expected = i // episodes + 1
        assert (hours, epoch, frames) == (expected / 4, expected, 100 * expected)
        # The reward is the action, the same in each of the 4 steps.
        assert score == pytest.approx(LENGTH * actions[expected - 1], abs=1e-5)
    assert len(support_env.steps) == LENGTH * len(rows)
    assert board["evaluator0"]["heartbeat"] > 0


def test_nothing_is_recorded_before_the_first_policy(tmp_path):
    run, board = evaluating(tmp_path)
    stop = Script(on_idle=lambda: True)
    evaluate(context_of(run, board, "evaluator0", stop))
    assert stop.asked >= IDLE
    assert not run.folders.scores.exists()
    assert support_env.steps == []


def test_a_policy_that_was_evaluated_before_a_restart_is_not_evaluated_again(tmp_path):
    run, board = evaluating(tmp_path, episodes_per_policy=3)
    publish_policy(run.folders.policy, 0.5, epoch=7)
    row = board["evaluator0"]
    row["epoch"], row["episodes"] = 7, 2
    stop = Script(on_idle=lambda: True)
    evaluate(context_of(run, board, "evaluator0", stop))
    assert epochs_of(run) == [7]  # the third of three


def test_a_restarted_evaluator_settles_what_its_predecessor_left(tmp_path):
    run, board = evaluating(tmp_path, episodes_per_policy=2)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    killed_over(board["evaluator0"], run.folders.scores, 2.0, BEFORE)
    run.folders.scores.write_bytes(BEFORE + line_of(policy_of(), 2.0))
    stop = Script(on_idle=lambda: True)
    evaluate(context_of(run, board, "evaluator0", stop))
    assert [row[3] for row in rows_of(run)] == [1.0, 2.0]


def test_with_0_episodes_per_policy_it_never_waits(tmp_path):
    run, board = evaluating(tmp_path, episodes_per_policy=0, batch_size=2)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    stop = Script(
        on_question=lambda: len(epochs_of(run)) >= 20,
        on_idle=lambda: pytest.fail("it waits"),
    )
    evaluate(context_of(run, board, "evaluator0", stop))
    assert epochs_of(run) == [1] * 20


@pytest.mark.parametrize("episodes", [0, 3])
def test_one_policy_is_held_for_a_whole_episode(tmp_path, episodes):
    run, board = evaluating(tmp_path, episodes_per_policy=episodes)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    published = []

    def on_question():
        # After each second step of an episode comes another policy.
        taken = len(support_env.steps)
        if taken % LENGTH == 2 and taken not in published:
            published.append(taken)
            epoch = len(published) + 1
            publish_policy(run.folders.policy, 0.5 / epoch, epoch)
        return taken >= 10 * LENGTH

    evaluate(context_of(run, board, "evaluator0", Script(on_question)))
    rows = rows_of(run)
    assert [row[1] for row in rows] == list(range(1, 11))
    expected = [LENGTH * 0.5 / epoch for epoch in range(1, 11)]
    np.testing.assert_allclose([row[3] for row in rows], expected, atol=1e-5)


def test_side_by_side_each_environment_runs_whole_episodes(tmp_path, monkeypatch):
    run, board = evaluating(tmp_path, episodes_per_policy=3, batch_size=3)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    lengths = iter((2, 6, 4))

    def make_next(env):
        return make_env(
            env.model_copy(update={"make_kwargs": {"length": next(lengths)}})
        )

    monkeypatch.setattr(safe_env, "make_env", make_next)
    evaluate(context_of(run, board, "evaluator0", Script(on_idle=lambda: True)))
    # The shortest is over first; the others go on without it.
    np.testing.assert_allclose([r[3] for r in rows_of(run)], [1, 2, 3], atol=1e-5)
    assert len(support_env.steps) == 2 + 4 + 6


@pytest.mark.parametrize("ending", ["termination", "truncation", "both"])
def test_a_cut_ends_an_episode_as_a_termination_does(tmp_path, ending):
    env = {"length": LENGTH, "ending": ending}
    run, board = new_run(tmp_path, env=env, evaluator_config={"count": 1})
    publish_policy(run.folders.policy, 0.5, epoch=1)
    evaluate(context_of(run, board, "evaluator0", Script(on_idle=lambda: True)))
    assert [row[3] for row in rows_of(run)] == pytest.approx([2.0], abs=1e-5)


def test_a_score_is_the_plain_sum_of_rewards(tmp_path):
    env = {"length": LENGTH, "reward_scale": 10.0}
    run, board = new_run(tmp_path, env=env, evaluator_config={"count": 1})
    publish_policy(run.folders.policy, 0.5, epoch=1)
    evaluate(context_of(run, board, "evaluator0", Script(on_idle=lambda: True)))
    assert [row[3] for row in rows_of(run)] == pytest.approx([2.0], abs=1e-5)


def test_an_episode_that_is_interrupted_is_not_recorded(tmp_path):
    run, board = evaluating(tmp_path)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    stop = Script(on_question=lambda: len(support_env.steps) == 2)
    evaluate(context_of(run, board, "evaluator0", stop))
    assert len(support_env.steps) == 2
    assert rows_of(run) == []


# The final episodes


@pytest.mark.parametrize("per_policy", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_the_final_phase_ends_with_its_episodes_and_a_score_of_random_actions(
    tmp_path, batch_size, per_policy
):
    run, board = evaluating(
        tmp_path,
        episodes_per_policy=per_policy,
        batch_size=batch_size,
        final_episodes=3,
    )
    publish_policy(run.folders.policy, 0.5, epoch=9)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    evaluate(context_of(run, board, "evaluator0", Script()))
    assert epochs_of(run) == [9] * 3
    assert board["evaluator0"]["final_episodes"] == 3
    # Then three more, with actions that are all different and recorded nowhere.
    *_, a, b, c = support_env.finished_scores
    assert len(support_env.finished_scores) == 6
    assert len({a, b, c, *support_env.finished_scores[:3]}) == 4
    assert board["evaluator0"]["random_score"] == pytest.approx((a + b + c) / 3)


def test_final_episodes_come_on_top_of_those_of_the_last_policy(tmp_path):
    run, board = evaluating(tmp_path, episodes_per_policy=2, final_episodes=3)
    publish_policy(run.folders.policy, 0.5, epoch=4)

    def begin_final_phase():
        assert epochs_of(run) == [4] * 2
        assert math.isnan(board["evaluator0"]["random_score"])
        board[LAUNCHER]["phase"] = FINAL_EPISODES
        return False

    evaluate(context_of(run, board, "evaluator0", Script(on_idle=begin_final_phase)))
    assert epochs_of(run) == [4] * 5


def test_final_episodes_are_not_repeated_after_a_restart(tmp_path):
    run, board = evaluating(tmp_path, final_episodes=3)
    publish_policy(run.folders.policy, 0.5, epoch=4)
    row = board["evaluator0"]
    row["epoch"], row["final_episodes"] = 4, 2
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    evaluate(context_of(run, board, "evaluator0", Script()))
    assert epochs_of(run) == [4]


def test_a_run_without_final_episodes_has_no_random_score(tmp_path):
    run, board = evaluating(tmp_path, final_episodes=0)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    evaluate(context_of(run, board, "evaluator0", Script()))
    assert rows_of(run) == []
    assert math.isnan(board["evaluator0"]["random_score"])


def losing(monkeypatch, is_lost):
    """Every first step of an episode is lost for which `is_lost(number)` holds."""
    real, begun = SafeEnv.reset, []

    def reset(env):
        begun.append(env)
        return real(env)

    step = SafeEnv.step
    monkeypatch.setattr(SafeEnv, "reset", reset)
    monkeypatch.setattr(
        SafeEnv,
        "step",
        lambda env, action: None if is_lost(len(begun)) else step(env, action),
    )


def test_the_final_phase_ends_where_every_episode_is_lost(
    tmp_path, monkeypatch, capsys
):
    run, board = evaluating(tmp_path, final_episodes=3, batch_size=2)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    losing(monkeypatch, lambda number: True)
    evaluate(context_of(run, board, "evaluator0", Script()))
    assert rows_of(run) == []
    assert math.isnan(board["evaluator0"]["random_score"])
    assert "3 of the final episodes are given up" in capsys.readouterr().out


def test_lost_final_episodes_are_run_again(tmp_path, monkeypatch):
    run, board = evaluating(tmp_path, final_episodes=3)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    losing(monkeypatch, lambda number: number % 2)
    evaluate(context_of(run, board, "evaluator0", Script()))
    assert epochs_of(run) == [1] * 3
    *_, a, b, c = support_env.finished_scores
    assert board["evaluator0"]["random_score"] == pytest.approx((a + b + c) / 3)


def test_random_episodes_give_up_where_every_one_is_lost(tmp_path, monkeypatch):
    run, board = evaluating(tmp_path, final_episodes=3)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    losing(monkeypatch, lambda number: number > 3)
    evaluate(context_of(run, board, "evaluator0", Script()))
    assert epochs_of(run) == [1] * 3
    assert math.isnan(board["evaluator0"]["random_score"])


def test_an_evaluator_shows_life_after_each_environment(tmp_path, monkeypatch):
    run, board = evaluating(tmp_path, batch_size=3, final_episodes=3)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    row, real = board["evaluator0"], SafeEnv.reset

    def slow(env):
        assert row["heartbeat"] > 0, "none since the environment before"
        row["heartbeat"] = 0
        return real(env)

    row["heartbeat"] = 1
    monkeypatch.setattr(SafeEnv, "reset", slow)
    evaluate(context_of(run, board, "evaluator0", Script()))
    assert epochs_of(run) == [1] * 3


def test_random_episodes_that_are_interrupted_give_no_score(tmp_path):
    run, board = evaluating(tmp_path, final_episodes=2)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    stop = Script(on_question=lambda: len(support_env.steps) == 3 * LENGTH + 1)
    evaluate(context_of(run, board, "evaluator0", stop))
    assert math.isnan(board["evaluator0"]["random_score"])


# Interactors


def interacting(tmp_path, model=False, **keys):
    run, board = new_run(tmp_path, model, **keys)
    return run, board, ReplayBuffer.create(run.folders.replay, 3, 1, 100_000)


def learning(**keys):
    """A value learner's section with an exploration of its own."""
    return {"frames_before_learning": 0, "frames_per_update": False} | keys


def check_chains(replay, length, terminates):
    """Follows each environment through the replay; returns how often each is there.

    Each one begins at (episode 0, step 0) and goes on without a gap, each transition
    once and in order; the reward is the action that led to it.
    """
    batch = replay.read(0, replay.frames)
    np.testing.assert_array_equal(batch.reward, batch.action[:, 0])
    counts = {}
    for obs, next_obs, terminated in zip(
        batch.obs, batch.next_obs, batch.terminated, strict=True
    ):
        number = int(obs[0])
        episode, step = divmod(counts.get(number, 0), length)
        assert obs.tolist() == [number, episode, step]
        assert next_obs.tolist() == [number, episode, step + 1]
        assert terminated == (terminates and step + 1 == length)
        counts[number] = counts.get(number, 0) + 1
    return counts


@pytest.mark.parametrize("ending", ["termination", "truncation"])
def test_every_transition_is_stored_once_and_in_order(tmp_path, ending):
    run, board, replay = interacting(
        tmp_path,
        env={"length": 7, "ending": ending},
        agent_config={"batch_size": 3},
        policy_config=learning(),
    )
    stop = Script(on_question=lambda: replay.frames >= 300)
    interact(context_of(run, board, "interactor0", stop))
    assert replay.frames == 300
    counts = check_chains(replay, 7, terminates=ending == "termination")
    assert list(counts.values()) == [100, 100, 100]
    assert len(support_env.steps) == 300
    assert board["interactor0"]["heartbeat"] > 0


def test_interactors_of_other_seeds_see_other_environments(tmp_path):
    run, board, replay = interacting(
        tmp_path, agent_config={"batch_size": 3}, policy_config=learning()
    )
    for seed in range(3):
        until = replay.frames + 30
        stop = Script(on_question=lambda until=until: replay.frames >= until)
        interact(context_of(run, board, "interactor0", stop, seed))
    assert len(check_chains(replay, 5, terminates=True)) == 9
    actions = replay.read(0, replay.frames).action
    assert len(np.unique(actions)) == replay.frames


@pytest.mark.parametrize("model", [False, True])
def test_frames_stay_within_the_band_and_use_it_up(tmp_path, model):
    pace = {"frames_before_learning": 20, "frames_per_update": 0.5}
    keys = {"model_config": pace} if model else {}
    run, board, replay = interacting(
        tmp_path, model, agent_config={"batch_size": 4}, policy_config=pace, **keys
    )
    stood = []

    def on_question():
        updates = int(board[VALUERL]["updates"])
        # 20 + 0.5 u, and two steps of 4 frames.
        assert replay.frames <= 28 + 0.5 * updates
        return updates >= 60

    def learn_on():
        # It waits: as many frames are there as whole steps of 4 go into the band.
        updates = int(board[VALUERL]["updates"])
        stood.append(replay.frames)
        assert replay.frames == (28 + updates // 2) // 4 * 4
        if model:
            board[WORLDMODEL]["updates"] += 5
        board[VALUERL]["updates"] += 5
        return False

    interact(context_of(run, board, "interactor0", Script(on_question, learn_on)))
    assert stood[0] == 28
    assert stood[-1] == (28 + 55 // 2) // 4 * 4
    check_chains(replay, 5, terminates=True)


def test_the_slower_of_two_learners_holds_the_interactor_back(tmp_path):
    pace = {"frames_before_learning": 20, "frames_per_update": 0.5}
    run, board, replay = interacting(
        tmp_path,
        model=True,
        agent_config={"batch_size": 4},
        policy_config=pace,
        model_config=pace,
    )
    board[VALUERL]["updates"] = 1000
    board[WORLDMODEL]["pretrained"] = 1000
    interact(context_of(run, board, "interactor0", Script(on_idle=lambda: True)))
    assert replay.frames == 28


@pytest.mark.parametrize(("total", "frames"), [(1, 4), (40, 40), (41, 44), (43, 44)])
def test_no_frames_come_after_total_frames(tmp_path, total, frames):
    # Steps of 4: one that begins below the total is finished, none begins there.
    run, board, replay = interacting(
        tmp_path,
        agent_config={"batch_size": 4},
        policy_config=learning(),
        total_frames=total,
    )
    interact(context_of(run, board, "interactor0", Script(on_idle=lambda: True)))
    assert replay.frames == frames
    assert len(support_env.steps) == frames


def test_a_step_whose_room_another_interactor_took_is_stored_when_there_is_some(
    tmp_path, monkeypatch
):
    pace = {"frames_before_learning": 20, "frames_per_update": 0.5}
    run, board, replay = interacting(
        tmp_path, agent_config={"batch_size": 4}, policy_config=pace
    )
    rival = ReplayBuffer.open(run.folders.replay, writable=True)
    original = interactor.step_all

    def step_all_with_a_rival(*arguments):
        result = original(*arguments)
        if rival.frames == 24:  # the last room goes to the rival
            rival.append(rival.read(0, 4))
        return result

    monkeypatch.setattr(interactor, "step_all", step_all_with_a_rival)
    waited = []

    def learn_on():
        waited.append(replay.frames)
        board[VALUERL]["updates"] += 8
        return len(waited) == 2

    interact(context_of(run, board, "interactor0", Script(on_idle=learn_on)))
    assert waited == [28, 32]
    # 24 of its own, the rival's 4, and then the step that found no room.
    batch = replay.read(0, 32)
    own = [*range(24), *range(28, 32)]
    assert len({tuple(obs) for obs in batch.obs[own].tolist()}) == 28
    assert batch.obs[28:, 1:].tolist() == [[1, 1]] * 4  # step 6 of 5-step episodes


GREEDY = np.float32(np.tanh(np.float32(math.atanh(0.5))))


def greedy_share(batch):
    return float(np.isclose(batch.action[:, 0], GREEDY, atol=1e-6).mean())


@pytest.mark.parametrize("full_random", [0, 40])
def test_actions_are_random_while_there_is_no_policy(tmp_path, full_random):
    run, board, replay = interacting(
        tmp_path,
        agent_config={"batch_size": 4, "full_random_n": full_random},
        policy_config=learning(explore_chance=0.0),
    )

    def on_question():
        if replay.frames == 120 and not run.folders.policy.exists():
            publish_policy(run.folders.policy, 0.5)
        return replay.frames >= 200

    interact(context_of(run, board, "interactor0", Script(on_question)))
    assert greedy_share(replay.read(0, 120)) == 0
    actions = replay.read(0, 120).action
    assert actions.min() < -0.8  # uniform in [-1, 1]
    assert actions.max() > 0.8
    assert greedy_share(replay.read(120, 80)) == 1


def test_actions_are_random_for_the_first_frames_in_spite_of_a_policy(tmp_path):
    run, board, replay = interacting(
        tmp_path,
        agent_config={"batch_size": 4, "full_random_n": 100},
        policy_config=learning(explore_chance=0.0),
    )
    publish_policy(run.folders.policy, 0.5)
    stop = Script(on_question=lambda: replay.frames >= 200)
    interact(context_of(run, board, "interactor0", stop))
    assert greedy_share(replay.read(0, 100)) == 0
    assert greedy_share(replay.read(100, 100)) == 1


def test_actions_explore_with_the_configured_chance(tmp_path):
    run, board, replay = interacting(
        tmp_path,
        agent_config={"batch_size": 8, "full_random_n": 0},
        policy_config=learning(explore_chance=0.3),
    )
    publish_policy(run.folders.policy, 0.5)
    stop = Script(on_question=lambda: replay.frames >= 2000)
    interact(context_of(run, board, "interactor0", stop))
    # 2000 draws: standard deviation 0.0102.
    assert greedy_share(replay.read(0, 2000)) == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize(("reload_every", "taken_up"), [(1, 44), (5, 60)])
def test_a_new_policy_is_looked_for_every_so_many_vector_steps(
    tmp_path, reload_every, taken_up
):
    run, board, replay = interacting(
        tmp_path,
        agent_config={
            "batch_size": 4,
            "full_random_n": 0,
            "reload_every_n": reload_every,
        },
        policy_config=learning(explore_chance=0.0),
    )
    publish_policy(run.folders.policy, -0.5, epoch=1)

    def on_question():
        # After 11 steps of 4 frames; looked for before steps 0, 5, 10 and 15.
        if replay.frames == 44 and support_env.steps[-1][2]:
            publish_policy(run.folders.policy, 0.5, epoch=2)
        return replay.frames >= 100

    interact(context_of(run, board, "interactor0", Script(on_question)))
    assert greedy_share(replay.read(0, taken_up)) == 0
    assert greedy_share(replay.read(taken_up, 100 - taken_up)) == 1


# Interactors as processes


def start_interactor(run, number):
    name = f"interactor{number}"
    child = SPAWN.Process(
        target=child_main,
        args=("steve.acting.interactor:interact", run, name, 0, 0),
        daemon=True,
    )
    child.start()
    return child


def printed(run):
    files = sorted((run.folders.log / "processes").iterdir())
    return "\n".join(file.read_text() for file in files)


def test_processes_keep_the_band_and_lose_double_and_reorder_nothing(tmp_path):
    run, board, replay = interacting(
        tmp_path,
        env={"length": 7},
        agent_config={"count": 2, "batch_size": 4},
        policy_config={"frames_before_learning": 40, "frames_per_update": 0.5},
    )
    children = [start_interactor(run, number) for number in range(2)]
    deadline = time.monotonic() + PATIENCE

    def learn_until(reached, living):
        """A learner that keeps up, as far as the frames let it."""
        while not reached():
            updates = int(board[VALUERL]["updates"])
            assert replay.frames <= 40 + 0.5 * updates + 8
            if replay.frames > 40 + 0.5 * updates:
                board[VALUERL]["updates"] = updates + 1
            assert time.monotonic() < deadline, printed(run)
            assert all(child.is_alive() for child in living), printed(run)

    def all_took_part():
        obs = replay.read(0, replay.frames).obs
        counts = np.unique(obs[:, 0], return_counts=True)[1]
        return len(counts) == 8 and counts.min() > 20

    learn_until(all_took_part, children)
    children[0].kill()  # as it is; the other goes on
    children[0].join()
    enough = replay.frames + 400
    learn_until(lambda: replay.frames >= enough, children[1:])
    children[1].terminate()
    children[1].join(PATIENCE)
    assert children[1].exitcode == STOPPED, printed(run)
    assert replay.recover() == 0
    counts = check_chains(replay, 7, terminates=True)
    assert len(counts) == 8
    assert sum(counts.values()) == replay.frames >= enough
