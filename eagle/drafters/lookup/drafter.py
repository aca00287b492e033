"""Drafting without a model: what followed the same tokens before, in the text itself, in answers of the target, in any
corpus.

Sources: prompt lookup (Saxena 2023), the database W alone; Hierarchy Drafting (arXiv 2502.05609), W, S and L.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from eagle.checks import whole_number
from eagle.drafters.lookup.corpus import Corpus, open_corpus
from eagle.drafters.lookup.database import Database, in_order
from eagle.drafters.lookup.history import History, read_history
from eagle.drafters.lookup.lookahead import Lookahead
from eagle.drafters.lookup.ngrams import NGrams
from eagle.drafters.lookup.prediction import at_temperature, predicted
from eagle.drafters.lookup.retriever import Retriever, Retrieving
from eagle.drafters.vocabulary import vocabulary_sha256
from eagle.errors import InputError
from eagle.target.target import Scores
from eagle.target.text import Text
from eagle.tree.chance import Chance
from eagle.tree.draft_tree import DraftTree
from eagle.tree.retrieval import Predict
from eagle.tree.shape import TreeShape

CONTEXT, MODEL, CORPUS = LETTERS = "WSL"
# Of matches of 1, 2, ... tokens in answers of the target, and in other text. Fitted, as those of the text itself, to
# 11,600 tokens of answers of the embedded default to training prompts, looked up in 65,000 tokens of its other answers
# and in 2 million of ShareGPT: behind one token comes what came most often then in 11 % of cases in both, behind two in
# 15 %, then 24 and 21, 23 and 23, 35 and 25, 37 and 47.
ESCAPES = {MODEL: (20.0, 10.0, 4.0, 3.5, 1.6, 1.3, 1.0, 0.9), CORPUS: (50.0, 16.0, 6.0, 4.5, 3.0, 2.0, 1.2, 0.7)}
# What lookahead rows left are guesses.
AHEAD_ESCAPES = (20.0, 6.0, 3.0, 2.0)
FILES = {MODEL: "model_db", CORPUS: "corpus_db"}
# Tokens of earlier texts, from which on a new one begins without them.
MOST_KEPT = 100_000


@dataclass(frozen=True)
class LookupSettings:
    """What is looked up, and where.

    Attributes:
        shortest: tokens of a match, at least.
        longest: tokens of a match, at most.
        order: the databases, W (the text itself), S (``model_db``) and L (``corpus_db``); of matches of a length the
            first one's come first.
        model_db: file of answers of the target itself; of ``python -m eagle.lookup build``, or Hierarchy Drafting's
            JSON of n-grams.
        corpus_db: file of any text, of the former kind.
        keep: earlier texts stay in W until ``forget``; a conversation's are in its prompts anyway.
        window: guesses in a lookahead row, whose n-grams come behind W; 0: there are no such rows.
        lookahead_level: n of these n-grams, so that there are n - 1 rows.
    """

    shortest: int = 1
    longest: int = 8
    order: str = CONTEXT
    model_db: Path | None = None
    corpus_db: Path | None = None
    keep: bool = False
    window: int = 0
    lookahead_level: int = 5

    @property
    def rows(self) -> int:
        """Nodes of the lookahead rows."""
        return self.window * (self.lookahead_level - 1)

    def __post_init__(self) -> None:
        if whole_number("window", self.window) < 0 or whole_number("lookahead_level", self.lookahead_level) < 2:
            raise InputError(
                f"window must be 0 or more and lookahead_level 2 or more, not {self.window} and {self.lookahead_level}"
            )
        if self.window and CONTEXT not in self.order:
            raise InputError(f"lookahead rows (window {self.window}) fill W, and the order is {self.order}")
        if not 1 <= whole_number("shortest", self.shortest) <= whole_number("longest", self.longest):
            raise InputError(
                f"a match has at least 1 token, and no fewer than its shortest: not {self.shortest} to {self.longest}"
            )
        if not self.order or set(self.order) - set(LETTERS) or len(set(self.order)) < len(self.order):
            raise InputError(
                f"order is made of the letters {', '.join(LETTERS)}, each at most once, not {self.order!r}"
            )
        for letter, name in FILES.items():
            file = getattr(self, name)
            if (letter in self.order) != (file is not None):
                given = "there is none" if file is None else f"the order is {self.order}"
                raise InputError(
                    f"the database {letter} is the file {name} (--{name.replace('_', '-')}), and {given}; "
                    "python -m eagle.lookup build makes one"
                )


DEFAULT_LOOKUP = LookupSettings()


class LookupDrafter(Retriever):
    """Drafts with what followed the same tokens before.

    Args:
        settings: what is looked up.
        files: the databases S and L, by their letters, as far as the settings name them.
    """

    name = "lookup"

    def __init__(
        self, settings: LookupSettings = DEFAULT_LOOKUP, files: Mapping[str, Corpus | History] | None = None
    ) -> None:
        self.settings, self._files = settings, files or {}
        self._kept: NGrams | None = None

    @property
    def settled(self) -> Mapping[str, Any]:
        """See ``Drafter.settled``."""
        files = {name: self._files[letter].sha256 for letter, name in FILES.items() if letter in self._files}
        names = ("shortest", "longest", "order", *(("window", "lookahead_level") if self.settings.window else ()))
        settings = {name: getattr(self.settings, name) for name in names}
        return {**settings, **files}

    def begin(self, text: Text, tokens: Sequence[int], largest: TreeShape) -> LookupDrafting:
        """See ``Drafter.begin``."""
        context, self._kept = self._kept, None
        if context is None or len(context) > MOST_KEPT:
            context = NGrams(self.settings.shortest, self.settings.longest)
        context.begin(tokens)
        return LookupDrafting(self, context, text, tokens)

    def take(self, context: NGrams) -> None:
        """Take what a text that has ended leaves to the next one, if it is to."""
        if self.settings.keep:
            self._kept = context

    def forget(self) -> None:
        """See ``Drafter.forget``."""
        self._kept = None

    def databases(self, context: NGrams, ahead: History) -> list[Database]:
        """In the order of the settings; W is a text's own, and so is what lookahead rows left, which come behind it."""
        found: list[Database] = []
        for letter in self.settings.order:
            found.append(context if letter == CONTEXT else self._files[letter])
            if letter == CONTEXT and self.settings.window:
                found.append(ahead)
        return found


