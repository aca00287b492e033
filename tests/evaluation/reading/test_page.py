"""The page of a report, as its source and as a browser shows it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from eagle.evaluation import stats
from eagle.evaluation.reading.sample import find_sample, pieces
from tests.evaluation.runfiles import Turn, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = Path("/usr/bin/chromium")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 300_000
"""Milliseconds, of which a busy machine takes many."""
# Eight tokens: 1 of the prefill, rounds of 2 + 1, 0 + 1 and 2 + 1.
TEXT = "a <b>bold</b> & \u201ctext\u201d"
ENDS = [1, 2, 5, 9, 13, 14, 16, len(TEXT)]
DRAFTED = {
    81: [Turn([(2, 4), (0, 3), (2, 4)], 8.0, TEXT, ENDS)],
    82: [Turn([(1, 3)], 4.0, "xyz", [1, 2, 3])],
}
PLAIN = {81: [Turn([(0, 1)] * 3, 16.0)], 82: [Turn([(0, 1)] * 2, 8.0)]}
CATEGORIES = {81: "<script>alert(1)</script>", 82: "math"}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    write_run(folder / "tiny-temperature-1.0_baseline.jsonl", PLAIN, CATEGORIES)
    write_run(folder / "tiny-temperature-1.0_ea.jsonl", DRAFTED, CATEGORIES)
    write_run(folder / "tiny-temperature-1.0_ea_hsd.jsonl", DRAFTED, CATEGORIES)
    questions = tmp_path / "question.jsonl"
    questions.write_text(
        "".join(
            json.dumps({"question_id": question, "turns": [f"Is {question} < 100 & <i>odd</i>?"]}) + "\n"
            for question in DRAFTED
        )
    )
    file = tmp_path / "new" / "page.html"
    assert stats.main([str(folder), "--html", str(file), "--question-file", str(questions)]) == 0
    return file


def test_pieces_tell_how_tokens_came() -> None:
    said = pieces(TEXT, ENDS, [2, 0, 2])
    assert "".join(piece.text for piece in said) == TEXT
    assert [piece.depth for piece in said] == [None, 1, 2, None, None, 1, 2, None]
    assert [piece.round for piece in said] == [0, 1, 1, 1, 2, 3, 3, 3]
    # A last round that was cut before the target's own token.
    assert [piece.depth for piece in pieces("ab", [1, 2], [1])] == [None, 1]


@pytest.mark.parametrize(
    ("text", "ends", "accepted"),
    [("abc", [1, 2, 3], [0]), ("abc", [1, 2], [0]), ("abc", [2, 1, 3], [1]), ("ab", [1], [2])],
)
def test_pieces_that_do_not_fit_are_refused(text: str, ends: list[int], accepted: list[int]) -> None:
    with pytest.raises(ValueError, match="tokens"):
        pieces(text, ends, accepted)


def test_samples_are_of_the_question_asked_for_and_whole(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a.jsonl", DRAFTED)
    first, second = find_sample(run), find_sample(run, 82)
    assert first is not None
    assert first.question_id == 81
    assert second is not None
    assert [piece.text for piece in second.turns[0]] == ["x", "y", "z"]
    assert find_sample(run, 99) is None
    broken = write_run(tmp_path / "b.jsonl", {81: [Turn([(1, 3)], 1.0, "abc", [1])], 82: DRAFTED[82]})
    found = find_sample(broken)
    assert found is not None
    assert found.question_id == 82
    assert find_sample(write_run(tmp_path / "c.jsonl", PLAIN)) is None


class Seen(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href", "action"):
                self.links.append(str(value))


def test_the_source_holds_everything_and_escapes_it(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    seen = Seen()
    seen.feed(text)
    assert "script" not in seen.tags
    assert {"link", "img", "iframe"} & set(seen.tags) <= {"link"}
    assert all(link.startswith(("data:", "#")) for link in seen.links)
    assert "@import" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert seen.tags.count("svg") == 5
    assert len(set(seen.ids) & {link.removeprefix("#") for link in seen.links}) == len(
        {link for link in seen.links if link.startswith("#")}
    )


def test_a_report_without_token_ends_or_drafts_is_a_page_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "tiny-temperature-1.0_baseline.jsonl", PLAIN)
    assert stats.main([str(run), "--html", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "How the answer" not in text
    assert "Where the time goes" in text


@pytest.fixture
def browser() -> Any:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(QUIET), timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.mark.slow
def test_what_a_reader_sees(page: Path, tmp_path: Path, browser: Browser) -> None:
    backgrounds = {}
    for scheme, width in (("light", 1200), ("dark", 1200), ("light", 400)):
        shown = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        shown.set_default_timeout(PATIENCE)
        complaints: list[str] = []
        requests: list[str] = []
        shown.on("console", lambda message, said=complaints: said.append(message.text))
        shown.on("pageerror", lambda error, said=complaints: said.append(str(error)))
        shown.on("request", lambda request, made=requests: made.append(request.url))
        shown.goto(page.as_uri())
        assert complaints == []
        assert requests == [page.as_uri()]

        assert shown.title() == "Speculative decoding: tiny, temperature 1.0"
        headings = shown.locator("h2").all_inner_texts()
        assert headings == [
            "All questions",
            "Acceptance by depth",
            "Where the time goes",
            "Pictures",
            "How the answer to question 81 came about",
        ]
        rows = shown.locator("table").first.locator("tbody tr")
        assert rows.locator("th").all_inner_texts() == ["autoregressive", "EAGLE-3", "HSD"]
        # 11 tokens in 12 s, over 7 in 24 s.
        assert rows.nth(1).locator("td").nth(3).inner_text() == "0.92\n(0.75 to 1.00)"
        assert "3.14x" in rows.nth(1).inner_text()
        for place in range(5):
            box = shown.locator("figure svg").nth(place).bounding_box()
            assert box is not None
            assert box["width"] > 300
            assert box["height"] > 100

        answer = shown.locator("details[open] .answer").first
        assert answer.inner_text() == TEXT
        assert answer.locator("span").count() == 8
        assert answer.locator(".d2").first.inner_text() == "<b>"
        assert answer.locator(".d2").first.get_attribute("title") == "drafted at depth 2, round 1"
        assert shown.locator(".asked").first.inner_text() == "Is 81 < 100 & <i>odd</i>?"
        own, drafted = (
            answer.locator(kind).first.evaluate("element => getComputedStyle(element).backgroundColor")
            for kind in (".own", ".d1")
        )
        assert own != drafted
        colours = shown.evaluate(
            "() => [getComputedStyle(document.body).backgroundColor, "
            "getComputedStyle(document.querySelector('figure svg text')).fill]"
        )
        backgrounds[scheme] = [brightness(colour) for colour in colours]
        assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

        shown.locator("summary", has_text="HSD").click()
        assert shown.locator("details[open] .answer").count() == 2
        picture = shown.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)
        assert len(picture) > 20_000
        shown.close()
    # The paper and the pictures' text: dark on light, and light on dark.
    assert backgrounds["light"][0] - backgrounds["light"][1] > 0.6
    assert backgrounds["dark"][1] - backgrounds["dark"][0] > 0.6


def brightness(colour: str) -> float:
    """Of a colour as a browser writes it, ``rgb(255, 255, 255)`` is 1."""
    parts = colour.partition("(")[2].rstrip(")").split(",")[:3]
    return sum(map(float, parts)) / (3 * 255)
