"""What a stream shows is what the generation did."""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eagle.application.conversation import ChatModel, ChatSettings
from eagle.application.shading import ANSI_256, DEEPEST, ON_DARK, ON_LIGHT, Colour, ansi
from eagle.application.streaming import OWN, Statistics, race, stream
from eagle.clock import Clock
from eagle.decoding.decoding import Decoding
from eagle.decoding.method import DEFAULT_SAMPLING, Method
from eagle.decoding.sampling_params import SamplingParams
from eagle.errors import InputError
from eagle.model.ea_model import EaModel
from eagle.tree.shape import TreeShape
from tests.tiny import load_pair, make_chat_pair

HSD = Method.named(hsd=True)
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> EaModel:
    return load_pair(*make_chat_pair(tmp_path_factory.mktemp("chat")))


def prompt(model: EaModel, text: str = "Tell me all.") -> torch.Tensor:
    return model.get_tokenizer()(text, return_tensors="pt").input_ids


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("drafting", [None, Method.named(hsd=False), HSD, Method.named(True, "blockwise", "chain")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_pieces_are_the_text_and_depths_the_accept_lengths(
    model: EaModel, drafting: Method | None, temperature: float
) -> None:
    tokenizer, sampling = model.get_tokenizer(), {"temperature": temperature, "max_new_tokens": 60}
    if drafting is None:
        logged = model.naivegenerate(prompt(model), **sampling, log=True, generator=seeded())
    else:
        logged = model.eagenerate(
            prompt(model),
            **sampling,
            log=True,
            generator=seeded(),
            verifier=drafting.verifier,
            tree=drafting.tree,
        )
    output_ids, new_tokens, last_round, info = logged
    updates = list(
        stream(model.rounds(drafting, prompt(model), SamplingParams(**sampling, generator=seeded())), tokenizer)
    )

    new_ids = output_ids[0, prompt(model).shape[1] :]
    text = "".join(piece.text for update in updates for piece in update.pieces)
    assert text == tokenizer.decode(new_ids, skip_special_tokens=True)
    assert [update.statistics.rounds for update in updates] == list(range(last_round + 2))
    assert [update.finished for update in updates] == [False] * (last_round + 1) + [True]
    last = updates[-1].statistics
    assert (last.new_tokens, last.accepted) == (new_tokens, sum(info["accept_length"]))
    assert {piece.depth for piece in updates[0].pieces} <= {OWN}
    for update, accepted in zip(updates[1:], info["accept_length"], strict=True):
        drafted = [piece.depth for piece in update.pieces if piece.depth != OWN]
        # Tokens that complete no character have no piece.
        assert set(drafted) <= set(range(1, accepted + 1))
        assert drafted == sorted(set(drafted))


def test_every_token_has_the_depth_it_was_accepted_at(model: EaModel) -> None:
    """In ASCII a token of this tokenizer is a character, which is out as soon as the token is."""
    tokenizer, wide = model.get_tokenizer(), TreeShape(120, 3, 24, DEFAULT_SAMPLING)
    sampling = {"temperature": 1.0, "max_new_tokens": 300}
    watched = model.rounds(HSD, prompt(model), SamplingParams(**sampling, generator=seeded()), wide)
    updates = stream(model.rounds(HSD, prompt(model), SamplingParams(**sampling, generator=seeded()), wide), tokenizer)
    seen, deepest = 0, 0
    for decoding, update in zip(watched, updates, strict=True):
        fresh = decoding.tokens[decoding.prompt_length + seen :]
        accepted = decoding.info["accept_length"][-1] if seen else 0
        seen += len(fresh)
        ends = {piece.depth: piece.text[-1] for piece in update.pieces}
        for place, token in enumerate(fresh, start=1):
            depth = place if place <= accepted else OWN
            character = tokenizer.decode(token)
            if len(character) == 1 and character.isascii() and not decoding.finished:
                assert ends[depth] == character
                deepest = max(deepest, depth)
    assert deepest >= 2


def test_a_closed_stream_leaves_its_memory_and_the_model_as_new(model: EaModel) -> None:
    whole = model.eagenerate(prompt(model), temperature=1.0, max_new_tokens=40, hsd=True, generator=seeded())
    slabs = model.target._spare
    updates = stream(
        model.rounds(HSD, prompt(model), SamplingParams(temperature=1.0, max_new_tokens=40, generator=seeded())),
        model.get_tokenizer(),
    )
    next(updates)
    next(updates)
    assert model.target._spare is None
    updates.close()
    assert model.target._spare is slabs
    again = model.eagenerate(prompt(model), temperature=1.0, max_new_tokens=40, hsd=True, generator=seeded())
    assert again.tolist() == whole.tolist()


def test_memory_of_a_failed_generation_is_not_used_again(tmp_path: Path) -> None:
    model = load_pair(*make_chat_pair(tmp_path))
    rounds = model.rounds(HSD, prompt(model), SamplingParams(temperature=1.0, max_new_tokens=40, generator=seeded()))
    next(rounds)
    with torch.no_grad():
        weight = model.base_model.model.norm.weight
        weight.fill_(float("nan"))
        with pytest.raises(InputError, match="NaN"):
            list(rounds)
    assert model.target._spare is None


def test_statistics_count_prefill_and_accepted_tokens() -> None:
    assert Statistics().tau is None
    assert Statistics().tokens_per_second == 0.0
    after = Statistics(new_tokens=9, rounds=4, accepted=4, seconds=2.0)
    assert (after.tau, after.tokens_per_second) == (2.0, 4.5)


class HandMoved(Clock):
    """Shows what it is set to."""

    def __init__(self) -> None:
        self.shown = 100.0
        super().__init__(torch.device("cpu"))

    def now(self) -> float:
        return self.shown


def test_time_between_updates_is_not_counted(model: EaModel) -> None:
    """A reader that takes its time costs nothing."""
    clock = HandMoved()

    def rounds() -> Generator[Decoding, None, None]:
        for decoding in model.rounds(None, prompt(model), SamplingParams(max_new_tokens=8)):
            clock.shown += 0.25
            yield decoding

    seconds = []
    for update in stream(rounds(), model.get_tokenizer(), clock):
        seconds.append(update.statistics.seconds)
        clock.shown += 1000.0
    assert len(seconds) >= 5
    assert seconds == [0.25 * place for place in range(1, len(seconds) + 1)]


def test_an_answer_is_timed(model: EaModel) -> None:
    seconds = [update.statistics.seconds for update in ChatModel(model).answer(HELLO, ChatSettings(max_new_tokens=8))]
    # How long anything takes is the machine's business; that the clock runs is not.
    assert seconds == sorted(seconds)
    assert seconds[-1] > 0


def test_a_race_gives_each_what_it_writes_alone(model: EaModel) -> None:
    chat, settings = ChatModel(model, seed=5), ChatSettings(max_new_tokens=30)
    alone = [list(chat.answer(HELLO, settings, autoregressive=baseline)) for baseline in (False, True)]
    together: list[list] = [[], []]
    lanes = [chat.answer(HELLO, settings, autoregressive=baseline) for baseline in (False, True)]
    for lane, update in race(lanes, threading.Event()):
        together[lane].append(update)
    assert [[update.pieces for update in lane] for lane in together] == [
        [update.pieces for update in lane] for lane in alone
    ]


def test_a_race_lets_the_one_with_less_time_go_first(model: EaModel) -> None:
    chat = ChatModel(model, seed=5)
    seconds = [0.0, 0.0]
    ended = [False, False]
    lanes = [chat.answer(HELLO, ChatSettings(max_new_tokens=12), autoregressive=baseline) for baseline in (False, True)]
    for lane, update in race(lanes, threading.Event()):
        assert ended[1 - lane] or seconds[lane] <= seconds[1 - lane]
        seconds[lane], ended[lane] = update.statistics.seconds, update.finished


def test_a_stopped_race_ends_after_the_round(model: EaModel) -> None:
    stopped = threading.Event()
    updates = []
    for _, update in race([ChatModel(model, seed=5).answer(HELLO, ChatSettings(max_new_tokens=500))], stopped):
        updates.append(update)
        if len(updates) == 3:
            stopped.set()
    assert len(updates) == 3
    assert not updates[-1].finished


def test_a_seed_makes_answers_repeat_and_none_does_not(model: EaModel) -> None:
    def answer(chat: ChatModel) -> str:
        updates = chat.answer(HELLO, ChatSettings(max_new_tokens=20))
        return "".join(piece.text for update in updates for piece in update.pieces)

    assert answer(ChatModel(model, seed=1)) == answer(ChatModel(model, seed=1)) != answer(ChatModel(model, seed=2))
    assert len({answer(ChatModel(model)) for _ in range(3)}) == 3


def test_settings_that_do_not_go_together_are_refused() -> None:
    for wrong, why in (
        ({"temperature": -1.0}, "temperature must be"),
        ({"top_p": 1.5}, "top_p must lie"),
        ({"tree": "bush"}, "tree must be one of"),
        ({"verifier": "blockwise"}, "needs tree='chain'"),
        ({"verifier": "hsd_published"}, "hsd_published"),
        ({"max_new_tokens": 0}, "1 or more"),
    ):
        with pytest.raises(InputError, match=why):
            replace(ChatSettings(), **wrong)


def test_what_cannot_be_answered_is_explained(tmp_path: Path, model: EaModel) -> None:
    long = [{"role": "user", "content": "x" * 3000}]
    with pytest.raises(InputError, match="leaves no room"):
        next(ChatModel(model).answer(long, ChatSettings()))
    refusing = load_pair(*make_chat_pair(tmp_path / "a", "{{ raise_exception('user and assistant must alternate') }}"))
    with pytest.raises(InputError, match=r"chat template refuses.*must alternate"):
        next(ChatModel(refusing).answer(HELLO, ChatSettings()))
    with pytest.raises(InputError, match="no chat template"):
        ChatModel(load_pair(*make_chat_pair(tmp_path / "b", None)))


def luminance(colour: Colour) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    linear = [(c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("shades", [ON_LIGHT, ON_DARK])
def test_text_on_every_shade_can_be_read(shades: object) -> None:
    for depth in range(1, DEEPEST + 1):
        dark, light = sorted((luminance(shades.at(depth)), luminance(shades.ink)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5
    assert len({shades.at(depth) for depth in range(1, DEEPEST + 1)}) == DEEPEST
    assert shades.at(DEEPEST + 5) == shades.at(DEEPEST)


def test_terminals_of_256_colours_show_shades_that_can_be_read() -> None:
    levels = (0, 95, 135, 175, 215, 255)
    for code in ANSI_256:
        colour = tuple(levels[(code - 16) // base % 6] for base in (36, 6, 1))
        assert 1.05 / (luminance(colour) + 0.05) >= 4.5
    assert len({ansi(depth, truecolour=False) for depth in range(1, 9)}) == len(ANSI_256)
