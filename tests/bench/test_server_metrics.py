"""What a server's own counts say between two looks."""

from bench.serving.server_metrics import parse_samples, resume_seconds, session_costs

BEFORE = """\
# HELP atlas_session_resume_seconds Making a committed session ready to go on.
# TYPE atlas_session_resume_seconds histogram
atlas_session_resume_seconds_count{tier="host"} 2.0
atlas_session_resume_seconds_sum{tier="host"} 0.5
atlas_session_commit_seconds_count 1.0
atlas_session_commit_seconds_sum 1.0
"""
AFTER = """\
atlas_session_resume_seconds_count{tier="host"} 4.0
atlas_session_resume_seconds_sum{tier="host"} 1.0
atlas_session_resume_seconds_count{tier="store"} 1.0
atlas_session_resume_seconds_sum{tier="store"} 3e-01
atlas_session_commit_seconds_count 1.0
atlas_session_commit_seconds_sum 1.0
"""


def test_means_are_of_what_came_between() -> None:
    costs = session_costs(parse_samples(BEFORE), parse_samples(AFTER))["sessions"]
    assert costs == {
        "resume_device_seconds": None,
        "resume_host_seconds": {"n": 2, "mean": 0.25},
        "resume_store_seconds": {"n": 1, "mean": 0.3},
        "commit_seconds": None,
        "state_bytes": None,
    }


def test_what_was_not_counted_has_no_mean() -> None:
    assert resume_seconds(parse_samples(BEFORE), parse_samples(BEFORE), "host") is None


def test_a_server_that_does_not_count_says_nothing() -> None:
    assert session_costs(None, parse_samples(AFTER)) == {}
