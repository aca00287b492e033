"""Lookahead rows: guesses of the tokens ahead that each forward makes better, and the n-grams that they leave behind.

Source: lookahead decoding (Fu et al. 2024, arXiv 2402.02057), whose n-grams fill the database W of Hierarchy Drafting.
Row 0 holds W guesses of the next W tokens, and each further row what the model said in an earlier round of the one
before it, a token further on. In a forward a guess sees row 0 up to its column, and its own column. That is a tree, so
the rows are scored as nodes of the drafted one; what nobody believes in is verified like all else, and never accepted
wrongly. What the model says behind the last row is the next row, and a column of rows with it is an n-gram of W.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eagle.drafters.lookup.history import History
from eagle.target.target import Scores
from eagle.tree.draft_tree import DraftTree

# Key of a guess, beside its parent's: about a millionth.
UNLIKELY = -14.0


class Lookahead:
    """The rows at one text.

    Args:
        window: W.
        level: n of the n-grams; there are up to n - 1 rows.
        grams: where they go.
    """

    def __init__(self, window: int, level: int, grams: History) -> None:
        self._window, self._level, self._grams = window, level, grams

    def begin(self, tokens: Sequence[int]) -> None:
        """Behind a prompt: the first guess is that its end comes again."""
        self._rows = [[tokens[(column - self._window) % len(tokens)] for column in range(self._window)]]
        self._last: list[int | None] = [None] * self._window
        self._drafted: DraftTree | None = None

    def onto(self, tree: DraftTree, total_token: int, levels: int) -> DraftTree:
        """A tree with the rows as further nodes, as far as there is room for them.

        Args:
            tree: of picked tokens.
            total_token: nodes at most.
            levels: below the root, at most.
        """
        tokens, parents, depths = tree.tokens.tolist(), tree.parents.tolist(), tree.depths.tolist()
        keys = tree.keys.tolist()
        child = {(parents[node], tokens[node]): node for node in range(1, len(tokens))}

        def below(parent: int | None, token: int) -> int | None:
            """The node of a token below another one; None where there is no room."""
            if parent is None or depths[parent] == levels:
                return None
            node = child.get((parent, token))
            if node is None and len(tokens) < total_token:
                node = child[parent, token] = len(tokens)
                tokens.append(token)
                parents.append(parent)
                depths.append(depths[parent] + 1)
                keys.append(keys[parent] + UNLIKELY)
            return node

        above: int | None = 0
        for column in range(self._window):
            above = node = below(above, self._rows[0][column])
            for row in self._rows[1:]:
                node = below(node, row[column])
            self._last[column] = node
        structure = (torch.tensor(tokens), torch.tensor(parents), torch.tensor(depths))
        self._drafted = DraftTree(*structure, torch.tensor(keys))
        return self._drafted

    def learn(self, tree: DraftTree, scores: Scores, accepted: int) -> None:
        """A tree was scored, and the text is longer by ``accepted`` tokens and one more.

        Args:
            tree: the one that ``onto`` made last, or another one, which has no rows.
            scores: of its nodes.
            accepted: tokens.
        """
        gone = accepted + 1
        if tree is not self._drafted:
            self._move(gone)
            return
        said = scores.logits.argmax(-1).tolist()
        new = [self._rows[-1][column] if node is None else int(said[node]) for column, node in enumerate(self._last)]
        if len(self._rows) == self._level - 1:
            for column, node in enumerate(self._last):
                if node is not None:
                    self._grams.add((*(row[column] for row in self._rows), new[column]))
            # Row 1, which is of the tokens one further on, takes the place of row 0.
            self._rows, gone = self._rows[1:], accepted
        self._rows.append(new)
        self._move(gone)

    def _move(self, columns: int) -> None:
        """So many tokens are no longer ahead; guesses of them are made again at the other end."""
        turn = columns % self._window
        self._rows = [[*row[turn:], *row[:turn]] for row in self._rows]
