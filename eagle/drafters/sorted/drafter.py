"""The sorted drafter: trees drafted by the first layers of the target, each node leaving at an exit of its own.

What leaves early has no keys and values in the layers behind its exit. They are made late: its states wait there, and
are run through in front of the first node that goes deeper. So the law at every exit is that of the smaller model that
ends there, whatever left where before.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eagle.drafters.drafter import Drafter, Drafting, Reads
from eagle.drafters.levels import Levels
from eagle.drafters.sorted.compiled import compiled_blocks
from eagle.drafters.sorted.exits import Calibration, Exits
from eagle.drafters.sorted.model import Rows, SortedModel
from eagle.target.compiling import built_or_said
from eagle.target.kv_cache import TreeCache
from eagle.target.memory import Memory
from eagle.target.target import PREFILL_STEP, Scores
from eagle.target.text import LevelTexts, Text
from eagle.tree.chance import Chance
from eagle.tree.draft_tree import DraftTree, root_only
from eagle.tree.growth import grow
from eagle.tree.shape import DETERMINISTIC, HYBRID, TreeShape


class SortedDrafter(Drafter):
    """Drafts trees with a sorted model.

    Args:
        model: it.
        exits: who leaves where.
    """

    name, reads = "sorted", Reads.NOTHING

    def __init__(self, model: SortedModel, exits: Exits | Calibration) -> None:
        self.model, self.exits = model, exits

    @property
    def settled(self) -> Mapping[str, Any]:
        """See ``Drafter.settled``."""
        return {"exits": list(self.model.exits), **self.exits.settled}

    def compile(self) -> None:
        """See ``Drafter.compile``."""
        if self.model.compiled is None:
            routes = self.exits.routes(self.model.blocks)
            self.model.compiled = built_or_said(
                "compiling the sorted draft", lambda: compiled_blocks(self.model, routes)
            )

    @property
    def remembers(self) -> Drafter | None:
        """See ``Drafter.remembers``."""
        return self

    def begin(self, text: Text, tokens: Sequence[int], largest: TreeShape) -> SortedDrafting:
        """See ``Drafter.begin``."""
        cache = self.model.scorer.new_cache(text.limit + largest.most_drafted + PREFILL_STEP)
        return SortedDrafting(self, cache, text, tokens)


@dataclass(frozen=True)
class Waiting:
    """States behind an exit, of tokens that have not been run through the layers behind it.

    Attributes:
        hidden: (n, H).
        slots: n places in the cache, ascending.
    """

    hidden: Tensor
    slots: tuple[int, ...]


class SortedDrafting(Drafting):
    """A sorted model at one text.

    Args:
        drafter: whose model it is.
        cache: an empty one.
        text: that is written.
        tokens: of it so far.
    """

    def __init__(self, drafter: SortedDrafter, cache: TreeCache, text: Text, tokens: Sequence[int]) -> None:
        self.model, self.cache = drafter.model, cache
        self._choice, self._temperature = drafter.exits, text.warper.temperature
        self.tokens, self.written = tokens, text.written(tokens)
        self.prompt_length = text.prompt.shape[1]
        self._prompt = text.prompt
        self._forget()

    def _forget(self) -> None:
        """Nothing is known behind what the cache has committed, and nobody waits."""
        self._waiting: list[list[Waiting]] = [[] for _ in range(self.model.blocks)]
        self._leave_tree()

    def recall(self, memory: Memory) -> None:
        """See ``Drafting.recall``."""
        self.cache.recall(memory)

    def read(self, prompt: Scores) -> None:
        """See ``Drafting.read``: through all layers at once, as arithmetic is what that takes."""
        self.model.scorer.prefill(self._prompt[:, self.cache.committed :], self.cache, features=False)

    def draft(self, shape: TreeShape, room: int, chance: Chance | None) -> DraftTree:
        """See ``Drafting.draft``."""
        root, levels = self.tokens[-1], shape.levels(room)
        if levels < 1:
            return root_only(root)
        exits = self._choice.at(self._temperature, DETERMINISTIC if shape.sampling is None else HYBRID)
        support = self.model.draft_ids
        texts = LevelTexts(self.written, support, self.model.scorer.vocab_size)
        logits = texts(self._behind_the_text(exits))[0]

        def expand(tokens: Tensor, parents: Tensor) -> Tensor:
            texts.descend(tokens, parents)
            return texts(self._level(tokens, parents, exits))

        return grow(root, logits, expand, support, shape, levels, chance)

    def learn(self, tree: DraftTree, scores: Scores, path: Sequence[int]) -> None:
        """See ``Drafting.learn``."""
        if len(self._levels) == 0:
            return
        kept = self._levels.places(tree.tokens[list(path[1:])].tolist())
        first = self.cache.committed
        place_of = {first + node: first + place for place, node in enumerate(kept)}
        self._waiting = [
            [each for waiting in entries if (each := _moved(waiting, place_of, first)).slots]
            for entries in self._waiting
        ]
        self.cache.keep(kept)
        self._leave_tree()

    def restart(self) -> None:
        """See ``Drafting.restart``."""
        self.cache.commit_prompt(self.prompt_length)
        self._forget()

    def end(self) -> None:
        """See ``Drafting.end``."""
        self.model.scorer.recycle(self.cache)

    def memory(self) -> Memory:
        """See ``Drafting.memory``: of the tokens in front of all that wait."""
        waiting = [each.slots[0] for entries in self._waiting for each in entries]
        return self.cache.memory().of_first(min([self.cache.committed, *waiting]))

    def _leave_tree(self) -> None:
        self._levels, self._last = Levels(), 0
        # Of the nodes of the tree, which lie behind the committed tokens: their depths, and what each attends to.
        self._depths: list[int] = []
        self._ancestors = torch.zeros(0, 0, dtype=torch.bool)

    def _behind_the_text(self, exits: Exits) -> Tensor:
        """Commit what is not in the cache yet; (1, D) logits of what follows the text."""
        # Forgets a tree that nobody learned from; the last token is read again where all are known.
        self._leave_tree()
        known = min(self.cache.committed, len(self.tokens) - 1)
        self._waiting = [
            [each for waiting in entries if (each := _moved(waiting, {}, known)).slots] for entries in self._waiting
        ]
        new = torch.tensor(self.tokens[known:])
        self.cache.commit_prompt(len(self.tokens))
        slots = range(known, len(self.tokens))
        first = exits.stops(self.model.blocks)[0] + 1
        hidden, logits = self._run(range(first), self.model.embed(new), slots)
        self._wait(first, hidden[:-1], slots[:-1])
        return self._through(hidden[-1:], logits[-1:], slots[-1:], exits)

    def _level(self, tokens: Tensor, parents: Tensor, exits: Exits) -> Tensor:
        """(n, D) logits of what follows the nodes of a level."""
        count, above = len(tokens), len(self._ancestors)
        parents_on_host = parents.cpu()
        # Nodes of the level before lie right in front of these.
        before = above - self._last
        rows = torch.zeros(count, above + count, dtype=torch.bool)
        if len(self._levels):
            rows[:, :above] = self._ancestors[before + parents_on_host]
        rows[:, above:] = torch.eye(count, dtype=torch.bool)
        self._ancestors = torch.cat([torch.nn.functional.pad(self._ancestors, (0, count)), rows])
        self._depths += [len(self._levels)] * count
        self._levels.add(tokens, parents)
        self._last = count
        slots = range(self.cache.committed + above, self.cache.committed + above + count)
        first = exits.stops(self.model.blocks)[0] + 1
        return self._through(*self._run(range(first), self.model.embed(tokens), slots), slots, exits)

    def _through(self, hidden: Tensor, logits: Tensor, slots: Sequence[int], exits: Exits) -> Tensor:
        """(n, D) logits of nodes, each from the exit at which it leaves; given are their states, and what they say, at
        the first exit that anybody may leave at."""
        stops = exits.stops(self.model.blocks)
        found, going, places = logits, torch.arange(len(hidden)), tuple(slots)
        for stop, following in itertools.pairwise(stops):
            deeper = exits.deeper(stop, logits)
            leaving = (~deeper).nonzero()[:, 0]
            self._wait(stop + 1, hidden[leaving.to(hidden.device)], [places[i] for i in leaving.tolist()])
            if not deeper.any():
                return found
            chosen = deeper.nonzero()[:, 0]
            going, places = going[chosen], tuple(places[i] for i in chosen.tolist())
            blocks = range(stop + 1, following + 1)
            hidden, logits = self._run(blocks, hidden[chosen.to(hidden.device)], places)
            found = logits if len(going) == len(found) else found.index_copy(0, going.to(found.device), logits)
        self._wait(stops[-1] + 1, hidden, places)
        return found

    def _wait(self, block: int, hidden: Tensor, slots: Sequence[int]) -> None:
        """Have these be run through a block, if there is one, when somebody next goes there."""
        if block < self.model.blocks and slots:
            self._waiting[block].append(Waiting(hidden, tuple(slots)))

    def _run(self, blocks: range, hidden: Tensor, slots: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Run nodes through blocks, and all that wait in front of one of them along with them.

        Returns:
            (n, H) states behind the last block, and (n, D) what they say there.
        """
        slots = tuple(slots)
        inside = [block for block in blocks[1:] if self._waiting[block]]
        for begin, end in itertools.pairwise((blocks.start, *inside, blocks.stop)):
            waiting, self._waiting[begin] = self._waiting[begin], []
            before = tuple(slot for each in waiting for slot in each.slots)
            rows = self._rows(torch.tensor([*before, *slots]))
            together = torch.cat([*(each.hidden for each in waiting), hidden]) if before else hidden
            states, logits = self.model.run(range(begin, end), together, rows, self.cache)
            hidden = states[len(before) :]
            self._wait(end, states[: len(before)], before)
        return hidden, logits[len(before) :]

    def _rows(self, slots: Tensor) -> Rows:
        """Where tokens are, committed ones and nodes of the tree."""
        committed, nodes = self.cache.committed, len(self._ancestors)
        width = self.cache.view_masked(nodes)
        places = torch.arange(width)
        # A committed token sees those before it, a node all of them, and its own path.
        seen = places < torch.where(slots < committed, slots + 1, committed)[:, None]
        of_tree = (slots >= committed).nonzero()[:, 0]
        if len(of_tree):
            seen[of_tree, committed : committed + nodes] = self._ancestors[slots[of_tree] - committed]
        key_positions = places.clone()
        key_positions[committed : committed + nodes] = committed + torch.tensor(self._depths, dtype=torch.int64)
        return Rows(slots, key_positions[slots], seen, key_positions)


def _moved(waiting: Waiting, place_of: Mapping[int, int], first: int) -> Waiting:
    """Those that stay: what is committed in front of ``first``, and nodes behind it as they are told to move."""
    if waiting.slots[-1] < first:
        return waiting
    rows = [row for row, slot in enumerate(waiting.slots) if slot < first or slot in place_of]
    slots = tuple(place_of.get(waiting.slots[row], waiting.slots[row]) for row in rows)
    if len(rows) == len(waiting.slots):
        return Waiting(waiting.hidden, slots)
    return Waiting(waiting.hidden[torch.tensor(rows, dtype=torch.int64, device=waiting.hidden.device)], slots)
