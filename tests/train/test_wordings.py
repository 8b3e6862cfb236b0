"""Chats over documents: training lays them out as `ChatGritRAG` does it when it is asked."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage

from gritrag import Document, GritModel, Index
from gritrag.langchain import ChatGritRAG, GritRetriever, docs_to_messages, to_langchain
from gritrag.model.context import Context
from gritrag.model.sampling import Sampling
from gritrag.train.config import TrainConfig
from gritrag.train.contexts import Contexts, _context
from gritrag.train.data.collate import Collator
from gritrag.train.data.mixture import Mixture
from gritrag.train.data.steps import Prompted, RetrievalStep
from gritrag.train.data.wordings import WORDINGS, Wording

Recipe = Callable[..., TrainConfig]
QUESTION = "Which village has a {mill} of <|im_end|> red stone?"
DOCUMENTS = [
    Document("In 1802 the village of Osk built a mill.", id="a", title="Mills"),
    Document("The ferry to Hame carries ninety people.", id="b"),
    Document("Gulls nest on the customs house of Varn, and only there.", id="c", title="Gulls of the north"),
]
ORDER = (2, 0, 1)


def asked(wording: Wording, documents: list[Document]) -> tuple[list[BaseMessage], list[Document]]:
    """The messages as a chain writes them, text in text, and what stands before them."""
    shown = [
        wording.passage.replace("{n}", str(number)).replace("{passage}", document.text)
        for number, document in enumerate(documents, start=1)
    ]
    slots = {"documents": wording.separator.join(shown), "not_found": "not in the documents"}
    messages: list[BaseMessage] = []
    for role, form in wording.messages:
        for name, filler in slots.items():
            form = form.replace(f"{{{name}}}", filler)
        kind = SystemMessage if role == "system" else HumanMessage
        messages.append(kind(form.replace("{question}", QUESTION)))
    return messages, documents if wording.has_documents_first else []


def layout(context: Context) -> tuple[object, ...]:
    """What is read and what is placed, where, and how it counts."""
    placed = [(p.state.token_ids.tolist(), p.position, round(p.relevance_bias, 4)) for p in context.states]
    return context.token_ids, context.fresh_ids, context.fresh_positions, placed, context.end


@pytest.fixture
def chat(tmp_path: Path, tiny_model: GritModel) -> ChatGritRAG:
    with Index.create(tmp_path / "index", model=tiny_model, states="float32") as index:
        index.add(DOCUMENTS)
        GritRetriever(index=index, k=3).invoke("a search that returns them all")
        yield ChatGritRAG(index=index)


@pytest.mark.parametrize("wording", WORDINGS, ids=str)
@pytest.mark.parametrize("relevance_bias", [0.0, 8.0])
def test_a_chat_has_the_tokens_and_the_layout_of_an_answer(
    wording: Wording, relevance_bias: float, chat: ChatGritRAG, recipe: Recipe
) -> None:
    messages, beside = asked(wording, [DOCUMENTS[row] for row in ORDER])
    answered = chat.plan(messages, beside, relevance_bias=relevance_bias).context
    assert len(answered.states) == len(ORDER), "every document is recognised"
    assert bool(answered.states[0].relevance_bias or answered.states[1].relevance_bias) == bool(relevance_bias)

    collator = Collator(chat.model, recipe())
    trained = collator.in_chat(wording, QUESTION, "Osk", ORDER)
    if relevance_bias:
        biases = tuple(placed.relevance_bias for placed in answered.states)
        trained = Prompted(
            trained.question_ids, trained.answer_ids, ORDER, 0, biases, (True,) * len(ORDER), trained.before_ids
        )
    states = [reading.state for reading in chat.model.read_documents(DOCUMENTS)]
    context = _context(states, trained)
    assert trained.answer_ids == [*chat.model.prompts.encoder.content_ids("Osk"), chat.model.tokenizer.eos_token_id]
    answer_ids = trained.answer_ids[:-1]
    whole = Context((*answered.parts, *Context.of(answer_ids).parts))
    assert layout(context) == layout(whole)
    documents = [collator.document(document.content).ids for document in DOCUMENTS]
    read_again = chat.plan(messages, beside, mode="doc-query").context
    assert [*trained.context_ids(documents), *trained.question_ids] == read_again.token_ids


@pytest.mark.parametrize("relevance_bias", [0.0, 8.0])
def test_blocks_are_documents_in_a_message_of_their_own(
    relevance_bias: float, chat: ChatGritRAG, recipe: Recipe
) -> None:
    (wording,) = [each for each in WORDINGS if each.messages == (("user", "{documents}"), ("user", "{question}"))]
    blocks = docs_to_messages([to_langchain(DOCUMENTS[row]) for row in ORDER])
    answered = chat.plan([*blocks, HumanMessage(QUESTION)], relevance_bias=relevance_bias).context
    trained = Collator(chat.model, recipe()).in_chat(wording, QUESTION, "Osk", ORDER)
    documents = [list(chat.model.document_token_ids(document)) for document in DOCUMENTS]
    assert [*trained.context_ids(documents), *trained.question_ids] == answered.token_ids


@torch.no_grad()
def test_training_sees_what_an_answer_is_decoded_from(chat: ChatGritRAG, recipe: Recipe) -> None:
    """The likeliest tokens in training are those that the chat model says."""
    states = [reading.state for reading in chat.model.read_documents(DOCUMENTS)]
    for wording in WORDINGS:
        messages, beside = asked(wording, [DOCUMENTS[row] for row in ORDER])
        decoding = chat.model.decoder.decode([chat.plan(messages, beside, relevance_bias=0).context], Sampling(3))
        assert list(decoding)
        (said,) = decoding.completions
        trained = replace(
            Collator(chat.model, recipe()).in_chat(wording, QUESTION, "x", ORDER), answer_ids=said.token_ids
        )
        logits, _ = Contexts(chat.model).placed(states, [trained])
        assert logits.argmax(-1).tolist() == said.token_ids


def test_the_share_of_chats_is_that_of_the_recipe(tiny_model: GritModel, recipe: Recipe) -> None:
    generative = {
        "p_document_chat": 0.4,
        "p_chat": 0.0,
        "p_full": 0.0,
        "p_relevance_bias": 0.5,
        "p_question_state": 0.5,
    }
    mixture = Mixture(recipe(generative=generative), tiny_model)
    steps = [step for step in map(mixture.step, range(80)) if isinstance(step, RetrievalStep)]
    answers = [answer for step in steps for answer in step.answers]
    chats = [answer for answer in answers if answer.before_ids]
    assert 0.3 < len(chats) / len(answers) < 0.5
    assert {bool(answer.biases) for answer in chats} == {True, False}
    assert all(answer.shares_positions == (True,) * len(answer.biases) for answer in chats)
    assert all(
        row < len(step.documents)
        for step in steps
        for answer in step.answers
        if answer.before_ids
        for row in answer.context
    )
    assert len({answer.before_ids[0] for answer in chats}) > 5, "of many wordings"


def test_a_recipe_without_chats_over_documents_draws_none(tiny_model: GritModel, recipe: Recipe) -> None:
    mixture = Mixture(recipe(), tiny_model)
    steps = [step for step in map(mixture.step, range(20)) if isinstance(step, RetrievalStep)]
    assert not any(answer.before_ids for step in steps for answer in step.answers)


def test_a_model_without_a_chat_template_is_refused(
    tiny_model: GritModel, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_model.tokenizer, "chat_template", None)
    with pytest.raises(ValueError, match=r"no chat template to ask in: generative\.p_document_chat=0"):
        Collator(tiny_model, recipe(generative={"p_document_chat": 0.1}))


def test_no_wording_is_one_that_tells_how_unseen_prompts_fare() -> None:
    root = Path(__file__).parents[2]
    files = [*(root / "examples" / "langchain").glob("*.py"), root / "experiments" / "chain_answers.py"]
    source = "".join(path.read_text("utf-8") for path in files)
    assert "Answer the question from the following context only." in source
    forms = {form for wording in WORDINGS for _, form in wording.messages}
    sentences = {piece.strip() for form in forms for piece in re.split(r"\{\w+\}|\n", form)}
    assert not [sentence for sentence in sentences if len(sentence) > 20 and sentence in source]
