"""Figures of runs, worked out by hand on small ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eagle.evaluation.reading.runs import only_rounds, read_run
from eagle.evaluation.reading.summary import (
    RESAMPLES,
    Sums,
    accepted_at_least,
    compare,
    in_common,
    resampled,
    summarise,
)
from tests.evaluation.runfiles import Turn, write_run

# Question 1: rounds accept 2 of 3, 0 of 2. Question 2: 3 of 3, and 1 of 1 in a second turn.
DRAFTED = {
    1: [Turn([(2, 4), (0, 3)], 6.0)],
    2: [Turn([(3, 4)], 4.0), Turn([(1, 2)], 4.0)],
}
PLAIN = {
    1: [Turn([(0, 1)] * 4, 12.0, draft_seconds=0.0)],
    2: [Turn([(0, 1)] * 3, 8.0, draft_seconds=0.0)],
}


@pytest.fixture
def drafted(tmp_path: Path) -> Path:
    return write_run(tmp_path / "m-temperature-1.0_ea.jsonl", DRAFTED, {1: "math", 2: "stem"})


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write_run(tmp_path / "m-temperature-1.0_baseline.jsonl", PLAIN, {1: "math", 2: "stem"})


def test_figures_are_ratios_of_sums(drafted: Path) -> None:
    summary = summarise(Sums.of(read_run(drafted)))
    assert (summary.questions, summary.rounds) == (2, 4)
    # 1 + 3 + 1; 1 + 4 and 1 + 2.
    assert summary.new_tokens == 5 + 5 + 3
    values = {name: figure.value for name, figure in summary.figures.items() if figure is not None}
    assert values == {
        "accepted_per_round": 6 / 4,
        "tau": 10 / 4,
        "tokens_per_second": 13 / 14,
        "accepted_tokens_per_second": 6 / 14,
        # 3 of 3 and 1 of 1.
        "full_acceptance": 2 / 4,
    }
    assert summary.speed_up is None


def test_acceptance_by_depth_counts_only_trees_so_deep(drafted: Path) -> None:
    summary = summarise(Sums.of(read_run(drafted)))
    # Depth 1: 2, 3 and 1 of four trees; 2: 2 and 3 of three; 3: 3 of two.
    assert [depth.value for depth in summary.depths if depth is not None] == [3 / 4, 2 / 3, 1 / 2]
    assert accepted_at_least(read_run(drafted)).tolist() == [1.0, 3 / 4, 2 / 4, 1 / 4]


def test_the_parts_of_the_time_add_up(drafted: Path) -> None:
    phases = summarise(Sums.of(read_run(drafted))).phases
    # Three turns of 0.6 s, of which 0.2 s drafted the first tree; four rounds, one draft in an update.
    assert phases["prefill"] == pytest.approx(3 * 0.4)
    assert phases["draft"] == pytest.approx(4 * 0.2)
    assert phases["target"] == pytest.approx(4 * 1.0)
    assert phases["verify"] == pytest.approx(4 * 0.25)
    assert phases["commit"] == pytest.approx(4 * 0.5 - 0.2)
    assert sum(phases.values()) == pytest.approx(14.0)
    assert list(phases) == ["prefill", "draft", "target", "verify", "commit", "other"]


def test_without_draft_times_the_parts_say_so(tmp_path: Path) -> None:
    summary = summarise(Sums.of(read_run(write_run(tmp_path / "a.jsonl", DRAFTED, ids=False))))
    assert list(summary.phases) == ["prefill, first draft", "target", "verify", "commit, draft", "other"]
    assert summary.shares["commit, draft"] == pytest.approx(2.0 / 14.0)
    assert summary.shares["prefill, first draft"] == pytest.approx(1.8 / 14.0)


def test_a_run_that_drafts_nothing(plain: Path) -> None:
    summary = summarise(Sums.of(read_run(plain)))
    assert summary.depths == ()
    assert summary.figures["full_acceptance"] is None
    tau = summary.figures["tau"]
    assert tau is not None
    assert tau.value == 1.0


def test_speed_up_is_over_common_questions(drafted: Path, tmp_path: Path) -> None:
    baseline = write_run(tmp_path / "b.jsonl", {2: PLAIN[2], 3: PLAIN[1]})
    summary = summarise(Sums.of(read_run(drafted)), Sums.of(read_run(baseline)))
    # Question 2: 8 tokens in 8 s, over 4 tokens in 8 s.
    assert summary.speed_up is not None
    assert summary.speed_up.value == pytest.approx(2.0)
    assert summary.speed_up_questions == 1
    assert np.isnan(summary.speed_up.low)
    other = write_run(tmp_path / "c.jsonl", {9: PLAIN[1]})
    assert summarise(Sums.of(read_run(drafted)), Sums.of(read_run(other))).speed_up is None


def test_under_gamma_nothing_is_timed(drafted: Path, plain: Path) -> None:
    summary = summarise(Sums.of(only_rounds(read_run(drafted), 4)), Sums.of(read_run(plain)))
    assert summary.rounds == 2
    accepted = summary.figures["accepted_per_round"]
    assert accepted is not None
    assert accepted.value == 5 / 2
    assert summary.new_tokens is None
    assert summary.figures["tokens_per_second"] is None
    assert summary.speed_up is None
    assert summary.phases == {}


def test_categories(drafted: Path) -> None:
    by_category = Sums.of(read_run(drafted)).by_category()
    assert list(by_category) == ["math", "stem"]
    figure = summarise(by_category["stem"]).figures["accepted_per_round"]
    assert figure is not None
    assert figure.value == 2.0


def test_the_interval_is_that_of_drawing_questions(tmp_path: Path) -> None:
    """Two questions of which one accepts 0 of 1 rounds and the other 1: a quarter of the draws are twice the same."""
    run = write_run(tmp_path / "a.jsonl", {1: [Turn([(0, 2)], 1.0)], 2: [Turn([(1, 2)], 1.0)]})
    figure = summarise(Sums.of(read_run(run))).figures["accepted_per_round"]
    assert figure is not None
    assert (figure.value, figure.low, figure.high) == (0.5, 0.0, 1.0)
    drawn = resampled(np.array([[0.0], [1.0]]))[:, 0]
    shares = np.bincount(drawn.astype(int), minlength=3) / RESAMPLES
    assert np.abs(shares - [0.25, 0.5, 0.25]).max() < 5 * np.sqrt(0.25 / RESAMPLES)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """The mean of 40 normal values: the bootstrap's interval is close to 1.96 standard errors to each side."""
    values = np.random.default_rng(5).normal(size=(40, 1))
    drawn = resampled(np.concatenate([values, np.ones((40, 1))], axis=1))
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    error = values.std() / np.sqrt(40)
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1.0, abs=0.1)


