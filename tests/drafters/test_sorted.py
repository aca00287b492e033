"""The sorted drafter: every exit's law is that of the smaller model that ends there, and rounds with it are exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eagle import assets
from eagle.decoding.speculation import Offer
from eagle.drafters.sorted.checkpoint import first_layers
from eagle.drafters.sorted.drafter import SortedDrafter, SortedDrafting
from eagle.drafters.sorted.exits import Exits, LastExit, SortedDraft, Thresholds
from eagle.drafters.sorted.model import SortedModel
from eagle.errors import InputError
from eagle.model.ea_model import EaModel
from eagle.target.text import Text
from eagle.tree.chance import chance
from eagle.tree.shape import Sampling, TreeShape
from eagle.tree.warping import Warper
from eagle.verification import RULES
from tests.decoding.rounds import SAMPLING, round_distances

EXITS = (1, 2, 4)


class Scripted(Exits):
    """Leaves at random, by a script of its own; each draft at other exits, so that nodes wait in front of blocks that a
    later draft would run through at once."""

    def __init__(self, seed: int) -> None:
        self._source = torch.Generator().manual_seed(seed)
        self._stops: tuple[int, ...] = ()

    def at(self, temperature: float, kind: str) -> Exits:
        drawn = torch.rand(len(EXITS), generator=self._source) < 0.6
        self._stops = tuple(drawn.nonzero()[:, 0].tolist()) or (len(EXITS) - 1,)
        return self

    def stops(self, count: int) -> tuple[int, ...]:
        return self._stops

    def deeper(self, exit_number: int, logits: Tensor) -> Tensor:
        return torch.rand(len(logits), generator=self._source) < 0.5

    @property
    def settled(self) -> Mapping[str, Any]:
        return {}


def sorted_drafter(llama: EaModel, exits: Exits, at: Sequence[int] = EXITS) -> SortedDrafter:
    draft_ids = torch.arange(llama.target.vocab_size)
    return SortedDrafter(SortedModel(first_layers(llama.base_model, at[-1]).eval(), at, draft_ids), exits)


class Watched(SortedDrafting):
    """Notes the text and the logits of every node, and at which exit they were said."""

    said: list[tuple[list[int], int, Tensor]]

    def _through(self, hidden: Tensor, logits: Tensor, slots: Sequence[int], exits: Exits) -> Tensor:
        found = super()._through(hidden, logits, slots, exits)
        for row, slot in enumerate(slots):
            self.said.append((self._path(slot), slot, found[row]))
        return found

    def _path(self, slot: int) -> list[int]:
        committed = self.cache.committed
        if slot < committed:
            return list(self.tokens[: slot + 1])
        tokens = torch.cat([level for level, _ in self._levels._levels]).tolist()
        path = self._ancestors[slot - committed].nonzero()[:, 0].tolist()
        return [*self.tokens, *(tokens[node] for node in path)]


@torch.inference_mode()
def test_every_exit_says_what_its_model_says_whatever_left_where_before(llama: EaModel) -> None:
    """Against the smaller models run from scratch, over rounds with drafts, accepted paths, restarts and stops."""
    smaller = [first_layers(llama.base_model, layers).eval() for layers in EXITS]
    counts = [0] * len(EXITS)
    model = sorted_drafter(llama, LastExit()).model
    for seed in range(4):
        # The memory of the text before is used again; prompts end in front of a step of the cache, on it and behind it.
        drafter = SortedDrafter(model, Scripted(seed))
        prompt = torch.randint(8, (1, (5, 63, 64, 95)[seed]), generator=torch.Generator().manual_seed(seed))
        text = Text(prompt, Warper(1.0), 200, generator=torch.Generator().manual_seed(seed))
        shape = TreeShape(12, 2, 3, Sampling(0.05, 0.5, 1))
        tokens = prompt[0].tolist()
        drafting = Watched(drafter, drafter.model.scorer.new_cache(250), text, tokens)
        drafting.said = []
        drafting.read(None)
        source = torch.Generator().manual_seed(seed)
        for turn in range(9):
            if turn == 6:
                del tokens[len(prompt[0]) :]
                drafting.restart()
            tokens.append(int(torch.randint(8, (), generator=source)))
            tree = drafting.draft(shape, 5, chance(shape, text.warper, source))
            if turn == 3:
                # Drafted again, as who looks at several shapes does.
                tree = drafting.draft(shape, 5, chance(shape, text.warper, source))
            node = int(torch.randint(len(tree), (), generator=source))
            path = tree.path_to(node)
            tokens.extend(tree.tokens[list(path[1:])].tolist())
            drafting.learn(tree, None, path)
            for texts, _, logits in drafting.said:
                ids = torch.tensor([texts])
                apart = [float((each(input_ids=ids).logits[0, -1] - logits).abs().max()) for each in smaller]
                best = min(range(len(EXITS)), key=apart.__getitem__)
                assert apart[best] < 1e-10
                counts[best] += 1
            drafting.said.clear()
        drafting.end()
    assert min(counts) > 20


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("tree", ["deterministic", "hybrid"])
def test_a_round_has_exactly_the_target_law(llama: EaModel, sampling: tuple[float, float, int], tree: str) -> None:
    rules = [RULES["tokenwise"], RULES["hsd"]]
    for exits in (Thresholds((0.3, 0.35, 0.0), 3), LastExit()):
        llama.offers["sorted"] = Offer(sorted_drafter(llama, exits), TreeShape(8, 1, 3))
        assert max(round_distances(llama, tree, rules, sampling, 2, drafter="sorted")) < 1e-9
    del llama.offers["sorted"]


class OneForALevel(Exits):
    """What must not be: a level's exit chosen from what all of its nodes say, drawn ones too."""

    def deeper(self, exit_number: int, logits: Tensor) -> Tensor:
        return torch.full((len(logits),), bool(logits.softmax(-1).amax(-1).mean() <= 0.4))

    @property
    def settled(self) -> Mapping[str, Any]:
        return {}


