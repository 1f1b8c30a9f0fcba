"""The ablation's table: rows of equal size where that is promised, trained once each."""

from __future__ import annotations

import json
import random
import sys
from itertools import islice
from pathlib import Path

import pytest

from atlas_model.sizes import num_parameters
from atlas_model.training.prose import HELD_OUT
from atlas_model.training.rows import ROWS, main
from atlas_model.training.synthetic_prose import SyntheticProse


@pytest.mark.parametrize("name", ["window alone", "transformer"])
def test_a_baseline_has_as_many_parameters_as_the_base(name: str) -> None:
    assert num_parameters(ROWS[name]) == pytest.approx(num_parameters(ROWS["base"]), rel=1e-3)


def test_a_row_that_a_table_has_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    books = tmp_path / "books"
    books.mkdir()
    for number, name in enumerate(("read.txt", HELD_OUT[0])):
        sentences = islice(SyntheticProse().passage(random.Random(number)), 3000)
        (books / name).write_text("\n".join(sentence.text for sentence in sentences))
    table = tmp_path / "rows.jsonl"
    arguments = ["--corpus", str(books), "--out", str(table), "--tokens", "2048", "--rows", "window alone"]
    monkeypatch.setattr(sys, "argv", ["rows", *arguments])
    main()
    main()
    (line,) = [json.loads(line) for line in table.read_text().splitlines()]
    assert (line["row"], line["seed"], line["training_tokens"]) == ("window alone", 0, 2048)
    assert line["perplexity_4_facts_in_512"] > 100.0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["--rows", "gd"], "none of"), (["--seeds", "one"], "whole numbers"), (["--corpus", "nowhere"], "no text")],
)
def test_a_table_that_cannot_be_made_is_refused(
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = ["--corpus", str(tmp_path), "--out", str(tmp_path / "rows.jsonl")]
    monkeypatch.setattr(sys, "argv", ["rows", *known, *arguments])
    with pytest.raises(SystemExit):
        main()
    assert reason in capsys.readouterr().err
