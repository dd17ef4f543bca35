"""Loggers that a configuration names: all get the same, and none harms the run."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import support_loggers
from support import make_config, make_run
from support_loggers import Writer

from steve import loggers
from steve.loggers import experiment_of, factory_of
from steve.loggers.process import Handed, main
from steve.settings.roles import LAUNCHER, VALUERL, process_names, process_seed
from steve.settings.schema import LoggerConfig
from steve.storage.board import FINAL_EPISODES, Board
from steve.storage.tables import append_row
from steve.util import RunError, UserError

OWN = "support_loggers:Writer"


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


def run_with(tmp_path, *entries):
    named = [{"entry_point": OWN, "kwargs": kwargs} for kwargs in entries]
    return make_run(make_config(tmp_path, loggers=named))


def log(run, *updates):
    for number in updates:
        row = {"updates": number, "loss": 0.5}
        append_row(run.folders.learner_log(VALUERL), row)


def steps(writer):
    return [step for _, step, _ in writer.points]


def handed(run):
    said = []
    return Handed(run, said.append), said


def test_a_users_own_logger_gets_the_experiment_and_each_point_once(tmp_path, made):
    run = run_with(tmp_path, {})
    first, said = handed(run)
    log(run, 100, 200)
    first.refresh()
    first.refresh()
    first.close()
    second, _ = handed(run)  # a resume
    log(run, 300)
    second.refresh()
    assert made[0].points == [("valuerl", n, {"loss": 0.5}) for n in (100, 200)]
    assert made[0].closed
    assert steps(made[1]) == [300]
    one, other = (writer.experiment for writer in made)
    assert one.name == "Counting-v0/experiment"
    assert one.id == other.id
    assert one.hyperparameters["policy_config.batch_size"] == 512
    assert said == []


def test_points_that_nobody_took_come_after_a_kill(tmp_path, made):
    run = run_with(tmp_path, {})
    log(run, 100)
    handed(run)[0].refresh()
    log(run, 200)  # then all is killed
    handed(run)[0].refresh()
    assert [steps(writer) for writer in made] == [[100], [200]]


def test_a_logger_that_fails_gets_nothing_more_and_says_so_once(tmp_path, made):
    run = run_with(tmp_path, {"fails_at": 200})
    both, said = handed(run)
    log(run, 100, 200)
    both.refresh()
    log(run, 300)
    both.refresh()
    both.close()
    assert steps(made[0]) == [100]
    line = f"loggers: {OWN}: ConnectionError: gone; it gets nothing more"
    assert said == both.given_up == [line]


@pytest.mark.parametrize("others", [0, 1])
def test_after_a_failure_a_resume_hands_over_what_was_not_taken(tmp_path, made, others):
    run = run_with(tmp_path, {"fails_at": 300}, *[{}] * others)
    both, _ = handed(run)
    log(run, 100, 200, 300, 400)
    both.refresh()
    both.close()
    again, _ = handed(run_with(tmp_path, *[{}] * (1 + others)))  # a resume
    again.refresh()
    assert [steps(writer) for writer in made[: 1 + others]] == [
        [100, 200],
        *[[100, 200, 300, 400]] * others,
    ]
    assert [steps(writer) for writer in made[1 + others :]] == [
        [300, 400],
        *[[]] * others,
    ]


def test_loggers_with_the_same_entry_point_each_get_each_point_once(tmp_path, made):
    run = run_with(tmp_path, {}, {"fails_at": 200})
    both, said = handed(run)
    log(run, 100)
    both.refresh()
    both.close()
    both, said = handed(run)  # a resume
    log(run, 200)
    both.refresh()
    assert [steps(writer) for writer in made] == [[100], [100], [200], []]
    assert [writer.closed for writer in made] == [True, True, False, False]
    first = made[0].experiment.id
    ids = [writer.experiment.id for writer in made]
    assert ids == [first, f"{first}-2"] * 2
    assert said == [f"loggers: {OWN}-2: ConnectionError: gone; it gets nothing more"]
    record = json.loads(run.folders.loggers.read_text())
    assert record["delivered"] == {OWN: {VALUERL: 200}, f"{OWN}-2": {VALUERL: 100}}


@pytest.mark.parametrize(
    ("entry_point", "kwargs", "message"),
    [
        (OWN, {"broken": True}, "ValueError: no such project"),
        (OWN, {"colour": "red"}, "unexpected keyword argument 'colour'"),
    ],
)
def test_a_logger_that_cannot_be_made_is_one_line(
    tmp_path, made, entry_point, kwargs, message
):
    with pytest.raises(UserError, match=message) as caught:
        handed(run_with(tmp_path, kwargs))
    assert str(caught.value).startswith(f"loggers: {entry_point}: ")
    assert "\n" not in str(caught.value)


def test_a_logger_of_another_form_is_said_before_the_start(tmp_path, monkeypatch):
    class NoStep:
        def __init__(self, experiment, path): ...

        def log(self, group, values): ...

        def close(self): ...

    class NoClose(NoStep):
        close = None

        def log(self, group, step, values): ...

    monkeypatch.setattr(support_loggers, "Mine", NoStep, raising=False)
    mine = {"entry_point": "support_loggers:Mine"}
    for kwargs, form, said in (
        (
            {"path": "x"},
            NoStep,
            "loggers: support_loggers:Mine.log: TypeError: too many",
        ),
        ({"path": "x"}, NoClose, "loggers: there is no support_loggers:Mine.close()"),
        ({}, NoClose, "loggers: support_loggers:Mine: TypeError: missing a required"),
        ({"file": "x"}, NoClose, "loggers: support_loggers:Mine: TypeError: missing a"),
    ):
        monkeypatch.setattr(support_loggers, "Mine", form)
        config = make_config(tmp_path, loggers=[{**mine, "kwargs": kwargs}])
        with pytest.raises(UserError) as caught:
            loggers.check(config)
        assert str(caught.value).startswith(said)
    # One that is made by a function is asked for no more.
    monkeypatch.setattr(support_loggers, "Mine", lambda experiment: None)
    loggers.check(make_config(tmp_path, loggers=[mine]))


@pytest.mark.parametrize(
    ("entry_point", "message"),
    [
        ("wandb", r"wandb is not installed; run: pip install 'steve-rl\[wandb\]'"),
        ("mlflow", r"mlflow is not installed; run: pip install 'steve-rl\[mlflow\]'"),
        ("support_loggers:Other", "support_loggers has no class Other"),
        ("no_such_module_here:Other", "cannot be imported"),
    ],
)
def test_what_cannot_be_had_is_said_before_the_start(
    tmp_path, monkeypatch, entry_point, message
):
    monkeypatch.setattr(loggers, "is_installed", lambda name: False)
    config = make_config(tmp_path, loggers=[{"entry_point": entry_point}])
    with pytest.raises(UserError, match=message):
        loggers.check(config)


def test_a_logger_is_a_process_that_changes_no_seed(tmp_path):
    without, config = make_config(tmp_path), run_with(tmp_path, {}).config
    names = process_names(config)
    assert names == [*process_names(without), "logger"]
    for name in names[:-1]:
        assert process_seed(config, name) == process_seed(without, name)


def test_the_process_hands_over_all_before_it_ends(tmp_path, made):
    run = run_with(tmp_path, {})
    board = Board.create(run.folders.board, run.config)
    board[LAUNCHER]["phase"], board[VALUERL]["ready"] = FINAL_EPISODES, 1
    log(run, 100)
    run.folders.scores.write_text("hours,epochs,frames,score\n0.1,1,40,2.0\n")
    main(SimpleNamespace(run=run, name="logger", board=board, stop=lambda: True))
    assert board["logger"]["ready"]
    assert made[0].points == [
        ("valuerl", 100, {"loss": 0.5}),
        ("evaluation", 40, {"score": 2.0}),
    ]
    assert made[0].closed


def test_the_process_ends_with_the_line_of_a_logger_that_has_failed(tmp_path, made):
    run = run_with(tmp_path, {"fails_at": 100})
    board = Board.create(run.folders.board, run.config)
    board[VALUERL]["ready"] = 1
    log(run, 100)
    with pytest.raises(RunError, match="ConnectionError: gone; it gets nothing more"):
        main(SimpleNamespace(run=run, name="logger", board=board, stop=lambda: True))


@pytest.mark.parametrize("content", ["{", "[]", '{"id": 7}', '{"id": "x"}'])
def test_a_damaged_record_starts_over(tmp_path, made, content):
    run = run_with(tmp_path, {})
    run.folders.loggers.write_text(content)
    log(run, 100)
    loggers, said = handed(run)
    loggers.refresh()
    assert steps(made[0]) == [100]
    aside = run.folders.loggers.with_name("loggers.json.damaged")
    assert aside.read_text() == content
    assert said == [
        f"{run.folders.loggers}: is damaged and is now loggers.json.damaged; loggers "
        "begin a new record of this run"
    ]
    record = json.loads(run.folders.loggers.read_text())
    assert record == {"id": made[0].experiment.id, "delivered": {OWN: {VALUERL: 100}}}


# Those that come along


@pytest.fixture
def experiment(tmp_path):
    return experiment_of(make_run(make_config(tmp_path, seed=7)), "abc")


def stand_in(monkeypatch, name, **content):
    """A module of that name, in place of one that is not installed."""
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(loggers, "is_installed", lambda name: True)


def test_weights_and_biases_gets_a_step_for_each_group(monkeypatch, experiment):
    calls = []

    class Run:
        def __getattr__(self, name):
            return lambda *a, **k: calls.append((name, *a, *k.items()))

    def init(**kwargs):
        calls.append(("init", kwargs))
        return Run()

    stand_in(monkeypatch, "wandb", init=init)
    factory = factory_of(LoggerConfig(entry_point="wandb"))
    logger = factory(experiment, mode="offline", project="mine")
    logger.log("valuerl", 500, {"q_loss": 0.5})
    logger.log("valuerl", 1000, {"q_loss": 0.25})
    logger.close()
    (_, given), *others = calls
    assert (given["id"], given["resume"], given["mode"]) == ("abc", "allow", "offline")
    assert (given["project"], given["name"]) == ("mine", "Counting-v0/experiment")
    assert given["reinit"] == "create_new"
    assert given["config"]["seed"] == 7
    assert others == [
        ("define_metric", "valuerl/step"),
        ("define_metric", "valuerl/*", ("step_metric", "valuerl/step")),
        ("log", {"valuerl/step": 500, "valuerl/q_loss": 0.5}),
        ("log", {"valuerl/step": 1000, "valuerl/q_loss": 0.25}),
        ("finish",),
    ]


class Store:
    """What an MLflow client of a local store answers."""

    def __init__(self):
        self.experiments, self.runs, self.metrics, self.parameters = [], [], [], {}

    def __call__(self, tracking_uri):
        self.uri = tracking_uri
        return self

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=name) if self.experiments else None

    def create_experiment(self, name):
        self.experiments.append(name)
        return name

    def search_runs(self, places, filter_string):
        return [run for run in self.runs if f"'{run.tag}'" in filter_string]

    def create_run(self, place, tags, run_name):
        info = SimpleNamespace(run_id=f"{place}/{run_name}", status="RUNNING")
        run = SimpleNamespace(info=info, tag=tags["steve.id"])
        self.runs.append(run)
        return run

    def update_run(self, run_id, status):
        self.runs[0].info.status = status

    def set_terminated(self, run_id):
        self.update_run(run_id, "FINISHED")

    def log_batch(self, run_id, metrics=(), params=()):
        assert len(params) <= 100
        self.parameters |= dict(params)
        self.metrics += [(run_id, key, value, step) for key, value, _, step in metrics]


def test_mlflow_gets_one_run_that_a_resume_continues(monkeypatch, experiment):
    store = Store()
    for name in ("mlflow", "mlflow.tracking", "mlflow.entities"):
        stand_in(monkeypatch, name)
    kinds = {"Metric": lambda *a: a, "Param": lambda *a: a}
    stand_in(monkeypatch, "mlflow.entities", **kinds)
    stand_in(monkeypatch, "mlflow.tracking", MlflowClient=store)
    factory = factory_of(LoggerConfig(entry_point="mlflow"))
    for step in (500, 1000):
        logger = factory(experiment, tracking_uri="file:///runs")
        assert store.runs[0].info.status == "RUNNING"
        logger.log("valuerl", step, {"q_loss": 0.5, "hours": 1.0})
        logger.close()
    name = "steve/Counting-v0/experiment"
    assert store.metrics == [
        (name, f"valuerl/{key}", value, step)
        for step in (500, 1000)
        for key, value in (("q_loss", 0.5), ("hours", 1.0))
    ]
    assert store.uri == "file:///runs"
    assert store.parameters["seed"] == "7"
    assert [run.info.status for run in store.runs] == ["FINISHED"]


# With the packages themselves, where they are installed


def test_weights_and_biases_itself_takes_all_of_it_offline(
    tmp_path, monkeypatch, experiment
):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (500, 1000):  # the second one is a resume
        factory = factory_of(LoggerConfig(entry_point="wandb"))
        logger = factory(experiment, mode="offline", dir=str(tmp_path))
        logger.log("valuerl", step, {"q_loss": 0.5})
        logger.log("evaluation", step // 10, {"score": -1.0})
        logger.close()
    assert len(list(tmp_path.rglob(f"run-{experiment.id}.wandb"))) == 2


def test_weights_and_biases_itself_takes_two_projects(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    kwargs = {"mode": "offline", "dir": str(tmp_path)}
    named = [
        {"entry_point": "wandb", "kwargs": {**kwargs, "project": project}}
        for project in ("one", "two")
    ]
    both, said = handed(make_run(make_config(tmp_path, loggers=named)))
    both.close()
    assert said == []
    assert len(list(tmp_path.rglob("run-*.wandb"))) == 2


def test_mlflow_itself_has_one_run_in_a_local_store(tmp_path, experiment):
    tracking = pytest.importorskip("mlflow.tracking")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for step in (500, 1000):
        factory = factory_of(LoggerConfig(entry_point="mlflow"))
        logger = factory(experiment, tracking_uri=store)
        logger.log("valuerl", step, {"q_loss": 0.5})
        logger.close()
    client = tracking.MlflowClient(tracking_uri=store)
    where = client.get_experiment_by_name("steve").experiment_id
    (run,) = client.search_runs([where])
    points = client.get_metric_history(run.info.run_id, "valuerl/q_loss")
    assert [(point.step, point.value) for point in points] == [(500, 0.5), (1000, 0.5)]
    assert run.data.params["seed"] == "7"
    assert run.info.status == "FINISHED"
