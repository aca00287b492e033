"""One generation: the loop of drafting, scoring, verifying and committing."""

from __future__ import annotations

import torch
from torch import Tensor

from eagle.clock import Clock
from eagle.decoding.info import no_rounds
from eagle.drafters.eagle3.drafter import Drafter
from eagle.target.target import Scores, Target
from eagle.target.text import Text, Written
from eagle.tree.chance import chance
from eagle.tree.draft_tree import DraftTree, root_only
from eagle.tree.shape import TreeShape
from eagle.verification import RULES, Rule, Verdict


class Decoding:
    """One generation in progress: ``step`` is one round, until ``finished``.

    Args:
        target: the model whose text it is.
        drafting: what drafts it, and trees of which shape; None decodes autoregressively.
        text: its prompt, law and ends.
        rule: verification; at temperature 0 it is always ``greedy``.
        processor_time: seconds that building the warper took, for the record.
    """

    def __init__(
        self,
        target: Target,
        drafting: tuple[Drafter, TreeShape] | None,
        text: Text,
        rule: Rule = RULES["tokenwise"],
        processor_time: float = 0.0,
    ) -> None:
        self.target, self.text, self.generator = target, text, text.generator
        self.rule = RULES["greedy"] if text.warper.greedy else rule
        if drafting is None:
            self.drafter, self.shape, self.chance = None, None, None
        else:
            self.drafter, self.shape = drafting[0], drafting[1].at(text.warper.temperature)
            self.chance = chance(self.shape, text.warper, text.generator)
        self.tokens: list[int] = text.prompt[0].tolist()
        self._read_anew = False
        self.prompt_length = len(self.tokens)
        self.info = no_rounds(processor_time)
        self.finished = False
        self.clock = Clock(target.device)
        self._begin()

    @property
    def new_tokens(self) -> int:
        """Tokens emitted so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def written(self) -> Written | None:
        """What drafting has to know of the text; None where logits are not processed."""
        return None if self.text.processors is None else Written(self.text.processors, self.tokens)

    def output_ids(self) -> Tensor:
        """(1, length) int64: the prompt and what was emitted so far."""
        return torch.tensor([self.tokens], device=self.target.device)

    @torch.inference_mode()
    def _begin(self) -> None:
        self.cache = self.target.new_cache(self.text.limit + (self.shape.total_token if self.shape else 1))
        self.head_cache = self.drafter.new_cache(self.text.limit, self.shape) if self.drafter and self.shape else None
        self.info["kv_time"] = self.clock.lap()
        scores = self.target.prefill(self.text.prompt, self.cache, features=self.drafter is not None)
        # All that a restart needs to know: what else the target said of the prompt is in the caches by then.
        last = scores.features if scores.features is None else scores.features[-1:].clone()
        self._prompt_end = Scores(scores.logits.clone(), last)
        self._first_token(scores)

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
        self.generator = generator
        if self.shape is not None:
            self.chance = chance(self.shape, self.text.warper, generator)
        self.info = no_rounds(self.info["processor_time"])
        self.clock.lap()
        del self.tokens[self.prompt_length :]
        if self._read_anew:
            self.cache.forget()
            self.target.prefill(self.text.prompt, self.cache, features=False)
            self._read_anew = False
        self.cache.commit_prompt(self.prompt_length)
        if self.head_cache is not None:
            # The head reads each token beside the feature of the one before: the prompt's last waits for the text.
            self.head_cache.committed = self.prompt_length - 1
        self._first_token(self._prompt_end)

    def _first_token(self, prompt: Scores) -> None:
        """Draw it from what the target said of the prompt, and draft what may follow."""
        token = int(self.verify(root_only(self.tokens[-1]), prompt.logits).next_token)
        self._emit([token])
        if not self.finished:
            self.tree = self._draft(prompt.features)
        else:
            self._end()
        self.info["reset_tree_time"] = self.clock.lap()

    @torch.inference_mode()
    def step(self) -> None:
        """One round: score the tree, verify it, commit the accepted path, draft the next tree."""
        tree, info = self.tree, self.info
        self.clock.lap()
        self._read_anew |= self.target.read_anew(self.tokens, self.cache)
        scores = self.target.score(tree, self.cache, features=self.drafter is not None)
        info["tree_time"].append(self.clock.lap())
        verdict = self.verify(tree, scores.logits)
        info["eval_time"].append(self.clock.lap())
        path = list(verdict.path)
        accepted = tree.tokens[path[1:]].tolist()
        emitted = self._emit([*accepted, int(verdict.next_token)])
        info["accept_length"].append(min(len(accepted), emitted))
        info["draft_length"].append(tree.draft_length)
        if not self.finished:
            self.cache.keep(path)
            features = scores.features if scores.features is None else scores.features[path]
            self.tree = self._draft(features)
        else:
            self._end()
        info["update_time"].append(self.clock.lap())

    def stop(self) -> None:
        """End the text here, if it has not ended by itself."""
        if not self.finished:
            self.finished = True
            self._end()

    def verify(self, tree: DraftTree, logits: Tensor) -> Verdict:
        """What of a tree behind the text is accepted, given (N, V) logits of the target."""
        return self.rule.verify(tree, self.law(tree, logits), self.generator)

    def law(self, tree: DraftTree, logits: Tensor) -> Tensor:
        """(N, V) logits of the target -> (N, V) probabilities of what follows each node of a tree behind the text; at
        temperature 0 logits, see ``Warper``."""
        if self.text.processors is not None:
            logits = self.text.processors(logits, tree, self.tokens)
        return self.text.warper(logits)

    def _end(self) -> None:
        """Leave the memory of the caches to the next generation."""
        self.target.recycle(self.cache)
        if self.drafter is not None and self.head_cache is not None:
            self.drafter.recycle(self.head_cache)

    def _draft(self, features: Tensor | None) -> DraftTree:
        """A tree behind the last token, given the features of the tokens that the head has not seen yet."""
        root, place = self.tokens[-1], len(self.tokens) - 1
        room = self.target.levels(place, self.text.limit - place - 2)
        began = self.clock.now()
        if self.drafter is None or self.shape is None or features is None or self.head_cache is None:
            tree = root_only(root)
        else:
            following = torch.tensor(self.tokens[-len(features) :])
            tree = self.drafter.draft(
                features, following, root, self.head_cache, self.shape, room, self.chance, self.written
            )
        self.info["draft_time"].append(self.clock.now() - began)
        return tree

    def _emit(self, tokens: list[int]) -> int:
        """Append up to the first stop token or the limit; returns how many."""
        for count, token in enumerate(tokens, start=1):
            self.tokens.append(token)
            if token in self.text.stop_ids or len(self.tokens) >= self.text.limit:
                self.finished = True
                return count
        return len(tokens)
