"""Whether a target scores the nodes of a tree as it scores the same tokens one by one, found out on the model itself.

A tree is scored under a mask of our own, in a cache of our own, whose views are rounded up. Most modeling code does
what the mask and the positions say; some has an attention pattern of its own, by the places of keys in the cache. Names
of architectures do not tell, and the next one is not known yet. So it is tried, behind a context longer than many
windows.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from eagle.errors import InputError
from eagle.target.int8 import quantized
from eagle.target.kv_cache import VIEW_STEP, TreeCache
from eagle.target.target import Target
from eagle.tree.draft_tree import DraftTree

# Two children of the root, two and one children of these, each the only one on its path to see what it sees.
PARENTS = (0, 0, 0, 1, 1, 2)
DEPTHS = (0, 1, 1, 2, 2, 2)
PATHS = ((0, 1, 3), (0, 1, 4), (0, 2, 5))
# Tokens that are really read, and positions in the cache, with made-up keys and values between them.
PROMPT, CONTEXT = 5, 17 * VIEW_STEP - 3
# Made-up values are so many times as large as real ones: then it shows in the logits which of them are seen.
LOUD = 8.0
# Rows may differ by so many roundings of the dtype (bfloat16: a sixth of the spread of the logits, float16 2 %), and by
# what attention in float32 comes to in a model in float64.
ROUNDINGS, AT_LEAST = 20.0, 1e-3
# With another context each: what is wrong is wrong in all of them, an expert chosen otherwise by a rounding is not.
TRIES = 3


@dataclass(frozen=True)
class _Row:
    """A row of logits that was looked at: what it follows, and how far the two ways of scoring it are apart."""

    follows: str
    difference: float


def refuse_wrong_scores(target: Target) -> None:
    """Refuse a target whose rows for a tree are not what it says token by token.

    Two readings of a short prompt, one of a tree of six nodes and three steps of its three paths side by side: about a
    second for a model of 135 million parameters on two cores.

    Args:
        target: as loaded.

    Raises:
        InputError: names the row that differs most, and by how much.
    """
    for seed in range(TRIES):
        try:
            worst = _worst_row(target, seed)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"{_named(target)} cannot score a draft tree: {reason}") from error
        if worst.difference <= _tolerance(target):
            return
    raise InputError(
        f"{_named(target)} scores a draft tree otherwise than token by token: behind {worst.follows} its logits differ "
        f"by {worst.difference:.2g} of their spread ({_tolerance(target):.2g} is allowed); speculative decoding would "
        "change its texts, so it is refused (verify_target=False skips this check)"
    )


def _named(target: Target) -> str:
    return type(target.model).__name__


def _tolerance(target: Target) -> float:
    # The products of quantised weights are rounded more coarsely than the dtype of the activations says.
    quantised = getattr(target.model.config, "quantization_config", None) is not None or quantized(target.model)
    dtype = torch.bfloat16 if quantised else target.dtype
    return max(AT_LEAST, ROUNDINGS * torch.finfo(dtype).eps)


@torch.inference_mode()
def _worst_row(target: Target, seed: int) -> _Row:
    generator = torch.Generator().manual_seed(seed)
    most = target.context_length or CONTEXT + len(PARENTS)
    if target.switch is not None:
        most = min(most, target.switch.at)
    context = min(CONTEXT, most - max(DEPTHS) - 1)
    prompt = torch.randint(target.vocab_size, (1, min(PROMPT, context)), generator=generator)
    tokens = torch.randint(target.vocab_size, (len(PARENTS),), generator=generator)
    tree = DraftTree(tokens, torch.tensor(PARENTS), torch.tensor(DEPTHS), torch.zeros(len(PARENTS)))
    cache, stock = target.new_cache(context + len(tree)), DynamicCache(config=target.model.config)
    read = target.prefill(prompt, cache, features=False)
    expected = target.model(input_ids=prompt.to(target.device), past_key_values=stock, use_cache=True).logits[:, -1]
    rows = [_Row(f"a prompt of {prompt.shape[1]} tokens", _apart(read.logits[0], expected[0]))]
    _lengthen(cache, stock, context - prompt.shape[1], generator)
    scores = target.score(tree, cache, features=False)
    for depth, logits in enumerate(_steps(target, stock, tokens)):
        for path, row in zip(PATHS, logits, strict=True):
            node = path[depth]
            what = f"{context} positions and node {node} of {len(tree)} (depth {depth})"
            rows.append(_Row(what, _apart(scores.logits[node], row)))
    target.recycle(cache)
    return max(rows, key=lambda row: row.difference)


def _lengthen(cache: TreeCache, stock: DynamicCache, more: int, generator: torch.Generator) -> None:
    """Put the same made-up keys and values behind the prompt in both caches: real ones, in random order and noisy."""
    if more < 1:
        return
    read = cache.committed
    # Normal numbers take longer than everything else here, so the layers share them, each from another place on.
    shared: dict[torch.Size, Tensor] = {}
    for number, layer in enumerate(cache.tree_layers):
        made: list[Tensor] = []
        for states, loudness in ((layer.keys, 1.0), (layer.values, LOUD)):
            real = states[:, :, :read].float()
            picked = torch.randint(read, (more,), generator=generator).to(real.device)
            chosen = real[:, :, picked]
            if chosen.shape not in shared:
                shared[chosen.shape] = torch.randn(chosen.shape, generator=generator)
            noise = shared[chosen.shape].roll(len(made) + 2 * number, dims=-2).to(real.device)
            made.append((loudness * (chosen + real.std() * noise)).to(states.dtype))
        layer.update(made[0], made[1])
        stock.update(made[0], made[1], number)
    cache.commit_prompt(read + more)


def _steps(target: Target, stock: DynamicCache, tokens: Tensor) -> list[Tensor]:
    """(paths, V) logits of the stock model after each token of the paths, one token at a time."""
    side_by_side = copy.deepcopy(stock)
    side_by_side.batch_repeat_interleave(len(PATHS))
    paths = tokens[torch.tensor(PATHS)].to(target.device)
    return [
        target.model(input_ids=step[:, None], past_key_values=side_by_side, use_cache=True).logits[:, -1]
        for step in paths.unbind(1)
    ]


def _apart(mine: Tensor, theirs: Tensor) -> float:
    """How far apart two rows of logits are, in units of their spread; a constant added to a row changes no law."""
    mine, theirs = mine.double().cpu(), theirs.double().cpu()
    mine, theirs = mine - mine.mean(), theirs - theirs.mean()
    spread = float(theirs.norm())
    difference = float((mine - theirs).norm())
    # NaN anywhere is no agreement; what two rows without any opinion say is the same.
    return difference / spread if spread > 0 else difference if difference == difference else float("inf")
