"""Grids of methods and samplings, on a tiny chat pair, beside the programs of one cell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle.decoding.stored_trees import store
from eagle.evaluation import gen_baseline_answer_llama3chat, gen_ea_answer_llama3chat, sweep
from eagle.model.loading import ModelChoice, load_with_trees
from eagle.tree.shape import DETERMINISTIC, HYBRID, Sampling, TreeShape
from tests.evaluation.programs import arguments, lines, without_times
from tests.processes import run_until_killed
from tests.tiny import make_chat_pair

GRID = ["--temperature", "0", "1.0", "--top_p", "1.0", "0.9", "--method", "baseline", "eagle3", "hsd"]
CELLS = [
    f"tiny-temperature-{sampling}_{method}"
    for sampling in ("0.0", "1.0", "1.0-top_p-0.9")
    for method in ("baseline", "ea", "ea_hsd")
]
STORED = {
    DETERMINISTIC: {0.0: TreeShape(7, 2, 3), 1.0: TreeShape(9, 2, 4)},
    HYBRID: {1.0: TreeShape(6, 1, 2, Sampling(threshold=0.1, rho=0.5, samples=1))},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    made = make_chat_pair(tmp_path_factory.mktemp("chat"))
    store(made[1], "cpu", STORED)
    return made


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "question.jsonl"
    texts = [{"question_id": 81 + number, "category": "writing", "turns": [f"Tell {number}."]} for number in range(3)]
    file.write_text("".join(json.dumps(line) + "\n" for line in texts))
    return file


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EAGLE_CACHE", str(tmp_path / "cache"))


def folder(name: str) -> Path:
    return Path("mt_bench", name)


def same_runs(first: Path, second: Path) -> None:
    """Both folders hold the same files, but for what differs between any two runs."""
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert without_times(first / name) == without_times(second / name), name


def test_a_grid_is_what_the_single_programs_write(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        sweep.main(arguments(pair, questions, *GRID, "--folder_id", "grid", "--seed", "3", "--html", "page.html")) == 0
    )
    printed = capsys.readouterr()
    assert sorted(path.name for path in folder("grid").iterdir()) == sorted(
        f"{cell}{end}" for cell in CELLS for end in (".jsonl", "_info.jsonl", "_run.json")
    )
    assert "temperature 0 is greedy" in printed.err
    assert all(any(method in line for line in printed.out.splitlines()) for method in ("EAGLE-3", "HSD"))
    assert "<html" in Path("page.html").read_text()[:200]
    for temperature, top_p in (("0", "1.0"), ("1.0", "1.0"), ("1.0", "0.9")):
        single = arguments(pair, questions, "--seed", "3", "--temperature", temperature, "--top_p", top_p)
        single += ["--folder_id", "single"]
        assert gen_baseline_answer_llama3chat.main(single) == 0
        assert gen_ea_answer_llama3chat.main(single) == 0
        assert gen_ea_answer_llama3chat.main([*single, "--hsd"]) == 0
    same_runs(folder("grid"), folder("single"))
    trees = {
        cell: json.loads((folder("grid") / f"{cell}_run.json").read_text())["settings"].get("tree") for cell in CELLS
    }
    assert trees["tiny-temperature-1.0_baseline"] is None
    assert (
        trees["tiny-temperature-0.0_ea"] == trees["tiny-temperature-0.0_ea_hsd"] == STORED[DETERMINISTIC][0.0].record()
    )
    assert trees["tiny-temperature-1.0_ea"] == STORED[DETERMINISTIC][1.0].record()
    assert trees["tiny-temperature-1.0_ea_hsd"] == STORED[HYBRID][1.0].record()
    assert trees["tiny-temperature-1.0_ea_hsd"]["sampling"]["threshold"] == 0.1
    assert trees["tiny-temperature-0.0_ea_hsd"] == trees["tiny-temperature-0.0_ea"]


def test_killed_and_resumed_equals_uninterrupted(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--temperature", "0.7", "1.0", "--method", "hsd", "chain:blockwise"]
    assert sweep.main(arguments(pair, questions, *more, "--folder_id", "whole")) == 0
    more += ["--plot", "pictures", "--html", "page.html"]
    killed = arguments(pair, questions, *more, "--folder_id", "killed")
    last = folder("killed") / "tiny-temperature-1.0_ea_chain_blockwise.jsonl"
    # Where it would write the last cell of the second question: the other cells have that one, none has the last.
    run_until_killed(last, 1, sweep.main, killed)
    before = {file: file.read_bytes() for file in folder("killed").glob("*[a-z].jsonl") if "_info" not in file.name}
    assert len(before) == 4
    assert sorted(answers.count(b"\n") for answers in before.values()) == [1, 2, 2, 2]
    assert not Path("pictures").exists()
    capsys.readouterr()
    assert sweep.main(killed) == 0
    table = capsys.readouterr().out
    for run in ("HSD T=0.7", "chain tree, blockwise T=0.7", "HSD T=1.0", "chain tree, blockwise T=1.0"):
        (row,) = (line for line in table.splitlines() if line.startswith(f"{run}  "))
        assert row.removeprefix(run).split()[0] == "3"
        assert run in Path("page.html").read_text()
    assert {file.name for file in Path("pictures").iterdir()} == {
        f"{picture}.{kind}"
        for picture in ("accepted", "depth", "accepted_by_temperature", "time", "speed_by_temperature")
        for kind in ("png", "svg")
    }
    for file, answers in before.items():
        complete = answers[: answers.rindex(b"\n") + 1]
        assert file.read_bytes().startswith(complete)
    same_runs(folder("killed"), folder("whole"))


def test_a_sweep_goes_on_from_single_runs_and_back(pair: tuple[Path, Path], questions: Path) -> None:
    few = [*arguments(pair, questions), "--question-end", "1"]
    assert gen_ea_answer_llama3chat.main([*few, "--hsd"]) == 0
    files = {name: folder("f") / f"tiny-temperature-1.0_{name}.jsonl" for name in ("ea_hsd", "ea")}
    first = files["ea_hsd"].read_bytes()
    two = [*arguments(pair, questions), "--question-end", "2", "--method", "hsd", "eagle3"]
    assert sweep.main(two) == 0
    assert files["ea_hsd"].read_bytes().startswith(first)
    swept = files["ea"].read_bytes()
    assert gen_ea_answer_llama3chat.main(arguments(pair, questions)) == 0
    assert files["ea"].read_bytes().startswith(swept)
    assert [len(lines(files[name])) for name in ("ea_hsd", "ea")] == [2, 3]


def test_cells_take_turns_question_by_question(pair: tuple[Path, Path], questions: Path) -> None:
    assert sweep.main(arguments(pair, questions, "--method", "eagle3", "hsd", "baseline")) == 0
    finished = [
        (answer["tstamp"], answer["question_id"], method)
        for method in ("ea", "ea_hsd", "baseline")
        for answer in lines(folder("f") / f"tiny-temperature-1.0_{method}.jsonl")
    ]
    order = [(question, method) for _, question, method in sorted(finished)]
    assert order == [(question, method) for question in (81, 82, 83) for method in ("ea", "ea_hsd", "baseline")]


def test_cells_that_are_the_same_are_answered_once(pair: tuple[Path, Path], questions: Path) -> None:
    same = ["--temperature", "0", "0.0", "--top_p", "0.9", "0", "1", "--method", "hsd", "hybrid:hsd"]
    assert sweep.main(arguments(pair, questions, *same, "--question-end", "1")) == 0
    assert [file.name for file in folder("f").glob("*_run.json")] == ["tiny-temperature-0.0_ea_hsd_run.json"]


def test_given_trees_hold_for_all_methods_and_samples_for_hybrid_ones(pair: tuple[Path, Path], questions: Path) -> None:
    more = ["--total-token", "7", "--rho", "0.7", "--question-end", "1", "--method", "eagle3", "hsd", "baseline"]
    assert sweep.main(arguments(pair, questions, *more)) == 0
    trees = [
        json.loads((folder("f") / f"tiny-temperature-1.0_{method}_run.json").read_text())["settings"]["tree"]
        for method in ("ea", "ea_hsd")
    ]
    assert [tree["total_token"] for tree in trees] == [7, 7]
    assert trees[0]["sampling"] is None
    assert trees[1]["sampling"]["rho"] == 0.7


def test_bounds_of_keys_go_to_the_methods_that_have_keys(pair: tuple[Path, Path], questions: Path) -> None:
    keys = ["--least", "0.1", "--least-expanded", "0.2"]
    methods = ["eagle3", "chain:hsd", "lookup/deterministic:tokenwise", "baseline"]
    found = sweep.grid(sweep.parser().parse_args(arguments(pair, questions, "--method", *methods, *keys)))
    bounds = [(cell.choice.least, cell.choice.least_expanded) for cell in found]
    assert bounds == [(0.1, 0.2), (None, None), (0.1, None), (None, None)]


def test_trees_are_measured_with_one_load(pair: tuple[Path, Path]) -> None:
    measured = [
        ModelChoice(base_model_path=str(pair[0]), ea_model_path=str(pair[1]), device="cpu", total_token=-1, kind=kind)
        for kind in (DETERMINISTIC, HYBRID, HYBRID)
    ]
    fixed = ModelChoice(base_model_path=str(pair[0]), ea_model_path=str(pair[1]), device="cpu", total_token=5)
    model, trees = load_with_trees([*measured, fixed])
    assert model.shape == trees[0]
    assert trees[1] == trees[2]
    assert [tree.sampling is None for tree in trees] == [True, False, False, True]
    assert all(2 <= tree.total_token <= 60 for tree in trees)
    assert trees[3].total_token == 5


def failing(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """Run to an error; what it printed."""
    capsys.readouterr()
    assert sweep.main(argv) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--method", "eagle4"], "a method is eagle3, hsd or [DRAFTER/]TREE:RULE"),
        (["--method", "chain:"], "a method is eagle3, hsd or [DRAFTER/]TREE:RULE"),
        (["--method", "bush:hsd"], "tree must be one of"),
        (["--method", "hybrid:blockwise"], "needs tree='chain'"),
        (["--temperature", "1.0", "-1"], "temperature must be"),
        (["--temperature", "0", "--top_p", "7"], "top_p must lie in"),
        (["--method", "eagle3", "baseline", "--rho", "0.5"], "--rho is for hybrid trees"),
        (["--rho", "1.5"], "rho must lie in"),
        (["--method", "chain:hsd", "baseline", "--least", "0.1"], "not for chains"),
        (["--total-token", "1"], "total_token must be"),
        (["--question-file", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--bench-name", "humaneval", "--question-begin", "9"], "no questions in the range"),
        (["--device", "tpu"], "--device must be"),
    ],
)
def test_bad_arguments_are_one_line(
    pair: tuple[Path, Path], questions: Path, more: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert complaint in failing(capsys, arguments(pair, questions, *more))
    assert not list(Path().rglob("*_ea*.jsonl"))


def test_nothing_is_touched_where_one_cell_has_other_settings(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gen_ea_answer_llama3chat.main(arguments(pair, questions, "--hsd", "--seed", "1", "--question-end", "1")) == 0
    before = {path.name: path.read_bytes() for path in folder("f").iterdir()}
    message = failing(capsys, arguments(pair, questions))
    assert "seed=1, this run has 0" in message
    assert "ea_hsd" in message
    assert {path.name: path.read_bytes() for path in folder("f").iterdir()} == before