def test_an_exit_chosen_from_the_tokens_of_a_level_is_caught(llama: EaModel) -> None:
    """A sample is expanded beside a pick below which a node is decided on before the sample's token is drawn."""
    late = Sampling(0.15, 0.03, 1)
    far = {}
    for exits in (OneForALevel(), Thresholds((0.4, 0.4), 3)):
        llama.offers["sorted"] = Offer(sorted_drafter(llama, exits), TreeShape(8, 1, 3))
        rules, text = [RULES["tokenwise"], RULES["hsd"]], (1.0, 0.0, 0)
        far[type(exits)] = round_distances(llama, "hybrid", rules, text, 0, drafter="sorted", drafted_with=late)
    del llama.offers["sorted"]
    assert min(far[OneForALevel]) > 1e-3
    assert max(far[Thresholds]) < 1e-9


def test_exits_that_are_not_there_are_refused(llama: EaModel) -> None:
    for at in ((), (2, 1), (0, 4), (1, 3)):
        with pytest.raises(InputError, match="exits must be ascending numbers of layers"):
            SortedModel(first_layers(llama.base_model, 4), at, torch.arange(5))
    for thresholds in ((0.5,), (0.5, 1.5), (0.1, 0.2, 0.3, 0.4)):
        with pytest.raises(InputError, match="there are 3 exits: give 2 thresholds"):
            Thresholds(thresholds, 3)


def test_a_draft_is_called_what_its_user_calls_it() -> None:
    """Not by where this machine has it: the record of a run goes elsewhere."""
    shipped = SortedDraft(assets.DEFAULT_PAIR)
    assert shipped.path == assets.DEFAULT_PAIR
    assert (Path(shipped.folder) / "config.json").is_file()
    assert SortedDraft("training/mine").folder == "training/mine"
