"""The model of what a job takes, against sums written out."""

from __future__ import annotations

import pytest

from benchmarks.scale import Constants, Job, bottleneck, seconds, stages, told

#: Round numbers: 10 rows a second planned, 20 read, 200 passed over; 50 tokens a second and core; 1 MB/s.
OF = Constants(
    start_up=2,
    tokens_a_row=100,
    plan=10,
    read=20,
    skip=200,
    tokenise=50,
    write=1,
    commit=0.5,
    finish=0.25,
)


def test_stages_take_their_share_of_the_rows_and_those_side_by_side_cost_the_slowest():
    job = Job(1000, devices=2, rate=500, cores=4, shard_rows=100, dims=250)
    assert stages(job, OF) == {
        "start-up": 2,
        "planning": 100,  # 1000 rows / 10
        "forward passes": 100,  # 100,000 tokens / (2 x 500)
        "tokenising": 250,  # 100,000 tokens / (2 x 4 x 50)
        "reading": 27.5,  # 500 rows / 20 + 500 rows / 200
        "writing": 3,  # 500 rows x 250 x 4 bytes = 0.5 MB, and 5 shards x 0.5 s
        "finishing": 2.5,  # 10 shards x 0.25 s
    }
    assert seconds(job, OF) == 2 + 100 + 250 + 2.5
    assert bottleneck(job, OF) == "tokenising"


def test_more_machines_shorten_everything_but_planning_and_passing_over():
    few, many = (Job(10**6, devices, rate=500, cores=400) for devices in (1, 1000))
    assert bottleneck(few, OF) == "forward passes"
    assert bottleneck(many, OF) == "planning"
    assert stages(many, OF)["reading"] > 10**6 / OF.skip * 0.99
    assert seconds(many, OF) > 10**6 / OF.plan


@pytest.mark.parametrize(
    ("took", "words"),
    [(45, "45 s"), (119, "119 s"), (150, "2.5 min"), (7100, "118 min"), (9000, "2.5 h"), (3 * 86400, "3.0 days")],
)
def test_times_are_printed_in_a_readable_unit(took, words):
    assert told(took) == words
