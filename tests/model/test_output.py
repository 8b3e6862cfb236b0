"""What rows are given: which token is chosen, and when a text ends."""

import torch
from transformers import PreTrainedTokenizerFast

from gritrag.model.output import Output
from gritrag.model.sampling import Sampler, Sampling

ROWS, WORDS = 2, 12


def logits(seed: int, positions: int = 1) -> torch.Tensor:
    return torch.randn(ROWS, positions, WORDS, generator=torch.Generator().manual_seed(seed))


def sampler(**options: float | int) -> Sampler:
    return Sampler(Sampling(**options), ROWS, torch.device("cpu"))  # type: ignore[arg-type]


def test_the_likeliest_token_is_chosen_at_each_position() -> None:
    greedy = sampler()
    assert greedy.is_greedy
    assert greedy.choose(logits(0, 3)) == logits(0, 3).argmax(-1).tolist()


def test_a_penalty_counts_what_this_row_was_given_before() -> None:
    penalised = sampler(repetition_penalty=100.0)
    assert not penalised.is_greedy
    first = penalised.choose(logits(0))
    second = penalised.choose(logits(0))
    assert all(one != other for one, other in zip(first, second, strict=True)), (
        "the same logits, and not the same token"
    )


def test_a_seed_draws_the_same_tokens_and_another_one_others() -> None:
    def drawn(seed: int) -> list[list[list[int]]]:
        own = sampler(temperature=2.0, seed=seed)
        return [own.choose(logits(number)) for number in range(8)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_an_output_ends_by_its_token_by_its_string_or_by_its_length(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.encode("owls and hens", add_special_tokens=False)

    def written(stop: tuple[str, ...], ends: set[int]) -> tuple[Output, str]:
        output, pieces = Output(tokenizer, stop, ends), ""
        for token in ids:
            pieces += output.push(token)
            if output.finish_reason is not None:
                break
        return output, pieces + output.end()

    whole, said = written((), set())
    assert (whole.text, said, whole.finish_reason, whole.token_ids) == ("owls and hens",) * 2 + ("length", ids)
    stopped, said = written((" and",), set())
    assert (stopped.text, said, stopped.finish_reason) == ("owls", "owls", "stop")
    ended, said = written((), {ids[4]})
    assert (ended.text, said, ended.finish_reason, ended.token_ids) == ("owls", "owls", "stop", ids[:5])
    held, said = written((" hens!",), set())
    assert (held.text, said, held.finish_reason) == ("owls and hens",) * 2 + ("length",)