def load_lookup(settings: LookupSettings, tokenizer: PreTrainedTokenizerBase) -> LookupDrafter:
    """Open the files that the settings name.

    Args:
        settings: what is looked up.
        tokenizer: of the target.

    Raises:
        InputError: see ``open_corpus`` and ``read_history``.
    """
    files: dict[str, Corpus | History] = {}
    vocabulary = vocabulary_sha256(tokenizer.get_vocab())
    for letter, name in FILES.items():
        file: Path | None = getattr(settings, name)
        if file is not None and file.suffix == ".json":
            files[letter] = read_history(file, len(tokenizer), ESCAPES[letter], settings.longest)
        elif file is not None:
            files[letter] = open_corpus(file, vocabulary, ESCAPES[letter], settings.longest)
    return LookupDrafter(settings, files)


class LookupDrafting(Retrieving):
    """Look-up at one text.

    Args:
        drafter: whose look-up it is.
        context: texts before this one, if they are kept.
        text: that is written.
        tokens: of the text so far.
    """

    def __init__(self, drafter: LookupDrafter, context: NGrams, text: Text, tokens: Sequence[int]) -> None:
        self._temperature = text.warper.temperature
        self._drafter, self._context, self.tokens = drafter, context, tokens
        self._settings, self._longest = drafter.settings, drafter.settings.longest
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Begin behind a prompt."""
        ahead = History({}, AHEAD_ESCAPES, self._longest)
        self._databases = self._drafter.databases(self._context, ahead)
        self._lookahead = Lookahead(self._settings.window, self._settings.lookahead_level, ahead)
        self._lookahead.begin(self.tokens)

    def draft(self, shape: TreeShape, room: int, chance: Chance | None) -> DraftTree:
        """See ``Drafting.draft``; with lookahead rows, if there are some."""
        if not self._settings.window:
            return super().draft(shape, room, chance)
        matched = super().draft(
            replace(shape, total_token=max(2, shape.total_token - self._settings.rows)), room, chance
        )
        return self._lookahead.onto(matched, shape.total_token, room)

    def learn(self, tree: DraftTree, scores: Scores, path: Sequence[int]) -> None:
        """See ``Drafting.learn``."""
        if self._settings.window:
            self._lookahead.learn(tree, scores, len(path) - 1)

    def predictor(self, shape: TreeShape) -> Predict:
        """See ``Retrieving.predictor``: the longest match first, then the most frequent, then the newest."""
        self._context.read(self.tokens)
        end = list(self.tokens[-self._longest :])

        def predict(path: Sequence[int]) -> Mapping[int, float]:
            context = [*end, *path][-self._longest :]
            found = predicted(in_order(self._databases, context), shape.least or 0.0, shape.top_k)
            return at_temperature(found, self._temperature)

        return predict

    def restart(self) -> None:
        """See ``Drafting.restart``."""
        # Now: soon the text is longer, and not as it was.
        self._context.read(self.tokens)
        self._look_ahead()

    def end(self) -> None:
        """See ``Drafting.end``."""
        self._context.read(self.tokens)
        self._drafter.take(self._context)
