"""What a bench prints and writes."""

import json
from pathlib import Path

import pytest

from bench import report
from bench.plot import draw_latencies, draw_recall
from bench.summary import proportion


def test_the_last_line_is_the_document_and_the_file_has_the_records_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "result.json"
    report.publish({"figure": 0.5}, {"ticks": [1, 2]}, path)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"figure": 0.5}
    assert json.loads(path.read_text()) == {"figure": 0.5, "ticks": [1, 2]}


def test_a_figure_that_is_not_a_number_is_never_published(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        report.publish({"figure": float("nan")}, {}, None)


def test_a_header_says_where_and_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "recall", "--lengths", "2k"])
    header = report.header("recall")
    assert header["command"] == "python -m bench recall --lengths 2k"
    assert all(header[name] for name in ("date", "version", "cpu", "num_cores", "python", "torch"))


def test_pictures_are_drawn(tmp_path: Path) -> None:
    draw_recall({"on": [(100, proportion(9, 10)), (1000, proportion(0, 10))]}, tmp_path / "recall.png")
    draw_latencies({"ttft": [0.1, 0.3], "tpot": []}, tmp_path / "load.svg")
    assert (tmp_path / "recall.png").read_bytes().startswith(b"\x89PNG")
    assert "ttft" in (tmp_path / "load.svg").read_text()
