"""What the pages say of the product is so: links, rooms and their imports, the drafter and the example they show."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from eagle.decoding.decoding import Decoding
from eagle.decoding.speculation import Offer, Speculation
from eagle.drafters.drafter import Drafter
from eagle.model.ea_model import EaModel
from eagle.target.text import Text
from eagle.tree.shape import TreeShape
from eagle.tree.warping import Warper
from eagle.verification import RULES
from tests.decoding.rounds import round_distance
from tests.tiny import load_pair

REPOSITORY = Path(__file__).parents[1]
README = REPOSITORY / "README.md"
ARCHITECTURE = REPOSITORY / "docs" / "architecture.md"
PAGES = [README, *sorted((REPOSITORY / "docs").glob("*.md")), REPOSITORY / "mt_bench" / "README.md"]
MOST_LINES = 400

# From the top down.
ROOMS = [
    "eagle/chat.py",
    "eagle/application/",
    "eagle/serving/",
    "eagle/lookup/",
    "eagle/train/",
    "eagle/evaluation/*.py",
    "eagle/evaluation/audit/",
    "eagle/evaluation/reading/",
    "eagle/evaluation/answering/",
    "eagle/simulation/",
    "eagle/model/",
    "eagle/tuning/",
    "eagle/decoding/",
    "eagle/drafters/",
    "eagle/target/",
    "eagle/verification/",
    "eagle/tree/",
    "eagle/data/",
    "eagle/*.py",
]
GROUND = ROOMS[-2:]


def test_the_readme_is_a_door() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) < 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not target.startswith("http")]
    assert [target for target in targets if not (page.parent / target.partition("#")[0]).exists()] == []


def test_the_readme_leads_to_every_page() -> None:
    text, docs = README.read_text(encoding="utf-8"), REPOSITORY / "docs"
    assert [page.name for page in PAGES if page.parent == docs and f"](docs/{page.name})" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_modules_and_files_that_pages_name_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    modules = re.findall(r"-m ((?:eagle|benchmarks)[\w.]*\w)", text)
    paths = [Path(*module.split(".")) for module in modules]
    files = [Path(name) for name in re.findall(r"`((?:eagle|tests|benchmarks|tools)/[\w/.-]*)`", text)]
    there = [(REPOSITORY / path).exists() or (REPOSITORY / path).with_suffix(".py").exists() for path in paths + files]
    assert [str(path) for path, is_there in zip(paths + files, there, strict=True) if not is_there] == []


def table() -> dict[str, list[str]]:
    """The rooms of the page in its order, and those that each says it stands on."""
    rows = re.findall(r"^\| `(eagle/[^`]*)` \|.*\| ([^|]*)\|$", ARCHITECTURE.read_text(encoding="utf-8"), re.MULTILINE)
    return {room: re.findall(r"`([^`]+)`", below) for room, below in rows}


def room_of(file: Path) -> str:
    """The room of a file of the package."""
    name = file.as_posix()
    rooms = [
        room
        for room in ROOMS
        if name == room
        or (room.endswith("/") and name.startswith(room))
        or (room.endswith("*.py") and file.parent == Path(room).parent)
    ]
    assert rooms, f"{name} is in no room"
    return max(rooms, key=len)


@cache
def modules() -> dict[str, Path]:
    """The package's modules by name."""
    files = [file.relative_to(REPOSITORY) for file in sorted((REPOSITORY / "eagle").rglob("*.py"))]
    return {".".join(file.with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imported(source: str) -> set[Path]:
    """The files of the package that a module imports anywhere, also inside functions and for type checking only."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [
                whole if (whole := f"{node.module}.{alias.name}") in modules() else str(node.module)
                for alias in node.names
            ]
        else:
            continue
        found |= {modules()[name] for name in names if name.partition(".")[0] == "eagle"}
    return found


def test_the_page_has_the_rooms_in_their_order() -> None:
    assert list(table()) == ROOMS
    for room, below in table().items():
        assert all(ROOMS.index(other) > ROOMS.index(room) for other in below), room


def test_imports_go_down_and_where_the_page_says() -> None:
    allowed = table()
    wrong = [
        f"{file} imports {other}, which is not below {room_of(file)} on the page"
        for file in modules().values()
        for other in sorted(imported((REPOSITORY / file).read_text(encoding="utf-8")))
        if room_of(other) not in (room_of(file), *allowed[room_of(file)])
        and not (room_of(other) in GROUND and ROOMS.index(room_of(other)) > ROOMS.index(room_of(file)))
    ]
    assert wrong == []


def test_every_room_that_the_page_says_is_stood_on_is_used() -> None:
    used: dict[str, set[str]] = {room: set() for room in ROOMS}
    for file in modules().values():
        used[room_of(file)] |= {room_of(other) for other in imported((REPOSITORY / file).read_text(encoding="utf-8"))}
    assert {room: set(below) - used[room] for room, below in table().items() if set(below) - used[room]} == {}


def test_imports_of_every_kind_are_seen() -> None:
    source = (
        "import eagle.errors\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from eagle.target.target import Target\n"
        "def later():\n    from eagle.tuning import size\n    from eagle import assets\n"
    )
    names = {file.as_posix() for file in imported(source)}
    assert names == {"eagle/errors.py", "eagle/target/target.py", "eagle/tuning/size.py", "eagle/assets.py"}


def test_no_file_is_long() -> None:
    folders = [REPOSITORY / name for name in ("eagle", "tests", "benchmarks", "tools")]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    lengths = {str(file.relative_to(REPOSITORY)): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def drafter_of_the_page() -> Drafter:
    """The one that the page shows how to write, from its own text."""
    (source,) = re.findall(r"```python\n(.*?)```", ARCHITECTURE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(source.splitlines()) < 150
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(source, str(ARCHITECTURE), "exec"), names)  # noqa: S102
    return names["CopyDrafter"]()


@pytest.mark.parametrize("shape", [TreeShape(6, 3, 1), TreeShape.chain(4)])
def test_the_drafter_of_the_page_decodes_the_text_of_the_model(llama: EaModel, shape: TreeShape) -> None:
    model = llama
    prompt, new_tokens = torch.tensor([[3, 1, 4, 1, 5]]), 40
    text = Text(prompt, Warper(0.0), prompt.shape[1] + new_tokens)
    decoding = Decoding(model.target, Speculation(drafter_of_the_page(), shape, RULES["tokenwise"]), text)
    while not decoding.finished:
        decoding.step()
    assert [decoding.tokens] == model.naivegenerate(prompt, max_new_tokens=new_tokens).tolist()
    assert sum(decoding.info["accept_length"]) > 0
    assert max(decoding.info["draft_length"]) > 2


@pytest.mark.parametrize(("tree", "rule"), [("deterministic", "tokenwise"), ("chain", "blockwise"), ("hybrid", "hsd")])
def test_its_rounds_have_exactly_the_target_law(llama_pair: tuple[Path, Path], tree: str, rule: str) -> None:
    model = load_pair(*llama_pair)
    model.offers["copy"] = Offer(drafter_of_the_page(), TreeShape(6, 3, 1))
    # What follows 4 in the prompt is known.
    assert round_distance(model, tree, RULES[rule], (1.0, 0.0, 0), 4, drafter="copy") < 1e-9


@pytest.mark.slow
@pytest.mark.network
def test_the_example_prints_an_answer() -> None:
    example = (REPOSITORY / "example.py").read_text(encoding="utf-8")
    assert len(example.splitlines()) == 10
    shorter = example.replace("max_new_tokens=200", "max_new_tokens=16")
    assert shorter != example
    done = subprocess.run([sys.executable, "-c", shorter], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # What it says is sampled, and may be short.
    assert done.stdout.split()


def test_records_of_runs_name_no_place_on_a_machine() -> None:
    records = sorted((REPOSITORY / "mt_bench").glob("reference*/**/*_run.json"))
    assert records
    assert [record.name for record in records if re.search(r'"/\w', record.read_text(encoding="utf-8"))] == []
