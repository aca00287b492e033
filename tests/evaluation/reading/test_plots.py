"""Pictures: which there are, and that they show the figures."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread

from eagle.evaluation import stats
from eagle.evaluation.reading.plots import COLOURS, draw
from eagle.evaluation.reading.report import read_members
from tests.evaluation.runfiles import Turn, write_run

ALL = {"accepted", "depth", "accepted_by_temperature", "time", "speed_by_temperature"}
DRAFTED = {1: [Turn([(2, 4), (1, 4), (0, 3)], 8.0)], 2: [Turn([(3, 4), (0, 2)], 6.0)]}
PLAIN = {1: [Turn([(0, 1)] * 4, 16.0)], 2: [Turn([(0, 1)] * 2, 8.0)]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for temperature in ("0.0", "0.7", "1.0"):
        stem = tmp_path / "runs" / f"tiny-temperature-{temperature}"
        write_run(Path(f"{stem}_baseline.jsonl"), PLAIN)
        write_run(Path(f"{stem}_ea.jsonl"), DRAFTED)
        write_run(Path(f"{stem}_ea_hsd.jsonl"), DRAFTED)
    return tmp_path / "runs"


def test_pictures_are_written_as_png_and_svg(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "new" / "pictures"
    assert stats.main([str(folder), "--plot", str(place)]) == 0
    assert {file.name for file in place.iterdir()} == {f"{name}.{kind}" for name in ALL for kind in ("png", "svg")}
    said = capsys.readouterr().err
    for name in ALL:
        picture = imread(place / f"{name}.png")
        assert picture.shape[0] > 200
        assert picture.shape[1] > 600
        assert picture.std() > 0
        assert ElementTree.parse(place / f"{name}.svg").getroot().tag.endswith("svg")  # noqa: S314 (our own file)
        assert f"written: {place / name}.png" in said
    texts = (place / "accepted.svg").read_text()
    assert "HSD T=0.7: 1.20 a round" in texts


def test_the_same_runs_give_the_same_picture(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert stats.main([str(folder), "--plot", str(tmp_path / name)]) == 0
    for name in ALL:
        assert (tmp_path / "a" / f"{name}.svg").read_bytes() == (tmp_path / "b" / f"{name}.svg").read_bytes()


def test_lines_show_the_figures_in_the_colour_of_their_method(folder: Path) -> None:
    members = read_members([folder])
    figures = draw(members)
    lines = {str(line.get_label()): line for line in figures["accepted"].axes[0].get_lines()}
    assert len(lines) == 6
    # Of five rounds 3, 2 and 1 accept at least 1, 2 and 3.
    line = lines["EAGLE-3 T=0.7: 1.20 a round"]
    assert list(line.get_ydata()) == [1.0, 0.6, 0.4, 0.2]
    assert to_hex(line.get_color()) == COLOURS["ea"]
    assert to_hex(lines["HSD T=1.0: 1.20 a round"].get_color()) == COLOURS["ea_hsd"]
    labels = [text.get_text() for text in figures["accepted_by_temperature"].legends[0].get_texts()]
    assert labels == ["EAGLE-3", "HSD"]
    ticks = [text.get_text() for text in figures["speed_by_temperature"].axes[0].get_xticklabels()]
    assert ticks == ["0", "0.7", "1"]


def test_each_top_p_has_its_own_line_from_temperature_0_on(folder: Path) -> None:
    for temperature in ("0.7", "1.0"):
        for method in ("baseline", "ea", "ea_hsd"):
            run = folder / f"tiny-temperature-{temperature}-top_p-0.9_{method}.jsonl"
            write_run(run, PLAIN if method == "baseline" else DRAFTED)
    axes = draw(read_members([folder]))["accepted_by_temperature"].axes[0]
    lines = {str(bars.get_label()): bars.lines[0] for bars in axes.containers}
    assert {label: (to_hex(line.get_color()), line.get_linestyle()) for label, line in lines.items()} == {
        "EAGLE-3 top_p=1.0": (COLOURS["ea"], "-"),
        "EAGLE-3 top_p=0.9": (COLOURS["ea"], "--"),
        "HSD top_p=1.0": (COLOURS["ea_hsd"], "-"),
        "HSD top_p=0.9": (COLOURS["ea_hsd"], "--"),
    }
    for line in lines.values():
        assert [round(float(x), 1) for x in line.get_xdata()] == [0.0, 0.7, 1.0]


def test_labels_are_shown_as_they_are(tmp_path: Path) -> None:
    names = ["_hidden", "$1 or $2"]
    for name in names:
        write_run(tmp_path / f"{name}.jsonl", DRAFTED)
    assert stats.main([str(tmp_path), "--plot", str(tmp_path / "pictures")]) == 0
    for picture in ("accepted", "depth", "accepted_by_temperature", "time", "speed_by_temperature"):
        texts = ElementTree.parse(tmp_path / "pictures" / f"{picture}.svg").getroot().itertext()  # noqa: S314 (our own)
        shown = [text.strip() for text in texts]
        assert all(any(text.startswith(name) for text in shown) for name in names), picture


def test_time_bars_are_as_long_as_a_token_takes(folder: Path) -> None:
    members = read_members([folder / "tiny-temperature-1.0_baseline.jsonl", folder / "tiny-temperature-1.0_ea.jsonl"])
    bars = draw(members)["time"].axes[0].patches
    ends: dict[float, float] = {}
    for bar in bars:
        ends[bar.get_y()] = max(ends.get(bar.get_y(), 0.0), bar.get_x() + bar.get_width())
    # 24 s for 8 tokens, 14 s for 13.
    assert sorted(ends.values()) == pytest.approx([1e3 * 14 / 13, 1e3 * 24 / 8])


def test_one_temperature_is_drawn_as_bars(folder: Path) -> None:
    members = read_members([folder / "tiny-temperature-1.0_ea.jsonl", folder / "tiny-temperature-1.0_ea_hsd.jsonl"])
    bars = draw(members)["accepted_by_temperature"].axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([1.2, 1.2])


def test_only_what_there_is_is_drawn(folder: Path) -> None:
    assert draw(read_members([folder / "tiny-temperature-1.0_baseline.jsonl"])).keys() == {
        "time",
        "speed_by_temperature",
    }
    assert draw(read_members([folder], gamma=4)).keys() == {"accepted", "depth", "accepted_by_temperature"}
