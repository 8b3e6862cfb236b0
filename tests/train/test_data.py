"""Steps: the same for the same seed, of the right size, and true to their rows."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from architectures import make_lm, make_tokenizer

from gritrag.config import CheckpointConfig
from gritrag.model.grit import GritModel
from gritrag.train.config import TrainConfig
from gritrag.train.data.collate import Collator
from gritrag.train.data.mixture import Mixture
from gritrag.train.data.rows import Chat, Passage, Question
from gritrag.train.data.steps import ChatStep, RetrievalStep
from gritrag.train.data.wordings import WORDINGS

Recipe = Callable[..., TrainConfig]
Write = Callable[[Path, list[dict[str, Any]]], Path]

ONLY_QUESTIONS = {"p_chat": 0.0, "p_full": 0.0}


def text(model: GritModel, ids: list[int]) -> str:
    return model.tokenizer.decode(ids)


def test_a_step_depends_on_its_number_and_the_seed_only(tiny_model: GritModel, recipe: Recipe) -> None:
    config = recipe(generative={"p_chat": 0.3, "p_full": 0.3})
    forward, backward = Mixture(config, tiny_model), Mixture(config, tiny_model)
    steps = [forward.step(number) for number in range(12)]
    assert [backward.step(number) for number in reversed(range(12))] == steps[::-1]
    assert {type(step) for step in steps} == {RetrievalStep, ChatStep}
    other = Mixture(recipe(seed=1), tiny_model)
    assert [other.step(number) for number in range(12)] != steps


@pytest.mark.parametrize(
    ("generative", "has_chats"), [({"weight": 0}, False), ({"contexts": "none"}, True), ({}, True)]
)
def test_what_is_switched_off_takes_no_steps(
    tiny_model: GritModel, recipe: Recipe, generative: dict[str, Any], has_chats: bool
) -> None:
    """A step of answers alone would train nothing without their loss."""
    mixture = Mixture(recipe(generative={"p_chat": 0.3, "p_full": 0.5, **generative}), tiny_model)
    steps = [mixture.step(number) for number in range(40)]
    assert any(isinstance(step, ChatStep) for step in steps) == has_chats
    assert any(isinstance(step, RetrievalStep) and step.is_full for step in steps) == (not generative)


def test_every_passage_comes_once_in_an_epoch(tiny_model: GritModel, recipe: Recipe, data_dir: Path) -> None:
    mixture = Mixture(recipe(generative=ONLY_QUESTIONS, data={"p_title": 0}), tiny_model)
    source = mixture.sources[0]
    seen: Counter[int] = Counter()
    number = 0
    while sum(seen.values()) < 3 * len(source.passages):
        seen.update(row for group in source.batch(number) for row in group)
        number += 1
    assert set(seen.values()) == {3}


def test_a_file_that_is_listed_twice_comes_whole_each_time(tiny_model: GritModel, recipe: Recipe) -> None:
    twice = [{"path": "questions.jsonl"}, {"path": "questions.jsonl", "instruction": "Other"}]
    data = {"sources": twice, "chat": [], "tokens_per_step": 80, "queries_per_document": 1}
    mixture = Mixture(recipe(data=data, generative=ONLY_QUESTIONS), tiny_model)
    read: dict[bool, list[str]] = {False: [], True: []}
    for step in map(mixture.step, range(60)):
        queries = [text(tiny_model, query.ids) for query in step.queries]
        read["Other" in queries[0]] += queries
    rows = len(mixture.sources[0].passages)
    for queries in read.values():
        assert len(queries) >= rows
        assert len(set(queries[:rows])) == rows, "an epoch has each row once"


def test_chats_whose_answers_are_cut_away_are_left_out_and_told(
    tiny_model: GritModel, recipe: Recipe, tmp_path: Path, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    def chat(before: int) -> dict[str, Any]:
        turns = [{"role": "user", "content": "b" * before}, {"role": "assistant", "content": "yes " * 99}]
        return {"messages": turns}

    def mixture(*chats: dict[str, Any]) -> Mixture:
        path = str(write(tmp_path / "chats.jsonl", list(chats)))
        data = {"chat": [{"path": path}], "max_chat_tokens": 300, "tokens_per_step": 900}
        return Mixture(recipe(data=data, generative={"p_chat": 1.0}), tiny_model)

    for step in map(mixture(chat(100), chat(2000)).step, range(3)):
        assert isinstance(step, ChatStep)
        assert [len(ids) for ids in step.ids] == [300]
        assert all(any(targets) for targets in step.is_target)
    assert "1 of 2 chats are left out" in "".join(capsys.readouterr())
    with pytest.raises(ValueError, match=r"in none of its chats an answer begins within data.max_chat_tokens=300"):
        mixture(chat(2000))


def test_processes_share_a_source_and_no_batch(tiny_model: GritModel, recipe: Recipe) -> None:
    config = recipe(generative={"p_chat": 0.3, "p_full": 0.5})
    ranks = [Mixture(config, tiny_model, rank, 2) for rank in range(2)]
    for number in range(8):
        mine, other = (mixture.step(number) for mixture in ranks)
        assert type(mine) is type(other)
        assert mine != other
        if isinstance(mine, RetrievalStep):
            assert mine.is_full == other.is_full


def test_contexts_hold_the_own_document_unless_the_answer_says_it_is_missing(
    tiny_model: GritModel, recipe: Recipe
) -> None:
    config = recipe(generative={**ONLY_QUESTIONS, "p_unanswerable": 0.5, "documents_per_context": (1, 2, 3)})
    mixture, sizes, missing = Mixture(config, tiny_model), set(), []
    for number in range(40):
        step = mixture.step(number)
        documents = [text(tiny_model, document.ids) for document in step.documents]
        for answer in step.answers:
            answer_text = text(tiny_model, answer.answer_ids).removesuffix("<|im_end|>")
            assert len(set(answer.context)) == len(answer.context)
            is_missing = answer_text == "not in the documents"
            assert is_missing != any(answer_text in documents[row] for row in answer.context)
            assert answer.answer_ids[-1] == tiny_model.tokenizer.eos_token_id
            sizes.add(len(answer.context))
            missing.append(is_missing)
    assert sizes == {1, 2, 3}
    assert 0.35 < sum(missing) / len(missing) < 0.65


def test_weighed_contexts_share_positions_and_their_own_document_mostly_has_the_best_score(
    tiny_model: GritModel, recipe: Recipe
) -> None:
    generative = {**ONLY_QUESTIONS, "p_relevance_bias": 0.5, "p_unanswerable": 0.0, "documents_per_context": [1, 3]}
    mixture = Mixture(recipe(generative=generative, data={"questions_per_document": 1}), tiny_model)
    steps = [step for step in map(mixture.step, range(150)) if isinstance(step, RetrievalStep)]
    answers = [(step, answer) for step in steps for answer in step.answers]
    weighed = [(step, answer) for step, answer in answers if answer.biases]
    assert all(len(answer.context) == 3 for _, answer in weighed)
    assert 0.4 < len(weighed) / sum(len(answer.context) == 3 for _, answer in answers) < 0.6
    own = []
    for step, answer in weighed:
        assert answer.shares_positions == (True, True, True)
        assert max(answer.biases) == 0.0
        assert all(-8 <= bias <= 0 for bias in answer.biases)
        best = step.documents[answer.context[answer.biases.index(0.0)]].ids
        own.append(text(tiny_model, answer.answer_ids).split("<")[0].strip() in text(tiny_model, best))
    assert 0.75 < sum(own) / len(own) < 0.95
    assert not any(answer.shares_positions for _, answer in answers if not answer.biases)


def test_some_answers_reuse_the_state_of_their_own_query(make_model: Callable[..., GritModel], recipe: Recipe) -> None:
    model = make_model(template="gritrag")
    without, only = ({**ONLY_QUESTIONS, "p_unanswerable": 0, "p_question_state": share} for share in (0, 1))
    plain, reusing = (Mixture(recipe(generative=generative), model) for generative in (without, only))
    first = last = 0
    for number in range(20):
        assert not plain.step(number).reuses_questions
        step = reusing.step(number)
        for answer in step.answers:
            (query,) = (row for row in answer.context if row >= len(step.documents))
            own = step.positives[query - len(step.documents)]
            assert own in answer.context
            assert answer.question_ids == model.prompts.answer_start_ids(question_is_last=True)
            first, last = first + (answer.context[0] == query), last + (answer.context[-1] == query)
    assert first > 5 < last


def test_segments_are_those_of_the_model(tiny_model: GritModel, recipe: Recipe) -> None:
    dress = Collator(tiny_model, recipe())
    assert dress.document("a text").ids == tiny_model.document_token_ids("a text")
    question = tiny_model.prompts.encoder.encode(tiny_model.prompts.template.question_segments("who?")).ids
    assert dress.prompted("who?", "me").question_ids == question


TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
ENDED = "{% if m.role == 'assistant' %} <|im_end|>\n{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "end"),
    [(TURNS + ENDED, " <|im_end|>"), (TURNS + "\n{% endfor %}", "<|im_end|>")],
    ids=["a space before the end", "no end"],
)
def test_an_answer_in_a_chat_ends_as_turns_of_the_assistant_do(recipe: Recipe, template: str, end: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    dress = Collator(GritModel(make_lm("llama"), tokenizer, CheckpointConfig()), recipe())
    turns = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "good day"})
    ids, is_target = dress.chat(Chat(turns))
    learnt = tokenizer.decode([i for i, wanted in zip(ids, is_target, strict=True) if wanted])
    assert learnt == ("good day" + end if end in template else "good day")
    for wording in WORDINGS:
        assert tokenizer.decode(dress.in_chat(wording, "who?", "Ann", (0,)).answer_ids) == "Ann" + end


def test_own_negatives_and_in_batch_negatives(
    tiny_model: GritModel, recipe: Recipe, tmp_path: Path, write: Write
) -> None:
    rows = [{"query": f"q{n}", "pos": [f"positive {n}"], "neg": [f"negative {n}"]} for n in range(4)]
    write(tmp_path / "pairs.jsonl", rows)
    source = {"path": str(tmp_path / "pairs.jsonl"), "in_batch_negatives": False}
    step = Mixture(recipe(data={"sources": [source], "chat": []}), tiny_model).step(0)
    assert len(step.documents) == 2 * len(step.queries)
    for positive, candidates in zip(step.positives, step.candidates, strict=True):
        told = [text(tiny_model, step.documents[row].ids) for row in candidates]
        assert candidates[0] == positive
        assert told[1] == told[0].replace("positive", "negative")


def test_a_long_passage_is_cut_where_its_answers_survive(tiny_model: GritModel, recipe: Recipe) -> None:
    dress = Collator(tiny_model, recipe(data={"max_document_tokens": 40}))
    long = "Ann sang a song on the hill. Bob wrote it all down at home. Carl was not there, he slept."

    def cut(*answers: str) -> tuple[str, list[str]]:
        questions = tuple(Question("?", answer, None, ()) for answer in answers)
        kept, left = dress.cut(Passage(long, "", questions))
        assert tiny_model.count_tokens(kept) <= 40
        return kept, [question.answer for question in left]

    assert cut("Ann", "Carl") == ("Ann sang a song on the hill.", ["Ann"])
    assert cut("carl") == ("Carl was not there, he slept.", ["carl"])
    assert cut("in words of its own") == ("Ann sang a song on the hill.", [])
    assert cut("") == ("Ann sang a song on the hill.", [""])


def test_a_source_of_the_other_kind_is_refused(tiny_model: GritModel, recipe: Recipe) -> None:
    with pytest.raises(ValueError, match=r"chat.jsonl holds chats; list it under data.chat"):
        Mixture(recipe(data={"sources": [{"path": "chat.jsonl"}]}), tiny_model)
    with pytest.raises(ValueError, match=r"questions.jsonl holds questions; list it under data.sources"):
        Mixture(recipe(data={"chat": [{"path": "questions.jsonl"}]}), tiny_model)
