"""Which requests are refused, and when a sequence ends."""

import pytest

from engine.fakes import VOCAB, request, tiny_plan
from ossia.engine.request import FinishReason, SamplingParams
from ossia.engine.sequence import Sequence
from ossia.errors import RequestError


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers():
    with pytest.raises(RequestError, match=r"prompt has 345 tokens; the context holds 200\b"):
        Sequence.of(request("a", [1] * 345), tiny_plan())


def test_a_prompt_that_leaves_no_room_for_a_token_is_refused():
    with pytest.raises(RequestError, match="200 tokens"):
        Sequence.of(request("a", [1] * 200), tiny_plan())
    assert Sequence.of(request("a", [1] * 199), tiny_plan()).max_length == 200


def test_a_context_shortened_by_the_cache_says_so():
    plan = tiny_plan(cache_tokens=80)
    with pytest.raises(RequestError, match=r"context holds 80\b.*model itself allows 200\b"):
        Sequence.of(request("a", [1] * 100), plan)


def test_an_empty_prompt_is_refused():
    with pytest.raises(RequestError, match="empty prompt"):
        Sequence.of(request("a", []), tiny_plan())


@pytest.mark.parametrize("bad", [-1, VOCAB, 2**40, 1.0, "1", True, None])
def test_what_is_no_token_id_is_refused(bad: object):
    cases = {
        "prompt_ids": request("a", [1, bad]),  # type: ignore[list-item]
        "stop_token_ids": request("a", [1], stop_token_ids=(bad,)),
        "logit_bias": request("a", [1], logit_bias={bad: 1.0}),
    }
    for name, case in cases.items():
        with pytest.raises(RequestError, match=f"{name} must hold .* got {bad!r}"):
            Sequence.of(case, tiny_plan())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_k", -1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 101.0),
        ("frequency_penalty", float("-inf")),
        ("seed", 2**64),
        ("max_tokens", 0),
        ("top_logprobs", 21),
        ("top_logprobs", 1),
    ],
)
def test_sampling_parameters_out_of_range(field: str, value: float):
    with pytest.raises(RequestError, match=field):
        SamplingParams(**{field: value})  # type: ignore[arg-type]


def test_seeds_are_drawn_once_per_request_unless_given():
    plan = tiny_plan()
    drawn = {Sequence.of(request("a", [1]), plan).seed for _ in range(20)}
    assert len(drawn) == 20
    assert all(0 <= seed < 2**64 for seed in drawn)
    assert Sequence.of(request("a", [1], seed=0), plan).seed == 0


def test_tokens_across_the_end_of_the_prompt():
    sequence = Sequence.of(request("a", [1, 2, 3]), tiny_plan())
    for token in (4, 5, 6):
        sequence.append(token)
    whole = [1, 2, 3, 4, 5, 6]
    for start in range(7):
        for end in range(start, 7):
            assert sequence.token_ids(start, end) == whole[start:end]


def test_the_stop_token_ends_before_the_length_does():
    sequence = Sequence.of(request("a", [1], max_tokens=2, stop_token_ids=(9,)), tiny_plan())
    sequence.append(8)
    assert sequence.finish_reason is None
    sequence.append(9)
    assert sequence.finish_reason is FinishReason.STOP
    assert sequence.output_ids == [8, 9]


def test_the_length_is_that_of_max_tokens_or_of_the_context():
    plan = tiny_plan()
    assert Sequence.of(request("a", [1] * 10, max_tokens=5), plan).max_length == 15
    assert Sequence.of(request("a", [1] * 10), plan).max_length == 200
    capped = Sequence.of(request("a", [1] * 10, max_tokens=191), plan)
    assert capped.max_length == 200
    assert capped.capped_by_context
    assert not Sequence.of(request("a", [1] * 10, max_tokens=190), plan).capped_by_context
