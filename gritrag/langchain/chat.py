"""A chat model that answers from the states of the documents in its prompt."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NoReturn

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.documents import Document as LangChainDocument
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, Field, model_validator

from gritrag.config import DEFAULT_MODEL, RELEVANCE_BIAS
from gritrag.index.index import Index
from gritrag.langchain.indexes import OpenIndex, opened
from gritrag.langchain.models import HoldsModel, Model, model_name
from gritrag.langchain.prompt import read_prompt
from gritrag.langchain.reuse import Reuse, plan_reuse
from gritrag.model.decode import Completion
from gritrag.model.sampling import Sampling
from gritrag.records import Document
from gritrag.relevance import check_relevance_bias

__all__ = ["ChatGritRAG"]

Mode = Literal["doc-cache", "doc-query"]

SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
OF_REMOTE_MODELS = {"timeout", "max_retries", "api_key", "base_url"}
"""Standard parameters of chat models that mean nothing here; they are taken, so that one model can replace another."""


class ChatGritRAG(HoldsModel, BaseChatModel):
    """A GritModel as a LangChain chat model. Given an index, it reuses the states of that index's documents.

    A document is known by its text, in any of three ways: quoted anywhere in a message after a `GritRetriever` or
    `GritVectorStore` of the same index has returned it, so that chains need no change; in a
    ``text-plain`` block (`docs_to_messages`); or in the call's ``documents=``, strings too, which stand before the
    messages. It stands there as it was indexed, in the model's document template.
    ``usage_metadata["input_token_details"]`` counts under ``cache_read`` the tokens whose state was there, under
    ``cache_creation`` those of documents that lost theirs.

    All but `model` and `index` can be given per call too: ``chat.invoke(messages, mode="doc-query", max_tokens=8)``.
    Async methods run in threads.

    Args:
        model: a `GritModel` or the name of one; by default that of the index, else the default checkpoint.
        index: whose documents are to be recognised, of the same model: an open one, or the path of one.
        mode: ``"doc-cache"`` answers from states; ``"doc-query"`` reads the same tokens again, for comparison.
        relevance_bias: of states, by the score of the search whose query the last message quotes, else by the
            similarity of their vectors to that message; documents side by side share positions then. See `RAG`. 0 for
            none.
        temperature, top_k, top_p, repetition_penalty, seed: see `Sampling`.
        max_tokens: at most so many new tokens.
        stop: the answer ends before the first of these strings.
        streaming: whether `invoke` streams to callbacks too.

    Raises:
        ValueError: an index of another model, an unknown argument, or a sampling value out of its range.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: Model = Field(repr=False)
    index: OpenIndex | None = Field(None, repr=False)
    mode: Mode = "doc-cache"
    relevance_bias: float = RELEVANCE_BIAS
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int = 256
    stop: Sequence[str] | str | None = None
    streaming: bool = False

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, fields: dict[str, Any]) -> dict[str, Any]:
        fields = {name: value for name, value in fields.items() if name not in OF_REMOTE_MODELS}
        if fields.get("model") is None:
            fields["index"] = opened(fields.get("index"))
            fields["model"] = fields["index"].model if isinstance(fields["index"], Index) else DEFAULT_MODEL
        return fields

    def model_post_init(self, context: Any) -> None:
        """Refuse what could not answer: an index of another model, a sampling value out of its range."""
        super().model_post_init(context)
        if self.index is not None:
            self.index.model.fingerprint.check(self.model.fingerprint, f"the index at {self.index.path}")
        check_relevance_bias(self.relevance_bias)
        self._sampling(None, {})

    # --- generation -------------------------------------------------------------------------------------------------

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, **kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        documents = kwargs.pop("documents", None) or ()
        mode, relevance_bias = kwargs.pop("mode", None), kwargs.pop("relevance_bias", None)
        sampling = self._sampling(stop, kwargs)
        reuse = self.plan(messages, documents=documents, mode=mode, relevance_bias=relevance_bias)
        decoding = self.model.decoder.decode([reuse.context], sampling)
        for (piece,) in decoding:
            if piece:
                yield self._told(ChatGenerationChunk(message=AIMessageChunk(content=piece)), run_manager)
        yield self._told(ChatGenerationChunk(message=self._last(reuse, decoding.completions[0])), run_manager)

    def plan(
        self,
        messages: Sequence[BaseMessage],
        documents: Iterable[LangChainDocument | Document | str] = (),
        mode: Mode | None = None,
        relevance_bias: float | None = None,
    ) -> Reuse:
        """The context of an answer, before it is given: states and tokens, in order.

        Raises:
            ValueError: an unknown mode, a negative bias, or messages or documents that this model cannot read.
        """
        mode = self.mode if mode is None else mode
        bias = self.relevance_bias if relevance_bias is None else relevance_bias
        check_relevance_bias(bias)
        if mode not in ("doc-cache", "doc-query"):
            raise ValueError(f"no mode {mode!r}; there are: doc-cache, doc-query")
        prompt = read_prompt(self.model, messages, documents, self.index)
        return plan_reuse(self.model, self.index, prompt, mode == "doc-cache", bias)

    def _sampling(self, stop: list[str] | None, options: dict[str, Any]) -> Sampling:
        """Of one call: its own options, but those that are None, before those of the constructor.

        Raises:
            ValueError: an option that there is not, or a value out of its range.
        """
        own = {name: getattr(self, name) for name in SAMPLING}
        options = {name: value for name, value in options.items() if value is not None or name == "seed"}
        given = {name: value for name, value in options.items() if name not in ("stream", "max_tokens")}
        given.setdefault("max_new_tokens", options.get("max_tokens", self.max_tokens))
        return Sampling.of({**own, "stop": self.stop if stop is None else stop, **given})

    def _last(self, reuse: Reuse, completion: Completion) -> AIMessageChunk:
        """What ends a stream: no text, but the bill."""
        read, written = len(reuse.context), len(completion.token_ids)
        details = InputTokenDetails(cache_read=reuse.loaded, cache_creation=reuse.computed)
        return AIMessageChunk(
            content="",
            chunk_position="last",
            usage_metadata=UsageMetadata(
                input_tokens=read, output_tokens=written, total_tokens=read + written, input_token_details=details
            ),
            response_metadata={"model_name": model_name(self.model), "finish_reason": completion.finish_reason},
        )

    @staticmethod
    def _told(chunk: ChatGenerationChunk, run_manager: CallbackManagerForLLMRun | None) -> ChatGenerationChunk:
        if run_manager is not None:
            run_manager.on_llm_new_token(chunk.text, chunk=chunk)
        return chunk

    # --- tools ------------------------------------------------------------------------------------------------------

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any) -> NoReturn:
        """Refused, and so is `with_structured_output`, which needs it.

        Raises:
            NotImplementedError: always, as LangChain's base class does, but with a remedy.
        """
        raise NotImplementedError(
            "ChatGritRAG calls no tools and writes plain text. For answers from documents it needs none: put them into "
            "the prompt, or use GritRAGChain. For an agent take a chat model that calls tools, and give it "
            "GritRetriever(index=...).as_tool(...) as one of them"
        )

    # --- tokens -----------------------------------------------------------------------------------------------------

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of a text as content; special tokens in it are text."""
        return self.model.prompts.encoder.content_ids(text, strip=False)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Tokens of a whole prompt, as its usage will give them: with the chat template's, documents as indexed.

        Raises:
            ValueError: `tools`: this model calls none.
        """
        if tools:
            raise ValueError("this model calls no tools, so it cannot count their tokens")
        return len(self.plan(messages, mode="doc-query").context)

    # --- identity ---------------------------------------------------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "gritrag"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """All that an answer depends on, for traces and caches of answers: a change of the documents too."""
        index = {} if self.index is None else {"index": str(self.index.path), "index_digest": self.index.digest}
        names = (
            "mode",
            "relevance_bias",
            "temperature",
            "top_k",
            "top_p",
            "repetition_penalty",
            "seed",
            "max_tokens",
            "stop",
        )
        return {
            "model_name": model_name(self.model),
            "fingerprint": self.model.fingerprint.digest,
            **index,
            **{name: getattr(self, name) for name in names},
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        strings = self.stop if stop is None else stop
        params = LangSmithParams(
            ls_provider="gritrag",
            ls_model_name=kwargs.get("model") or model_name(self.model),
            ls_model_type="chat",
            ls_temperature=kwargs.get("temperature", self.temperature),
            ls_max_tokens=kwargs.get("max_tokens", self.max_tokens),
        )
        if strings:
            params["ls_stop"] = [strings] if isinstance(strings, str) else list(strings)
        return params
