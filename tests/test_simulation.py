"""The simulation: its exact laws against enumeration, and the program."""

from __future__ import annotations

import itertools
import math
import warnings
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from eagle.simulation import __main__ as simulation
from eagle.simulation import laws
from eagle.simulation.__main__ import main
from eagle.simulation.laws import EXACT_LAWS, Pair
from eagle.simulation.trials import Result, draft_chain
from eagle.verification import RULES
from eagle.verification.cases import TOY_DRAFT, TOY_TARGET, chain, same_everywhere, sketched, toy
from eagle.verification.enumeration import Case, exact
from eagle.verification.verdict import endings

TOY = Pair.of(TOY_TARGET, TOY_DRAFT)
SIMULATED = [RULES[name] for name in EXACT_LAWS]


def means(pair: Pair, length: int) -> dict[str, float]:
    laws = {name: exact_laws(pair, length)[-1] for name, exact_laws in EXACT_LAWS.items()}
    return {name: float(law @ torch.arange(length + 1, dtype=torch.float64)) for name, law in laws.items()}


def enumerated_means(case: Case) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: result.expected_length for name, result in exact(case, SIMULATED).items()}


def enumerated_law(name: str, pair: Pair, length: int) -> torch.Tensor:
    """By every draft of the chain and every fall of the rule's coins."""
    law = torch.zeros(length + 1, dtype=torch.float64)
    p, tree = pair.target.expand(length + 1, -1), draft_chain(pair, length, torch.Generator())
    assert tree.laws is not None
    for tokens in itertools.product(range(len(pair.draft)), repeat=length):
        weight = math.prod(float(pair.draft[token]) for token in tokens)
        if weight:
            tree.tokens[1:] = tree.laws.columns[1:] = torch.tensor(tokens)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                plan = RULES[name].plan(tree, p)
            for node, probability in endings(plan):
                law[node] += weight * probability
    return law


def random_pair(vocabulary: int, seed: int) -> Pair:
    source = torch.Generator().manual_seed(seed)
    return Pair(*torch.randn(2, vocabulary, generator=source, dtype=torch.float64).softmax(-1))


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_the_toy_is_as_enumerated(length: int) -> None:
    assert means(TOY, length) == pytest.approx(enumerated_means(toy(length)), abs=1e-12)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_random_laws_are_as_enumerated(length: int) -> None:
    pair = random_pair(3, seed=length)
    target, draft = same_everywhere(pair.target.tolist()), same_everywhere(pair.draft.tolist())
    case = sketched("random", chain("draw", length), target, draft, length + 1)
    assert means(pair, length) == pytest.approx(enumerated_means(case), abs=1e-12)


