import random

import pytest

from eagle.errors import InputError
from eagle.train.answers import Answer
from eagle.train.batches import Document, batch_of, pack, plan, split
from tests.train.fitting import some_answers


def test_a_batch_knows_where_drafting_starts_and_which_tokens_it_predicts() -> None:
    documents = [Document([5, 6, 7, 8, 9], start=3), Document([1, 2, 3], start=2)]
    batch = batch_of(documents)
    assert batch.tokens.tolist() == [5, 6, 7, 8, 9, 1, 2, 3]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert batch.tokens[batch.rows + 2].tolist() == [8, 9, 3]
    assert batch.tokens[batch.ends].tolist() == [9, 9, 3]
    assert batch.bounds == ((0, 5), (5, 8))
    assert [document.rows_at(1) for document in documents] == [1, 0]


def test_every_document_is_in_one_batch_and_no_batch_is_too_long() -> None:
    source = random.Random(1)  # noqa: S311
    documents = [Document([0] * source.randint(3, 60), 2) for _ in range(300)]
    packed = pack(documents, 64, random.Random(7))  # noqa: S311
    assert sorted(index for members in packed for index in members) == list(range(300))
    lengths = [sum(len(documents[index].tokens) for index in members) for members in packed]
    assert max(lengths) <= 64
    assert sum(lengths) > 0.85 * 64 * len(packed)
    assert packed == pack(documents, 64, random.Random(7))  # noqa: S311
    assert packed != pack(documents, 64, random.Random(8))  # noqa: S311


def test_a_plan_is_decided_by_the_seed_and_every_epoch_has_another_order() -> None:
    documents = [Document([0] * (10 + index % 7), 2) for index in range(100)]
    steps = plan(documents, 64, group=2, epochs=2, seed=3)
    assert all(len(step) == 2 for step in steps)
    assert steps == plan(documents, 64, group=2, epochs=2, seed=3)
    assert steps != plan(documents, 64, group=2, epochs=2, seed=4)
    half = len(plan(documents, 64, group=2, epochs=1, seed=3))
    assert steps[:half] != steps[half:]
    with pytest.raises(InputError, match="fewer than the 1000 of one optimizer step"):
        plan(documents, 64, group=1000, epochs=1, seed=3)


def test_all_answers_to_a_prompt_are_on_one_side_of_the_split() -> None:
    answers = some_answers(200)
    again = [Answer(f"{answer.key}x", answer.prompt, [1, 2, 3], 0.0, True) for answer in answers]
    training, held_out = split([*answers, *again], max_length=64, share=0.2)
    prompts = [{tuple(document.tokens[: document.start]) for document in side} for side in (training, held_out)]
    assert len(training) + len(held_out) == 400
    assert 20 < len(held_out) < 160
    longer = [{prompt for prompt in side if len(prompt) > 2} for side in prompts]
    assert not longer[0] & longer[1]
    grown, _ = split([*answers, *again, *some_answers(50, seed=9)], max_length=64, share=0.2)
    assert all(document in grown for document in training)


def test_documents_are_cut_and_those_without_anything_to_predict_are_left_out() -> None:
    answers = [Answer(str(n), [n, 1, 2, 3], [4, 5, 6], 1.0, True) for n in range(10)]
    long = Answer("long", [9] * 6, [1], 1.0, True)
    training, held_out = split([*answers, long], max_length=5, share=0.0)
    assert {len(document.tokens) for document in training + held_out} == {5}
    assert len(held_out) == 4
    with pytest.raises(InputError, match="none of the 1 answers has a token to predict within max_length=5"):
        split([long], max_length=5, share=0.1)
    with pytest.raises(InputError, match="1 prompts with answers cannot be split"):
        split(answers[:1], max_length=5, share=0.1)