def test_large_runs_are_drawn_in_parts_that_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = np.random.default_rng(0).random((30, 2))
    whole = resampled(columns)
    monkeypatch.setattr("eagle.evaluation.reading.summary.CHUNK", 1000)
    assert np.allclose(resampled(columns), whole)


def test_pairs_are_compared_question_by_question(tmp_path: Path) -> None:
    """One run is always twice as fast, however different the questions: paired, the ratio has no spread."""
    slow = {q: [Turn([(1, 3)] * q, 4.0 * q * q)] for q in range(1, 9)}
    fast = {q: [Turn([(1, 3)] * q, 2.0 * q * q)] for q in range(8, 0, -1)}
    first, second = in_common(
        Sums.of(read_run(write_run(tmp_path / "a.jsonl", slow))),
        Sums.of(read_run(write_run(tmp_path / "b.jsonl", fast))),
    )
    assert first.questions == second.questions
    compared = compare(first, second)["tokens_per_second"]
    assert compared.ratio is not None
    assert compared.ratio.value == pytest.approx(2.0)
    assert np.nan_to_num(compared.ratio.low, nan=2.0) == pytest.approx(2.0)
    assert np.nan_to_num(compared.ratio.high, nan=2.0) == pytest.approx(2.0)
    assert compared.difference.value == pytest.approx(compared.first)
    accepted = compare(first, second)["accepted_per_round"]
    assert accepted.difference.value == 0.0
