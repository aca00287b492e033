"""One generation: the loop of drafting, scoring, verifying and committing."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial

import torch
from torch import Tensor

from eagle.clock import Clock
from eagle.decoding.info import no_rounds
from eagle.decoding.prompt_cache import PromptCache, can_remember
from eagle.decoding.speculation import Speculation
from eagle.drafters.drafter import Reads
from eagle.target.target import Target
from eagle.target.text import Text
from eagle.tree.chance import chance
from eagle.tree.draft_tree import DraftTree, root_only
from eagle.verification import RULES, Verdict
from eagle.verification.naive_hsd import Carried, carried, modified_target


class Decoding:
    """One generation in progress: ``step`` is one round, until ``finished``.

    Args:
        target: the model whose text it is.
        speculation: what drafts it, trees of which shape, and how they are verified.
        text: its prompt, law and ends.
        processor_time: seconds that building the warper took, for the record.
        watch: is told new tokens, as many as a round gave, and the (k, V) logits of the target that they follow from,
            unprocessed and to be copied if they are to be kept.
        prompts: what earlier texts have left, and where this one leaves what it may; None: nothing is kept.

    Attributes:
        remembered: tokens of the prompt that were not read again.
    """

    def __init__(
        self,
        target: Target,
        speculation: Speculation,
        text: Text,
        processor_time: float = 0.0,
        watch: Callable[[list[int], Tensor], None] | None = None,
        prompts: PromptCache | None = None,
    ) -> None:
        self.watch = watch
        self.target, self.text, self.drafter = target, text, speculation.drafter
        self.rule = RULES["greedy"] if text.warper.greedy else speculation.rule
        self.shape = speculation.shape.at(text.warper.temperature)
        self.tokens: list[int] = text.prompt[0].tolist()
        self.prompt_length = len(self.tokens)
        self.info = no_rounds(processor_time)
        self.clock = Clock(target.device)
        self.finished = False
        self.prompts = prompts if can_remember(target) else None
        self.remembered = 0
        self._read_anew = False
        self._begin()

    @property
    def new_tokens(self) -> int:
        """Tokens emitted so far."""
        return len(self.tokens) - self.prompt_length

    def output_ids(self) -> Tensor:
        """(1, length) int64: the prompt and what was emitted so far."""
        return torch.tensor([self.tokens], device=self.target.device)

    @torch.inference_mode()
    def _begin(self) -> None:
        with self.clock.timing(partial(self.info.__setitem__, "kv_time")):
            self.cache = self.target.new_cache(self.text.limit + self.shape.total_token)
            self.drafting = self.drafter.begin(self.text, self.tokens, self.shape)
            self._recall()
        with self.clock.timing(partial(self.info.__setitem__, "reset_tree_time")):
            rest = self.text.prompt[:, self.remembered :]
            scores = self.target.prefill(rest, self.cache, features=self._wants_features)
            self._prompt_logits = scores.logits.clone()
            self.drafting.read(scores)
            self._first_token(self.text.generator)

    def _recall(self) -> None:
        """Begin with what earlier texts have left of the prompt."""
        found = None if self.prompts is None else self.prompts.find(self.tokens, self.drafter)
        if found is None:
            return
        target, draft = found
        self.cache.recall(target)
        self.remembered = target.known
        if draft is not None:
            self.drafting.recall(draft)

    @torch.inference_mode()
    def restart(self, generator: torch.Generator | None) -> None:
        """Forget the text, and begin another one behind the same prompt without reading it again.

        Its law is that of a fresh ``Decoding``, whatever was decoded before.

        Args:
            generator: source of randomness.

        Raises:
            ValueError: the text has ended, so the next generation has its memory.
        """
        if self.finished:
            raise ValueError("a text that has ended cannot be restarted; its memory is given away")
        self.info = no_rounds(self.info["processor_time"])
        with self.clock.timing(partial(self.info.__setitem__, "reset_tree_time")):
            del self.tokens[self.prompt_length :]
            if self._read_anew:
                self.cache.forget()
                self.target.prefill(self.text.prompt, self.cache, features=False)
                self._read_anew = False
            self.cache.commit_prompt(self.prompt_length)
            self.drafting.restart()
            self._first_token(generator)

    def _first_token(self, generator: torch.Generator | None) -> None:
        """Draw it from what the target said of the prompt, and draft what may follow."""
        self.generator = generator
        self.chance = chance(self.shape, self.text.warper, generator)
        self._carried = Carried(1.0, 0)
        self._ended = None if self.text.ends is None else self.text.ends()
        first = [int(self.verify(root_only(self.tokens[-1]), self._prompt_logits).next_token)]
        self._emit(first)
        if self.watch is not None:
            self.watch(first, self._prompt_logits)
        self._draft_or_end()

    @torch.inference_mode()
    def step(self) -> None:
        """One round: score the tree, verify it, commit the accepted path, let the drafter learn it, draft the next."""
        tree, info, timing = self.tree, self.info, self.clock.timing
        with timing(info["tree_time"].append):
            self._read_anew |= self.target.read_anew(self.tokens, self.cache)
            scored, places = tree.scored()
            scores = self.target.score(scored, self.cache, features=self._wants_features).at(places)
        with timing(info["eval_time"].append):
            verdict = self.verify(tree, scores.logits)
        with timing(info["update_time"].append):
            accepted = tree.tokens[list(verdict.path[1:])].tolist()
            emitted = self._emit([*accepted, int(verdict.next_token)])
            if self.watch is not None:
                self.watch(self.tokens[-emitted:], scores.logits[list(verdict.path[:emitted])])
            info["accept_length"].append(min(len(accepted), emitted))
            info["draft_length"].append(tree.draft_length)
            if not self.finished:
                self.cache.keep(places[list(verdict.path)].tolist())
                self.drafting.learn(tree, scores, verdict.path)
            self._draft_or_end()

    def stop(self) -> None:
        """End the text here, if it has not ended by itself."""
        if not self.finished:
            self.finished = True
            self._draft_or_end()

    def verify(self, tree: DraftTree, logits: Tensor) -> Verdict:
        """What of a tree behind the text is accepted, given (N, V) logits of the target."""
        probs = self.law(tree, logits)
        if not self.rule.follows_every_prefix:
            return self.rule.verify(tree, probs, self.generator)
        if self._carried.over:
            verdict = self.rule.verify(tree, probs, self.generator)
            self._carried = carried(tree, probs, verdict.accept_length, int(verdict.next_token))
            return verdict
        # The tree is only its root, and the rule's own residual there is all of what it is given.
        p, q = probs[0], self._draft_law
        verdict = self.rule.verify(tree, modified_target(p, q, self._carried.ratio)[None], self.generator)
        self._carried = self._carried.behind(p, q, int(verdict.next_token))
        return verdict

    def law(self, tree: DraftTree, logits: Tensor) -> Tensor:
        """(N, V) logits of the target -> (N, V) probabilities of what follows each node of a tree behind the text; at
        temperature 0 logits, see ``Warper``."""
        if self.text.processors is not None:
            logits = self.text.processors(logits, tree, self.tokens)
        return self.text.warper(logits)

    @property
    def _wants_features(self) -> bool:
        return self.drafter.reads is Reads.FEATURES

    def _draft_or_end(self) -> None:
        """A tree behind the text; if it has ended, leave the memory of the caches to the next generation."""
        if self.finished:
            if self.prompts is not None:
                memory = self.drafting.memory()
                self.prompts.keep(self.tokens, self.cache.memory(), self.drafter.remembers, memory)
            self.target.recycle(self.cache)
            self.drafting.end()
            return
        with self.clock.timing(self.info["draft_time"].append):
            self.tree = self._draft()

    def _draft(self) -> DraftTree:
        place = len(self.tokens) - 1
        if not self._carried.over and self.chance is not None:
            # The chain that was drafted is not over: its modified target is.
            self._draft_law = self.drafting.law(self.chance).to(self.target.device)
            return root_only(self.tokens[-1])
        room = self.target.levels(place, self.text.limit - place - 2)
        return self.drafting.draft(self.shape, room, self.chance)

    def _emit(self, tokens: list[int]) -> int:
        """Append up to the first that ends the text, or the limit; returns how many."""
        for count, token in enumerate(tokens, start=1):
            self.tokens.append(token)
            over = self._ended is not None and self._ended(token)
            if over or token in self.text.stop_ids or len(self.tokens) >= self.text.limit:
                self.finished = True
                return count
        return len(tokens)


def rounds(decoding: Decoding) -> Generator[Decoding, None, None]:
    """Decode to the end: yields the generation after prefill and each round. Who stops asking ends the text there."""
    try:
        yield decoding
        while not decoding.finished:
            decoding.step()
            yield decoding
    except GeneratorExit:
        # Not after an error: NaN in the caches would poison the next generation.
        decoding.stop()
        raise
