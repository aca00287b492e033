"""What is recorded of a generation: its times and what was accepted."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from eagle.decoding.logprobs import Logprob


class DecodingInfo(TypedDict):
    """Timing (seconds) and acceptance of one generation; lists have an entry per round.

    Keys:
        processor_time: building the warpers.
        kv_time: setting up the caches.
        reset_tree_time: prefill, first token and first draft.
        tree_time: target forward over the tree.
        eval_time: warping and verification.
        update_time: commit and next draft.
        draft_time: drafting this round's tree; part of the update_time before, or of reset_tree_time.
        accept_length: draft tokens accepted and emitted, without the target's own token.
        draft_length: tokens on the longest root-to-leaf path of the tree, the root included.
        logprobs: of the new tokens, one for each, where they were asked for.
    """

    processor_time: float
    kv_time: float
    reset_tree_time: float
    tree_time: list[float]
    eval_time: list[float]
    update_time: list[float]
    draft_time: list[float]
    accept_length: list[int]
    draft_length: list[int]
    logprobs: NotRequired[list[Logprob]]


def no_rounds(processor_time: float) -> DecodingInfo:
    """What is recorded of a generation before anything happened."""
    return DecodingInfo(
        processor_time=processor_time,
        kv_time=0.0,
        reset_tree_time=0.0,
        tree_time=[],
        eval_time=[],
        update_time=[],
        draft_time=[],
        accept_length=[],
        draft_length=[],
    )
