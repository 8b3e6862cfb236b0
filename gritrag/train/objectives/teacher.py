"""An encoder whose similarities of texts the model in training learns too, beside what the data say.

Shape letters: `N` texts, `E` length of the teacher's vectors.
"""

from collections.abc import Sequence
from functools import cached_property

import torch

from gritrag.model.encoders import Encoder, check_names, load_encoder
from gritrag.model.grit import GritModel
from gritrag.tokens import TokenIds


class Teacher:
    """Embeds the texts of a step; it is loaded when it first does.

    Args:
        name: ``minilm``, or as `GritModel.from_pretrained` takes it.
        model: in training; its tokens are turned into text again.

    Raises:
        ValueError: there is no encoder of that name.
    """

    def __init__(self, name: str, model: GritModel) -> None:
        check_names([name])
        self.name, self._model = name, model

    @cached_property
    def _encoder(self) -> Encoder:
        # in float32 everywhere: in fewer bits what is taught of a text depends on those it is read with
        return load_encoder(self.name, dtype="float32", device=str(self._model.lm.device))

    def documents(self, prompts: Sequence[TokenIds]) -> torch.Tensor:
        """float32 `[N, E]`, L2-normalised, without gradients."""
        texts = [self._text(prompt) for prompt in prompts]
        return torch.from_numpy(self._encoder.encode_document(texts)).to(self._model.lm.device)

    def queries(self, prompts: Sequence[TokenIds]) -> torch.Tensor:
        """The same of queries, their instructions left out."""
        texts = [self._text(prompt) for prompt in prompts]
        return torch.from_numpy(self._encoder.encode_query(texts)).to(self._model.lm.device)

    def _text(self, prompt: TokenIds) -> str:
        """The content of a prompt, without what it is dressed in."""
        content = [token for token, is_content in zip(prompt.ids, prompt.is_pooled, strict=True) if is_content]
        return str(self._model.tokenizer.decode(content))