@pytest.mark.parametrize("name", EXACT_LAWS)
@pytest.mark.parametrize(
    "pair",
    [
        TOY,
        random_pair(3, seed=11),
        Pair.of([0.5, 0.5, 0.0], [0.2, 0.3, 0.5]),
        Pair.of([0.2, 0.3, 0.5], [0.5, 0.5, 0.0]),
        Pair.of([0.25, 0.25, 0.5], [0.5, 0.25, 0.25]),
        Pair.of([0.3, 0.7], [0.3, 0.7]),
        Pair.of([1.0, 0.0], [0.0, 1.0]),
        Pair.of([1.0, 0.0], [1e-300, 1.0]),
    ],
    ids=["toy", "random", "zero in p", "zero in q", "a ratio of 1", "p = q", "disjoint", "tiny q"],
)
def test_whole_laws_are_as_enumerated(name: str, pair: Pair) -> None:
    for length, law in enumerate(EXACT_LAWS[name](pair, 4), start=1):
        torch.testing.assert_close(law, enumerated_law(name, pair, length), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", EXACT_LAWS)
@pytest.mark.parametrize("pair", [TOY, random_pair(5, seed=0)], ids=["toy", "five tokens"])
def test_laws_of_long_drafts(name: str, pair: Pair) -> None:
    laws = EXACT_LAWS[name](pair, 20)
    assert [len(law) for law in laws] == list(range(2, 22))
    for law in laws:
        assert float(law.sum()) == pytest.approx(1.0, abs=1e-12)
        assert float(law.min()) >= 0


def test_known_figures_of_the_toy() -> None:
    ninths = {"tokenwise": 10, "blockwise": 11, "naive_hsd": 12, "hsd": 11, "hsd_published": 12}
    assert means(TOY, 2) == pytest.approx({name: float(Fraction(n, 9)) for name, n in ninths.items()}, abs=1e-12)
    assert means(TOY, 10) == pytest.approx(
        {"tokenwise": 1.9653, "blockwise": 3.4593, "naive_hsd": 4.4824, "hsd": 3.4593, "hsd_published": 4.0021},
        abs=5e-5,
    )


def test_the_program(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["--max-length", "3", "--trials", "40", "--out", str(tmp_path / "made" / "here")]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    header = next(place for place, line in enumerate(lines) if line.startswith("draft length"))
    assert lines[header].split("  ")[-1] == "hsd_published (lossy)"
    assert len({len(line) for line in lines[header : header + 4]}) == 1
    assert lines[header + 2].split()[:2] == ["2", "1.1111"]
    assert lines[header + 2].count("1.2222 (") == 2
    assert "more than 4 standard errors: none" in printed
    assert "naive_hsd: its figures are of one round" in printed
    for name in ("histogram.png", "ccdf.png"):
        data = (tmp_path / "made" / "here" / name).read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        assert len(data) > 10_000


def test_plots_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "ccdf.png").mkdir()
    assert main(["--max-length", "1", "--trials", "1", "--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "draft length" in captured.out
    assert "cannot write there" in captured.err


def test_other_laws_and_no_plots(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    laws = ["--target", "0.2", "0.3", "0.5000001", "--draft", "0.5", "0.5", "0"]
    arguments = [*laws, "--max-length", "2", "--trials", "5", "--no-plots", "--out", str(tmp_path / "no")]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert "target: 0.2 0.3 0.5\ndraft: 0.5 0.5 0\n" in first
    assert not (tmp_path / "no").exists()
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
    assert main([*arguments, "--seed", "1"]) == 0
    assert capsys.readouterr().out != first


def test_disagreements_are_reported() -> None:
    law = torch.tensor([0.5, 0.5], dtype=torch.float64)
    right, wrong = (
        Result(RULES["hsd"], law, torch.tensor(counts, dtype=torch.float64)) for counts in ([45, 55], [10, 90])
    )
    assert right.standard_error == pytest.approx(0.05)
    assert simulation.disagreements([[right]]).endswith("standard errors: none")
    found, where, by_chance = simulation.disagreements([[right, wrong]]).splitlines()
    assert found.endswith("standard errors: 1")
    assert where == "hsd at draft length 1: 0.5000 exactly, 0.9000±0.0500 by Monte Carlo"
    assert "about 0.00013 of them" in by_chance


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--target", "0.5", "0.5", "--draft", "0.2", "0.3", "0.5"], "as many to both"),
        (["--target", "1.5", "-0.5"], "--target must hold finite numbers, 0 or more, not -0.5"),
        (["--draft", "0.5", "0.6"], "--draft must sum to 1"),
        (["--target", "1", "--draft", "1"], "at least 2"),
        (["--draft", "nan", "1"], "not nan"),
        (["--draft", "inf", "0"], "not inf"),
        (["--max-length", "0"], "--max-length must be 1 or more"),
        (["--trials", "0"], "--trials must be 1 or more"),
        (["--seed", "-1"], "--seed"),
        (["--max-length", "3", "--plot-length", "4"], "--plot-length must be 1 to 3"),
        (["--out", str(Path(__file__))], "cannot write there"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["--out", str(tmp_path), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert complaint in captured.err


def test_too_many_ratios_are_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laws, "MOST_RATIOS", 10)
    assert main(["--no-plots", "--trials", "1"]) == 2
    assert "too many different joint ratios" in capsys.readouterr().err
