"""The processes of a run."""

from support import make_config

from steve.settings.roles import process_names


def test_there_is_a_row_for_each_process(tmp_path):
    counts = {"agent_config": {"count": 2}, "evaluator_config": {"count": 3}}
    assert process_names(make_config(tmp_path, **counts)) == [
        "launcher",
        "valuerl",
        "interactor0",
        "interactor1",
        "evaluator0",
        "evaluator1",
        "evaluator2",
    ]


def test_with_a_model_there_is_a_row_for_its_learner(tmp_path):
    config = make_config(tmp_path, model=True, evaluator_config={"count": 0})
    assert process_names(config) == [
        "launcher",
        "valuerl",
        "worldmodel",
        "interactor0",
    ]
