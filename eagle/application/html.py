"""The conversation as HTML. Text of people and models is escaped; nothing in it is markup."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass, field

from eagle.application.shading import DEEPEST, css
from eagle.application.streaming import OWN, Piece, Statistics, Update

# Gradio fills templates in the browser, so what is special to those is written as entities, too.
TEMPLATE_CHARACTERS = str.maketrans({character: f"&#{ord(character)};" for character in "{}$`\\"})


def escape(text: str) -> str:
    """Text as HTML that shows exactly that text."""
    return html.escape(text).translate(TEMPLATE_CHARACTERS)


def piece_html(piece: Piece) -> str:
    """A piece, marked by the depth at which it was accepted; the target's own is not marked."""
    if piece.depth == OWN:
        return escape(piece.text)
    # The space before a word is not marked with it: at the end of a line it would be all there is to see.
    word = piece.text.lstrip() or piece.text
    space = piece.text[: len(piece.text) - len(word)]
    return f'{space}<mark class="d{min(piece.depth, DEEPEST)}">{escape(word)}</mark>'


@dataclass
class Answer:
    """An answer that grows, and what is shown of it.

    Attributes:
        name: how it is decoded.
        statistics: so far.
        state: ``waiting``, ``running``, ``stopped`` or ``finished``.
    """

    name: str
    statistics: Statistics = field(default_factory=Statistics)
    state: str = "waiting"
    _text: list[str] = field(default_factory=list)
    _html: list[str] = field(default_factory=list)

    def add(self, update: Update) -> None:
        """Take what one round added."""
        self._text.extend(piece.text for piece in update.pieces)
        self._html.extend(map(piece_html, update.pieces))
        self.statistics = update.statistics

    @property
    def text(self) -> str:
        """What it says, without the space around it."""
        return "".join(self._text).strip()

    def html(self, baseline: Statistics | None = None) -> str:
        """All of it so far.

        Args:
            baseline: what to compare the speed with.
        """
        if self.state == "waiting":
            figures = "waiting for other answers"
        else:
            figures = str(self.statistics)
            if baseline is not None and baseline.tokens_per_second:
                figures += f" · {self.statistics.tokens_per_second / baseline.tokens_per_second:.2f}x as fast"
            if self.state == "stopped":
                figures += " · stopped"
        return (
            f'<section class="answer {self.state}"><h4>{escape(self.name)}</h4>'
            f'<div class="text">{"".join(self._html)}</div><footer>{escape(figures)}</footer></section>'
        )


def turn_html(message: str, answers: Iterable[str]) -> str:
    """A message and what was answered, side by side if there is more than one."""
    return f'<div class="message">{escape(message)}</div><div class="answers">{"".join(answers)}</div>'


def error_html(message: str, error: str) -> str:
    """A message that could not be answered, and why."""
    return f'<div class="message">{escape(message)}</div><div class="error" role="alert">{escape(error)}</div>'


def legend_html() -> str:
    """What the shades mean."""
    depths = [str(depth) for depth in range(1, DEEPEST)] + [f"{DEEPEST} or more"]
    marks = "".join(f'<mark class="d{depth}">{label}</mark>' for depth, label in enumerate(depths, start=1))
    return (
        f'<div class="legend"><span>Accepted at draft depth</span>{marks}<span>unshaded: the model\'s own</span></div>'
    )


STYLE = (
    """
#talk { height: calc(100vh - 215px); min-height: 260px; overflow-y: auto; flex-direction: column-reverse;
  flex-wrap: nowrap; border: 1px solid var(--border-color-primary); border-radius: 12px; padding: 16px;
  background: var(--background-fill-primary) }
#talk > * { flex: none }
.talk .message { margin: 18px 0 10px auto; width: fit-content; max-width: 80%; padding: 8px 14px;
  border-radius: 16px 16px 4px 16px; white-space: pre-wrap; overflow-wrap: anywhere;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary) }
.talk .answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 16px }
.talk .answer { min-width: 0; padding: 4px 0 }
.talk .answers .answer:not(:only-child) { padding: 8px 14px; border: 1px solid var(--border-color-primary);
  border-radius: 12px }
.talk h4 { margin: 0 0 4px; font-size: 12px; font-weight: 600; letter-spacing: .02em;
  color: var(--body-text-color-subdued) }
.talk .text { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.65; min-height: 1.65em }
.talk .running .text::after { content: "▍"; color: var(--body-text-color-subdued) }
.talk footer { margin-top: 6px; font-size: 12px; font-variant-numeric: tabular-nums;
  color: var(--body-text-color-subdued) }
.talk .error { padding: 10px 14px; border-radius: 12px; border: 1px solid var(--error-border-color);
  background: var(--error-background-fill); color: var(--error-text-color) }
.talk .welcome { padding: 40px 20px; text-align: center; color: var(--body-text-color-subdued) }
.talk mark, .legend mark { border-radius: 3px; padding: 1px 0; box-decoration-break: clone;
  -webkit-box-decoration-break: clone }
.legend { display: flex; flex-wrap: wrap; align-items: center; gap: 6px; font-size: 13px;
  color: var(--body-text-color-subdued) }
.legend mark { padding: 1px 8px }
.talk mark + mark { margin-left: 1px }
"""
    + css(".talk")
    + "\n"
    + css(".legend")
)
