"""How deep in the draft tree a token was accepted, as a colour: the deeper, the stronger."""

from __future__ import annotations

from dataclasses import dataclass

DEEPEST = 6
"""Levels from here on look alike."""

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


@dataclass(frozen=True)
class Shades:
    """Backgrounds of accepted tokens.

    Attributes:
        first: right below the root.
        last: at ``DEEPEST``.
        ink: of the text on all of them; its contrast with each is at least 4.5.
    """

    first: Colour
    last: Colour
    ink: Colour

    def at(self, depth: int) -> Colour:
        """The background of a token accepted at a depth of 1 or more."""
        share = (min(depth, DEEPEST) - 1) / (DEEPEST - 1)
        red, green, blue = (round(a + share * (b - a)) for a, b in zip(self.first, self.last, strict=True))
        return red, green, blue


ON_LIGHT = Shades(first=(216, 243, 239), last=(92, 200, 192), ink=(10, 34, 36))
ON_DARK = Shades(first=(16, 58, 62), last=(8, 120, 126), ink=(255, 255, 255))

# Of the 256 colours of older terminals: ON_DARK would come out as two of them.
ANSI_256 = (23, 24, 25, 26)


def ansi(depth: int, truecolour: bool) -> str:
    """The escape sequence that begins a token of a depth of 1 or more in a terminal, whatever its background."""
    if truecolour:
        ink, paper = (";".join(map(str, colour)) for colour in (ON_DARK.ink, ON_DARK.at(depth)))
        return f"\x1b[38;2;{ink};48;2;{paper}m"
    return f"\x1b[38;5;231;48;5;{ANSI_256[min(depth, len(ANSI_256)) - 1]}m"


ANSI_RESET = "\x1b[0m"
ANSI_FAINT = "\x1b[2m"


def css(selector: str) -> str:
    """Style sheet of the classes ``d1`` to ``d<DEEPEST>`` within a selector, for Gradio's light and dark mode."""
    rules = []
    for mode, shades in (("", ON_LIGHT), (".dark ", ON_DARK)):
        for depth in range(1, DEEPEST + 1):
            rules.append(f"{mode}{selector} .d{depth} {{ background: rgb{shades.at(depth)}; color: rgb{shades.ink} }}")
    return "\n".join(rules)
