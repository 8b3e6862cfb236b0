"""Generator: a causal LM that goes on from text, from chats and from placed states.

Shape letters: `B` batch, `T` tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gritrag.model.context import Context, place
from gritrag.model.decode import Completion, Decoding, Sampling
from gritrag.model.probes import Probe, Probed
from gritrag.model.rotation import Rotation
from gritrag.model.state import CacheShape, PlacedCache
from gritrag.model.step import ModuleForward, Step
from gritrag.prompts import Message, chat_segments
from gritrag.tokens import Encoder

Prompt = str | Sequence[Message]
"""Raw text to go on from, or a chat."""


class Generator:
    """A causal LM with its tokenizer and what the probes found out about it.

    Args:
        lm: a causal LM in eval mode on its device.
        tokenizer: its tokenizer.
        probed: what `probe(lm)` returned.
    """

    def __init__(self, lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, probed: Probed) -> None:
        self.lm, self.tokenizer = lm, tokenizer
        self.encoder = Encoder(tokenizer)
        self.probes: tuple[Probe, ...] = probed.probes
        self.rotation: Rotation | None = probed.rotation
        self._shape = probed.shape
        self._step = probed.step
        self._module_forward = ModuleForward(lm)

    @property
    def max_tokens(self) -> int:
        """Longest context, in tokens."""
        return int(getattr(self.lm.config.get_text_config(), "max_position_embeddings", 1 << 20))

    @property
    def has_window(self) -> bool:
        """Whether some layer sees only the latest tokens."""
        config = self.lm.config.get_text_config()
        layer_types = getattr(config, "layer_types", None) or []
        return "sliding_attention" in layer_types or (not layer_types and bool(getattr(config, "sliding_window", None)))

    @property
    def step(self) -> Step | None:
        """Our own forward; None where only that of transformers will do."""
        return self._step if self._step is not None and self._step.is_current else None

    @property
    def weights(self) -> str:
        """In which precision weights are, and how products of few rows read them."""
        name = str(self.lm.dtype).removeprefix("torch.")
        return f"{name}, of half precision: packed" if self.step is not None and self.step.packed else name

    @property
    def has_states(self) -> bool:
        """Whether documents of this model have states at all (state-space models have none)."""
        return self._shape is not None

    @property
    def shape(self) -> CacheShape:
        """Of its caches.

        Raises:
            ValueError: its states cannot be used.
        """
        if self._shape is None:
            raise ValueError(f"this model has no states to reuse: {self.probes[2].detail}")
        return self._shape

    def generate(self, prompt: Prompt | Sequence[Prompt], **sampling: Any) -> Any:
        """Text for one prompt, or a list of texts for a list of prompts.

        Args:
            prompt: raw text, or a chat (a list of messages), or a list of either.
            **sampling: fields of `Sampling`: max_new_tokens, temperature, top_k, top_p, repetition_penalty, stop, seed,
                lookup.

        Raises:
            ValueError: empty or too long prompt, broken message, sampling value out of range.
        """
        prompts, is_many = _prompts(prompt)
        if not prompts:
            return []
        completions = self.complete([self.prompt_ids(p) for p in prompts], Sampling.of(sampling))
        return [completion.text for completion in completions] if is_many else completions[0].text

    def stream(self, prompt: Prompt, **sampling: Any) -> Iterator[str]:
        """Pieces of text as they become certain; together they are what `generate` returns."""
        for pieces in self.decode([Context.of(self.prompt_ids(prompt))], Sampling.of(sampling)):
            if pieces[0]:
                yield pieces[0]

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of raw text (with the tokens that the tokenizer puts first) or of a chat ready to be answered."""
        if isinstance(prompt, str):
            ids = self.tokenizer("").input_ids[:1] + self.encoder.content_ids(prompt, strip=False)
        else:
            ids = self.encoder.encode(chat_segments(prompt, self._render)).ids
        if not ids:
            raise ValueError("the prompt is empty; give it at least one word")
        return ids

    def _render(self, messages: list[Message]) -> str:
        if not self.tokenizer.chat_template:
            raise ValueError("this model has no chat template; give raw text, or load an instruction-tuned model")
        chat = [dict(message) for message in messages]
        return str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))

    def complete(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        """Completions of prompts given as token ids, in one batch."""
        decoding = self.decode([Context.of(prompt) for prompt in prompts], sampling)
        for _ in decoding:
            pass
        return decoding.completions

    @property
    def takes_biases(self) -> bool:
        """Whether states can be weighed against each other: all of them can be reused, wherever they stand."""
        return self.rotation is not None and not self.has_window

    def usable(self, context: Context) -> Context:
        """The same tokens, with those states that this model can reuse where they stand; the others are read again.

        Keys that cannot be moved are of use only where they were read, at the start of a context. A model with sliding
        windows counts columns, so its states must stand before all that is read now. Neither has biases: where most
        documents are read again they would be unjust, and the mask that carries them would undo windows. Nor do their
        states stand abreast.
        """
        if self.takes_biases:
            return context
        is_state = [part.state is not None for part in context.parts]
        leading = is_state.index(False) if False in is_state else len(is_state)
        kept = min(leading, 1) if self.rotation is None else leading
        return context.read_again([number < kept for number in range(len(is_state))])

    def decode(self, contexts: Sequence[Context], sampling: Sampling) -> Decoding:
        """Place the states of each context, read what remains, and go on; see `Decoding`."""
        contexts = [self.usable(context) for context in contexts]
        return self.decode_placed(self.place(contexts, sampling), contexts, sampling)

    def place(self, contexts: Sequence[Context], sampling: Sampling) -> PlacedCache:
        """The states of `usable` contexts where they stand, with room for the rest and for new tokens.

        Raises:
            ValueError: a context and its answer together are longer than the model can take.
        """
        needed = max(map(len, contexts)) + sampling.max_new_tokens
        if needed > self.max_tokens:
            raise ValueError(
                f"the context needs {needed} tokens, this model takes {self.max_tokens}; "
                "use fewer or shorter documents, a shorter prompt or fewer max_new_tokens"
            )
        room = max(len(context) - context.cached_tokens for context in contexts) + sampling.max_new_tokens
        with torch.inference_mode():
            return place(contexts, self.shape, self.rotation, room)

    def decode_placed(self, cache: PlacedCache, contexts: Sequence[Context], sampling: Sampling) -> Decoding:
        """Read the rest of contexts whose states `place` has placed, and go on."""
        forward = self.step or self._module_forward
        return Decoding(forward, self.lm, self.tokenizer, cache, contexts, sampling)


def _prompts(prompt: Prompt | Sequence[Prompt]) -> tuple[list[Prompt], bool]:
    """One string or one chat (a list of messages) is one prompt; a list of either is many."""
    if isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], Mapping)):
        return [cast(Prompt, prompt)], False
    return list(cast(Sequence[Prompt], prompt)), True
