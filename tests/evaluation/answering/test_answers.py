"""The programs as people run them, on a tiny chat pair."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eagle.decoding.stored_trees import store
from eagle.evaluation import equal, gen_baseline_answer_llama3chat, gen_ea_answer_llama3chat, stats
from eagle.evaluation.answering.answer import turn_seed
from eagle.tree.shape import DETERMINISTIC, HYBRID, Sampling, TreeShape
from tests.evaluation.answering.program import arguments
from tests.evaluation.programs import lines, without_times
from tests.processes import run_until_killed, written
from tests.signals import interruptible

PROGRAM = "eagle.evaluation.gen_ea_answer_llama3chat"


def test_files_have_the_published_shape(pair: tuple[Path, Path], questions: Path) -> None:
    assert (
        gen_ea_answer_llama3chat.main(
            arguments(pair, questions, "--num-choices", "2", "--top_p", "0.9", "--use_eagle3")
        )
        == 0
    )
    stem = "mt_bench/f/tiny-temperature-1.0-top_p-0.9_ea"
    answers, infos = lines(Path(f"{stem}.jsonl")), lines(Path(f"{stem}_info.jsonl"))
    assert [answer["question_id"] for answer in answers] == [81, 82, 83, 84, 85, 86]
    for answer in answers:
        assert list(answer) == ["question_id", "answer_id", "model_id", "choices", "tstamp"]
        assert answer["model_id"] == "tiny-temperature-1.0-top_p-0.9"
        for index, choice in enumerate(answer["choices"]):
            assert list(choice) == ["index", "turns", "idxs", "new_tokens", "wall_time"]
            assert choice["index"] == index
            assert {len(choice[key]) for key in ("turns", "idxs", "new_tokens", "wall_time")} == {2}
            assert all(isinstance(turn, str) for turn in choice["turns"])
    assert [(info["question_id"], info["choice_index"]) for info in infos] == [
        (question, choice) for question in range(81, 87) for choice in (0, 1)
    ]
    published = json.loads((Path(__file__).parents[1] / "published_keys.json").read_text())
    for info, choice in zip(infos, (choice for answer in answers for choice in answer["choices"]), strict=True):
        assert set(info) == {*published, "question_id", "choice_index", "category", "draft_time", "token_ends"}
        assert info["category"] == "writing"
        for turn in range(2):
            rounds = choice["idxs"][turn] + 1
            ends = info["token_ends"][turn]
            assert len(ends) == choice["new_tokens"][turn]
            assert ends == sorted(ends)
            assert ends[-1] == len(choice["turns"][turn])
            for key in ("tree_time", "eval_time", "update_time", "draft_time", "accept_length", "draft_length"):
                assert len(info[key][turn]) == rounds
            emitted = 1 + sum(info["accept_length"][turn]) + rounds
            assert choice["new_tokens"][turn] in (emitted, emitted - 1)
            assert info["generate_time"][turn] > 0
    run = json.loads(Path(f"{stem}_run.json").read_text())
    assert run["settings"]["tree"] == {"total_token": 8, "depth": 2, "top_k": 3, "sampling": None}
    assert run["environment"]["torch"]


def test_baseline_writes_its_own_files_and_compares(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gen_baseline_answer_llama3chat.main(arguments(pair, questions, "--temperature", "0")) == 0
    assert gen_ea_answer_llama3chat.main(arguments(pair, questions, "--temperature", "0", "--dtype", "float32")) == 0
    stem = "mt_bench/f/tiny-temperature-0.0"
    assert equal.main([f"{stem}_baseline.jsonl", f"{stem}_ea.jsonl"]) == 0
    capsys.readouterr()
    assert stats.main([f"{stem}_ea.jsonl", "--baseline", f"{stem}_baseline.jsonl"]) == 0
    title, _, header, first, second = capsys.readouterr().out.splitlines()[:5]
    assert title == "tiny, temperature 0.0"
    assert header.split()[-3:] == ["speed-up", "accepted/round", "tau"]
    assert first.startswith("autoregressive ")
    assert first.split()[-3:] == ["1.00x", "0.000", "1.000"]
    lengths = [
        length for info in lines(Path(f"{stem}_ea_info.jsonl")) for turn in info["accept_length"] for length in turn
    ]
    assert second.startswith("EAGLE-3 ")
    assert second.split()[-1] == f"{1 + sum(lengths) / len(lengths):.3f}"


@pytest.mark.parametrize("method", [[], ["--hsd"]])
def test_killed_and_resumed_equals_uninterrupted(pair: tuple[Path, Path], questions: Path, method: list[str]) -> None:
    fixed = ["--seed", "3", "--num-choices", "2", "--question-end", "4", *method, "--answer-file"]
    assert gen_ea_answer_llama3chat.main(arguments(pair, questions, *fixed, "whole/a.jsonl")) == 0
    for damage in ("nothing", "half an answer", "half an info line", "an info line without its answer"):
        folder = Path(damage)
        command = arguments(pair, questions, *fixed, str(folder / "a.jsonl"))
        if damage == "nothing":
            run_until_killed(folder / "a.jsonl", 2, gen_ea_answer_llama3chat.main, command)
            assert len(lines(folder / "a.jsonl")) == 2
        else:
            damaged_copy(Path("whole"), folder, damage)
        before = (folder / "a.jsonl").read_text().splitlines()[:2]
        assert gen_ea_answer_llama3chat.main(command) == 0
        assert (folder / "a.jsonl").read_text().splitlines()[:2] == before
        for name in ("a.jsonl", "a_info.jsonl", "a_run.json"):
            assert without_times(folder / name) == without_times(Path("whole", name))
        assert sorted(path.name for path in folder.iterdir()) == ["a.jsonl", "a_info.jsonl", "a_run.json"]


def damaged_copy(whole: Path, folder: Path, damage: str) -> None:
    """The files of a run of two choices as a kill behind its second question leaves them."""
    folder.mkdir()
    for name, keep in (("a.jsonl", 2), ("a_info.jsonl", 4)):
        written = (whole / name).read_text().splitlines(keepends=True)
        rest = {
            "half an answer": ("a.jsonl", written[keep][:40]),
            "half an info line": ("a_info.jsonl", written[keep][:40]),
            "an info line without its answer": ("a_info.jsonl", written[keep]),
        }[damage]
        (folder / name).write_text("".join(written[:keep]) + (rest[1] if rest[0] == name else ""))
    (folder / "a_run.json").write_bytes((whole / "a_run.json").read_bytes())


@pytest.mark.parametrize(
    ("arguments_", "suffix", "sampled"),
    [
        ([], "ea", False),
        (["--hsd"], "ea_hsd", True),
        (["--hsd", "--tree", "hybrid", "--verifier", "hsd"], "ea_hsd", True),
        (["--hsd", "--verifier", "tokenwise"], "ea_hybrid_tokenwise", True),
        (["--tree", "chain", "--verifier", "blockwise"], "ea_chain_blockwise", True),
        (["--hsd", "--tree", "deterministic"], "ea_deterministic_hsd", False),
    ],
)
def test_methods_have_files_of_their_own(
    pair: tuple[Path, Path], questions: Path, arguments_: list[str], suffix: str, sampled: bool
) -> None:
    assert gen_ea_answer_llama3chat.main(arguments(pair, questions, "--question-end", "1", *arguments_)) == 0
    stem = f"mt_bench/f/tiny-temperature-1.0_{suffix}"
    recorded = json.loads(Path(f"{stem}_run.json").read_text())["settings"]
    assert (recorded["tree"]["sampling"] is not None) == sampled
    assert set(recorded["drafting"]) == {"tree", "verifier"}
    info = lines(Path(f"{stem}_info.jsonl"))[0]
    assert all(
        accepted < drafted for accepted, drafted in zip(info["accept_length"][0], info["draft_length"][0], strict=True)
    )
    assert sorted(path.name for path in Path("mt_bench/f").glob("*.jsonl")) == sorted(
        Path(f"{stem}{end}.jsonl").name for end in ("", "_info")
    )


def test_hsd_at_temperature_0_is_eagle(pair: tuple[Path, Path], questions: Path) -> None:
    usual, hybrid = TreeShape(9, 2, 4), TreeShape(5, 1, 2, Sampling(threshold=0.1, rho=0.5, samples=1))
    file = store(pair[1], "cpu", {DETERMINISTIC: {1.0: usual}, HYBRID: {1.0: hybrid}})
    given = arguments(pair, questions, "--question-end", "1", "--temperature", "0")
    without_tree = [word for place, word in enumerate(given) if not {place, place - 1} & set(tree_words(given))]
    assert gen_ea_answer_llama3chat.main(without_tree) == 0
    assert gen_ea_answer_llama3chat.main([*without_tree, "--hsd", "--rho", "0.7"]) == 0
    file.unlink()
    files = [Path(f"mt_bench/f/tiny-temperature-0.0_{suffix}.jsonl") for suffix in ("ea", "ea_hsd")]
    trees = [json.loads(file.with_name(f"{file.stem}_run.json").read_text())["settings"]["tree"] for file in files]
    assert trees[0] == trees[1] == usual.record()
    turns = [lines(file)[0]["choices"][0]["turns"] for file in files]
    assert turns[0] == turns[1]


def tree_words(given: list[str]) -> list[int]:
    """Places of the options that give a tree."""
    return [place for place, word in enumerate(given) if word in ("--total-token", "--depth", "--top-k")]


def test_the_hybrid_tree_can_be_shaped(pair: tuple[Path, Path], questions: Path) -> None:
    more = [
        "--hsd",
        "--threshold",
        "0.1",
        "--rho",
        "0.7",
        "--samples",
        "2",
        "--draft-temperature",
        "1.1",
        "--early",
        "0.05",
    ]
    assert gen_ea_answer_llama3chat.main(arguments(pair, questions, "--question-end", "1", *more)) == 0
    recorded = json.loads(Path("mt_bench/f/tiny-temperature-1.0_ea_hsd_run.json").read_text())["settings"]["tree"]
    assert recorded == {
        "total_token": 8,
        "depth": 2,
        "top_k": 3,
        "sampling": {
            "threshold": 0.1,
            "rho": 0.7,
            "samples": 2,
            "draft_temperature": 1.1,
            "early": 0.05,
            "early_nodes": 12,
        },
    }


def test_a_larger_range_adds_to_the_same_files(pair: tuple[Path, Path], questions: Path) -> None:
    for begin, end in ((3, 5), (0, 6)):
        assert (
            gen_ea_answer_llama3chat.main(
                arguments(pair, questions, "--question-begin", str(begin), "--question-end", str(end))
            )
            == 0
        )
    assert [answer["question_id"] for answer in lines(Path("mt_bench/f/tiny-temperature-1.0_ea.jsonl"))] == list(
        range(81, 87)
    )


def test_ctrl_c_ends_cleanly(pair: tuple[Path, Path], questions: Path) -> None:
    command = [sys.executable, "-m", PROGRAM, *arguments(pair, questions, "--num-choices", "8")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible)
    answers = Path("mt_bench/f/tiny-temperature-1.0_ea.jsonl")
    while process.poll() is None and not written(answers):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "the same command resumes" in errors
    assert "Traceback" not in errors
    assert lines(answers)


def test_seeds_depend_on_nothing_but_the_turn() -> None:
    seeds = {
        turn_seed(seed, question, choice, turn)
        for seed in (0, 1)
        for question in (81, 82)
        for choice in (0, 1)
        for turn in (0, 1)
    }
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)
