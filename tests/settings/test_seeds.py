"""Seeds of draws: one for each purpose and counter, none like another."""

import json
import os
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from support import PATIENCE, PROJECT, make_config

from steve.settings.roles import process_names, process_seed
from steve.settings.seeds import Stream, generator, seed_of

COUNTERS = [(), (0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (2**40,), (1, 0, 3)]


def test_the_numbers_of_streams_never_change():
    """They are part of what a seed means: new ones get new numbers."""
    assert {stream.name: stream.value for stream in Stream} == {
        "VALUERL": 1,
        "WORLDMODEL": 2,
        "VALUERL_BATCH": 3,
        "WORLDMODEL_BATCH": 4,
        "ACTION": 5,
        "EPISODE": 6,
        "EVALUATION": 7,
        "FINAL_EPISODE": 8,
        "RANDOM_SCORE": 9,
        "PROCESS": 10,
    }


def test_seeds_stay_what_they_are():
    """Literal values: a change would make every run of an earlier version another."""
    found = [
        seed_of(0, Stream.VALUERL),
        seed_of(1, Stream.EPISODE, 3, 7),
        int(generator(2, Stream.ACTION, 5).integers(2**32)),
    ]
    assert found == [673228719, 3380443932, 226781862]


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**40])
def test_each_seed_is_of_32_bits_and_the_same_each_time(seed):
    for counters in COUNTERS:
        found = seed_of(seed, Stream.EPISODE, *counters)
        assert 0 <= found < 2**32
        assert found == seed_of(seed, Stream.EPISODE, *counters)
        draws = [generator(seed, Stream.ACTION, *counters).random(9) for _ in "ab"]
        np.testing.assert_array_equal(*draws)


def test_no_two_draws_share_a_seed():
    keys = [
        (seed, stream, *counters)
        for seed in range(4)
        for stream in Stream
        for counters in COUNTERS
    ]
    # All 64 bits that a generator starts with, since of 32 some may well be equal.
    found = {int(generator(*key).integers(2**63)) for key in keys}
    assert len(found) == len(keys)


def longest_common_part(first, second):
    """The length of the longest run of equal numbers at any shift of two draws."""
    longest = 0
    for shift in range(-len(first) + 1, len(first)):
        ours = first[max(0, shift) : len(first) + min(0, shift)]
        theirs = second[max(0, -shift) : len(second) - max(0, shift)]
        longest = max(longest, int((ours == theirs).sum()))
    return longest


def test_draws_of_neighbouring_seeds_streams_and_counters_are_no_shifted_copies():
    keys = [
        *((seed, Stream.ACTION, 0) for seed in (0, 1, 2)),
        *((0, stream, 0) for stream in (Stream.EPISODE, Stream.EVALUATION)),
        *((0, Stream.ACTION, turn) for turn in (1, 2)),
    ]
    draws = [generator(*key).random(200) for key in keys]
    for first, second in combinations(draws, 2):
        assert longest_common_part(first, second) == 0
        # Of independent numbers: deviation 1 / sqrt(200) = 0.07.
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 * 0.071


def test_seeds_are_spread_evenly():
    found = np.array(
        [seed_of(s, Stream.EPISODE, 0, e) for s in range(5) for e in range(400)]
    )
    bits = (found[:, None] >> np.arange(32)) & 1
    # 2000 fair draws: deviation 0.5 / sqrt(2000) = 0.0112.
    assert (np.abs(bits.mean(0) - 0.5) < 5 * 0.0112).all()


# Processes


def test_every_process_of_every_seed_has_a_seed_of_its_own(tmp_path):
    seeds = []
    for seed in range(30):
        config = make_config(
            tmp_path,
            model=True,
            seed=seed,
            agent_config={"count": 3},
            evaluator_config={"count": 3},
        )
        seeds += [process_seed(config, name) for name in process_names(config)]
    assert len(seeds) == 30 * 9
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_learners_seed_does_not_depend_on_the_other_processes(tmp_path):
    few = make_config(tmp_path, seed=3)
    many = make_config(tmp_path, model=True, seed=3, agent_config={"count": 9})
    assert process_seed(few, "valuerl") == process_seed(many, "valuerl")
    fewer = make_config(tmp_path, model=True, seed=3, evaluator_config={"count": 0})
    assert process_seed(fewer, "worldmodel") == process_seed(many, "worldmodel")
    assert process_seed(many, "worldmodel") != process_seed(many, "valuerl")


def test_equal_inputs_give_the_same_seed_in_every_process(tmp_path):
    config = make_config(tmp_path, model=True, seed=5)
    seeds = [process_seed(config, name) for name in process_names(config)]
    script = (
        "from support import make_config\n"
        "from steve.settings.roles import process_names, process_seed\n"
        f"config = make_config({str(tmp_path / 'elsewhere')!r}, model=True, seed=5)\n"
        "print([process_seed(config, n) for n in process_names(config)])\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", script],
        env={
            **os.environ,
            "PYTHONPATH": str(PROJECT / "tests"),
            "PYTHONHASHSEED": "1",
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert json.loads(output.stdout) == seeds
