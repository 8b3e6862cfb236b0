"""One set of weights, two attentions: a bidirectional view of a causal LM that leaves the causal one untouched.

Passing ``is_causal=False`` to a forward, or setting it on the shared config, would change what a generating thread
sees in the same moment. So the view is a copy of the module tree that shares every layer and every parameter but owns
its config. Not every architecture listens to that flag; `GritModel` probes it and falls back to an explicit mask.

Shape letters: `B` batch, `T` tokens, `D` hidden.
"""

import copy

import torch
from torch import nn
from transformers import Cache, PreTrainedModel

from gritrag.model.cache_names import given_cache


def decoder_stack(lm: PreTrainedModel) -> PreTrainedModel:
    """The transformer without its LM head: the thing whose output is hidden states.

    Some models keep it under another name than they say (Llama 4, Mllama): there it is the only model inside.
    """
    inside = [module for module in lm.children() if isinstance(module, PreTrainedModel)]
    return getattr(lm, lm.base_model_prefix, inside[0] if len(inside) == 1 else lm)


def bidirectional_view(decoder: PreTrainedModel) -> PreTrainedModel:
    """The same layers under a config of its own that says ``is_causal=False``.

    Nested models (the decoder inside OPT, the language model inside a vision model) are viewed likewise, since it is
    they who build the mask. Adapters put into the layers later are seen, for the layers are shared.
    """
    view = copy.copy(decoder)
    view.config = copy.deepcopy(decoder.config)
    view.config.is_causal = view.config.get_text_config().is_causal = False
    nested = {name: bidirectional_view(m) for name, m in decoder._modules.items() if isinstance(m, PreTrainedModel)}
    view._modules = {**decoder._modules, **nested}
    return view


class Attention(nn.Module):
    """Runs a decoder over right-padded prompts with one of three attentions.

    Args:
        decoder: the causal stack, shared and never changed.
        kind: ``"causal"``; ``"view"`` (bidirectional through a view); ``"mask"`` (bidirectional through an explicit
            4D mask, for architectures that ignore the view; it would erase sliding windows, so never the first choice).
    """

    def __init__(self, decoder: PreTrainedModel, kind: str) -> None:
        super().__init__()
        assert kind in ("causal", "view", "mask"), kind
        self.kind = kind
        # in a tuple, so that the weights are not registered twice
        self._decoder = (bidirectional_view(decoder) if kind == "view" else decoder,)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        cache: Cache | None = None,
        start: int = 0,
        embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Last hidden states.

        Args:
            input_ids: `[B, T]`, padded on the right.
            attention_mask: bool `[B, T]`.
            cache: filled with keys and values where given.
            start: position of the first token.
            embeddings: `[B, T, D]`, read instead of those of `input_ids`.

        Returns:
            `[B, T, D]`; rows behind the padding hold nothing of meaning.
        """
        width = input_ids.shape[1]
        positions = torch.arange(start, start + width, device=input_ids.device)[None]
        mask: torch.Tensor | None = attention_mask
        if self.kind == "causal":
            mask = None  # tokens on the right of a causal token cannot reach it, and no mask takes the fast kernel
        elif self.kind == "mask":
            mask = attention_mask[:, None, None, :].expand(-1, 1, width, -1)
        elif bool(attention_mask.all()):
            mask = None
        output = self._decoder[0](
            input_ids=input_ids if embeddings is None else None,
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions.expand(input_ids.shape[0], -1),
            **given_cache(self._decoder[0], cache),
            use_cache=cache is not None,
        )
        return output.last_hidden_state
