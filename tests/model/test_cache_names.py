"""Forwards of transformers take a cache by one of two names, and some let an argument by another vanish."""

import pytest
import torch
from architectures import make_lm
from torch import nn
from transformers import DynamicCache

from gritrag.model.cache_names import cache_name, given_cache


class TakesCache(nn.Module):
    """As forwards of transformers from 5.24 on."""

    def forward(self, input_ids: torch.Tensor, cache: object = None, **kwargs: object) -> object:
        return cache


class TakesPastKeyValues(nn.Module):
    """As before, and as models whose code comes with their weights."""

    def forward(self, input_ids: torch.Tensor, past_key_values: object = None, **kwargs: object) -> object:
        return past_key_values


class TakesBoth(nn.Module):
    """The old name may be there for a while; the new one counts."""

    def forward(self, input_ids: torch.Tensor, past_key_values: object = None, cache: object = None) -> object:
        return cache


class HandsOn(nn.Module):
    """A wrapper of transformers, as that around the decoder of BART."""

    def forward(self, *args: object, **kwargs: object) -> object:
        (cache,) = kwargs.values()
        assert tuple(kwargs) == (cache_name(make_lm("llama")),), "the name of this release"
        return cache


@pytest.mark.parametrize("module", [TakesCache(), TakesPastKeyValues(), TakesBoth(), HandsOn()])
def test_a_cache_reaches_the_forward_whatever_it_is_called_there(module: nn.Module) -> None:
    cache = DynamicCache()
    assert module(torch.zeros(1, 1), **given_cache(module, cache)) is cache


def test_no_name_is_used_that_this_release_calls_deprecated(recwarn: pytest.WarningsRecorder) -> None:
    lm, cache = make_lm("llama"), DynamicCache()
    ids = torch.tensor([[3, 4, 5]])
    with torch.inference_mode():
        lm(input_ids=ids, use_cache=True, **given_cache(lm, cache))
        lm.generate(ids, max_new_tokens=1, do_sample=False, **given_cache(lm, DynamicCache()))
    assert cache.get_seq_length() == 3
    assert not [each for each in recwarn if "deprecated" in str(each.message)]
