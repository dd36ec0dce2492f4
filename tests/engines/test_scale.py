"""The model of what a job takes, against sums written out."""

from __future__ import annotations

import pytest

from benchmarks.scale import Constants, Job, bottleneck, seconds, stages, told

#: Round numbers: 10 rows a second planned, 20 read; 50 tokens a second and core; 1 MB/s.
OF = Constants(
    start_up=2,
    tokens_a_row=100,
    plan=10,
    read=20,
    tokenise=50,
    write=1,
    commit=0.5,
    finish=0.25,
    read_records=0.125,
    puts=4,
)


def test_stages_take_their_share_of_the_rows_and_those_side_by_side_cost_the_slowest():
    job = Job(1000, devices=2, rate=500, cores=4, shard_rows=100, dims=250)
    assert stages(job, OF) == {
        "start-up": 2,
        "planning": 100,  # 1000 rows / 10: less than 1 GiB, so one process plans
        "forward passes": 100,  # 100,000 tokens / (2 x 500)
        "tokenising": 250,  # 100,000 tokens / (2 x 4 x 50)
        "reading": 25,  # 500 rows / 20
        "writing": 3,  # 500 rows x 250 x 4 bytes = 0.5 MB, and 5 shards x 0.5 s
        "finishing": 3.75,  # 10 shards x (0.25 s + 0.125 s): ranks read the records of others
    }
    assert seconds(job, OF) == 2 + 100 + 250 + 3.75
    assert bottleneck(job, OF) == "tokenising"


def test_processes_share_the_planning_of_segments_and_of_one_segment_nothing():
    rows = 10**10  # of 450 bytes: 4191 segments
    assert stages(Job(rows, 64, rate=500, cores=4), OF)["planning"] == rows / (10 * 64)
    assert stages(Job(rows, 64, rate=500, cores=4, planners=16), OF)["planning"] == rows / (10 * 16)
    assert stages(Job(rows, 10_000, rate=500, cores=4), OF)["planning"] == rows / (10 * 4191)
    assert stages(Job(10**6, 64, rate=500, cores=4), OF)["planning"] == 10**6 / 10


def test_a_store_answers_each_request_of_a_shard_in_turn_and_64_records_at_once_in_the_end():
    job = Job(1000, 2, rate=500, cores=4, shard_rows=100, dims=250, put_seconds=0.5)
    found = stages(job, OF)
    assert found["writing"] == 0.5 + 5 * (0.5 + 4 * 0.5)
    # Two listings of two objects a shard, 1,000 a page; then each record is read, 64 at a time.
    assert found["finishing"] == pytest.approx(10 * (0.25 + 2 * 2 / 1000 * 0.5 + 0.125 + 0.5 / 64))


def test_a_run_that_is_told_of_commits_lists_once_and_reads_no_record():
    job = Job(1000, 2, rate=500, cores=4, shard_rows=100, put_seconds=0.5, ranks=False)
    assert stages(job, OF)["finishing"] == pytest.approx(10 * (0.25 + 2 / 1000 * 0.5))


@pytest.mark.parametrize(
    ("took", "words"),
    [(45, "45 s"), (119, "119 s"), (150, "2.5 min"), (7100, "118 min"), (9000, "2.5 h"), (3 * 86400, "3.0 days")],
)
def test_times_are_printed_in_a_readable_unit(took, words):
    assert told(took) == words
