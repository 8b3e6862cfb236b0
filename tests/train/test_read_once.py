"""Laws of the read-once step: a reading that serves many answers gives what one long masked forward gives."""

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby

import pytest
import torch
from answer_steps import assert_equal_gradients, gradients, retrieval_step
from torch.nn.functional import cross_entropy

from gritrag.model.attention import decoder_stack
from gritrag.model.grit import GritModel
from gritrag.train.config import TrainConfig
from gritrag.train.data.collate import Collator
from gritrag.train.data.mixture import Mixture
from gritrag.train.data.rows import Chat
from gritrag.train.data.steps import ChatStep, Prompted, RetrievalStep
from gritrag.train.data.wordings import WORDINGS
from gritrag.train.read_once import ReadOnce

Recipe = Callable[..., TrainConfig]
MakeModel = Callable[..., GritModel]


def long_forward(model: GritModel, step: RetrievalStep, answer: Prompted) -> torch.Tensor:
    """Loss of one answer's tokens `[A]`, from a single forward under a mask that keeps documents apart."""
    rows = len(answer.context)
    before, shared = answer.before_ids or ((),) * rows, answer.shares_positions or (False,) * rows
    biases = answer.biases or (0.0,) * rows
    parts: list[tuple[list[int], bool, bool, float]] = []  # ids, whether they are a document, together, bias
    for row, text_ids, together, bias in zip(answer.context, before, shared, biases, strict=True):
        parts += [(list(text_ids), False, False, 0.0)] if text_ids else []
        parts.append((step.readable[row].ids, True, together, bias))
    parts.append(([*answer.question_ids, *answer.answer_ids[:-1]], False, False, 0.0))
    ids = [i for part in parts for i in part[0]]
    seen, scores, positions = torch.ones(len(ids), len(ids)).tril().bool(), torch.zeros(len(ids), len(ids)), []
    end = answer.start
    for together, group in groupby(parts, key=lambda part: part[2]):
        own = list(group)
        widest = max(len(part_ids) for part_ids, *_ in own)
        for part_ids, is_document, _, bias in own:
            first = end + widest - len(part_ids) if together else end  # documents that are together end together
            here = slice(len(positions), len(positions) + len(part_ids))
            if is_document:
                seen[here, : here.start] = False
                seen[here, here] |= torch.tensor(model.config.reading == "bidirectional")
            scores[here.stop :, here] = bias
            positions += range(first, first + len(part_ids))
            end += 0 if together else len(part_ids)
        end += widest if together else 0
    hidden = decoder_stack(model.lm)(
        input_ids=torch.tensor([ids]),
        attention_mask=scores.masked_fill(~seen, -1e9)[None, None],
        position_ids=torch.tensor([positions]),
        use_cache=False,
    ).last_hidden_state[0]
    logits = model.lm.get_output_embeddings()(hidden[-len(answer.answer_ids) :])
    return cross_entropy(logits, torch.tensor(answer.answer_ids), reduction="none")


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "phi"])
@pytest.mark.parametrize("reading", ["causal", "bidirectional"])
@pytest.mark.parametrize("gathers", [False, True], ids=["copied", "gathered"])
def test_read_once_equals_one_long_masked_forward(
    make_model: MakeModel, recipe: Recipe, architecture: str, reading: str, gathers: bool
) -> None:
    model = make_model(architecture, reading=reading, link_tokens=2 if architecture == "llama" else 0)
    chunk = 400 if reading == "bidirectional" else 4000  # answers one by one, and all of them together
    config = recipe(contrastive={"weight": 0}, answer_chunk_tokens=chunk)
    step = retrieval_step(model, config)
    start_ids = model.prompts.answer_start_ids(question_is_last=True)
    over_queries = [
        Prompted(start_ids, step.answers[0].answer_ids, (0, 1, 3)),
        Prompted(start_ids, step.answers[1].answer_ids, (5, 2, 0), start=3),
    ]
    together = (True, True, True)
    weighed = [
        replace(step.answers[1], biases=(-3.0, 0.0, -1.5), shares_positions=together),
        replace(
            step.answers[0],
            context=(2, 0, 1, 4),
            biases=(0.0, -0.5, -8.0, 0.0),
            shares_positions=(*together, False),
            start=2,
        ),
    ]
    collator = Collator(model, config)
    in_chats = [collator.in_chat(wording, "who?", "no one", (2, 0, 1), start=4) for wording in WORDINGS]
    in_chats += [replace(each, biases=(-1.0, 0.0, -2.0), shares_positions=together) for each in in_chats]
    step = replace(step, answers=[*step.answers, *over_queries, *weighed, *in_chats])
    assert step.reuses_questions
    read_once = ReadOnce(model, config)
    assert not read_once.gathers, "a processor copies"
    read_once.gathers = gathers
    done = read_once(step)
    got = gradients(model)

    tokens = torch.cat([long_forward(model, step, answer) for answer in step.answers])
    tokens.mean().backward()
    assert done.losses["placed"] == pytest.approx(tokens.mean().item(), abs=1e-4)
    assert_equal_gradients(got, gradients(model), atol=1e-4)


def test_one_causal_document_at_the_start_is_the_same_placed_and_full(make_model: MakeModel, recipe: Recipe) -> None:
    model = make_model()
    read_once = ReadOnce(model, recipe())
    step = retrieval_step(model, recipe())
    states, contexts = read_once.read(step.documents).states, read_once.contexts
    ids = [document.ids for document in step.documents]
    placed, target = contexts.placed(states, step.answers[:1])
    full, same_target = contexts.full(ids, step.answers[:1])
    torch.testing.assert_close(placed, full, atol=1e-4, rtol=1e-4)
    assert target.tolist() == same_target.tolist() == step.answers[0].answer_ids
    (placed, _), (full, _) = contexts.placed(states, step.answers[1:2]), contexts.full(ids, step.answers[1:2])
    assert not torch.allclose(placed, full, atol=1e-2), "documents of a full context see each other"


def test_full_loss_is_that_of_an_ordinary_forward(make_model: MakeModel, recipe: Recipe) -> None:
    model = make_model()
    config = recipe(data={"tokens_per_step": 10_000})
    step = retrieval_step(model, config)
    full = RetrievalStep(step.source, step.documents, [], [], None, step.answers, is_full=True)
    done = ReadOnce(model, config)(full)
    losses = []
    for answer in step.answers:
        context = [i for row in answer.context for i in step.documents[row].ids]
        ids = torch.tensor([context + answer.question_ids + answer.answer_ids])
        labels = ids.clone()
        labels[:, : -len(answer.answer_ids)] = -100
        positions = torch.arange(answer.start, answer.start + ids.shape[1])[None]
        loss = model.lm(input_ids=ids, labels=labels, position_ids=positions).loss
        losses += [loss.item()] * len(answer.answer_ids)
    assert done.losses == {"full": pytest.approx(sum(losses) / len(losses), abs=1e-4)}


def test_a_chat_that_is_read_anew_has_the_same_tokens(make_model: MakeModel, recipe: Recipe) -> None:
    """Behind one document at the start, a causal one, a chat is the same from its state; with others it is not."""
    model = make_model()
    read_once, collator = ReadOnce(model, recipe()), Collator(model, recipe())
    step = retrieval_step(model, recipe())
    states, ids = read_once.read(step.documents).states, [document.ids for document in step.documents]
    (beside, *_) = [wording for wording in WORDINGS if wording.has_documents_first]
    for context in ((1,), (1, 2)):
        answers = [collator.in_chat(beside, "who?", "no one", context)]
        placed, full = read_once.contexts.placed(states, answers)[0], read_once.contexts.full(ids, answers)[0]
        assert torch.allclose(placed, full, atol=1e-4) == (len(context) == 1)


def test_two_streams_give_the_same_contrastive_loss_and_the_full_one(make_model: MakeModel, recipe: Recipe) -> None:
    """What read-once training is compared with: every context is read anew, so many more tokens go through."""
    model, once, two = make_model(), recipe(), recipe(generative={"contexts": "full"})
    step = retrieval_step(model, once)
    placed, full = ReadOnce(model, once)(step), ReadOnce(model, two)(step)
    alone = ReadOnce(model, recipe(data={"tokens_per_step": 10_000}))(replace(step, is_full=True))
    assert full.losses["contrastive"] == pytest.approx(placed.losses["contrastive"], abs=1e-5)
    assert full.losses["full"] == pytest.approx(alone.losses["full"], abs=1e-5)
    contexts = sum(len(step.documents[row].ids) for answer in step.answers for row in answer.context)
    assert full.tokens == placed.tokens + contexts
    model.lm.zero_grad()


def test_answers_and_vectors_both_train_the_reading(make_model: MakeModel, recipe: Recipe) -> None:
    """The gradient of a step is the sum of its two losses' gradients, and both reach the first layer."""
    model, every = make_model(), {}
    for name, changes in {
        "both": {},
        "contrastive": {"generative": {"weight": 0}},
        "generative": {"contrastive": {"weight": 0}},
    }.items():
        config = recipe(**changes)
        ReadOnce(model, config)(retrieval_step(model, config))
        every[name] = gradients(model)
    first = "model.layers.0.self_attn.k_proj.weight"
    assert every["contrastive"][first].abs().max() > 1e-5
    assert every["generative"][first].abs().max() > 1e-5
    sums = {name: sum(every[k].get(name, 0) for k in ("contrastive", "generative")) for name in every["both"]}
    assert_equal_gradients(every["both"], sums, atol=1e-5)


def test_recomputed_gradients_equal_plain_ones(make_model: MakeModel, recipe: Recipe) -> None:
    """GradCache: chunks of one document each, read twice, against one batch read once."""
    model, every = make_model(), []
    for changes in ({"chunk_tokens": 10_000}, {"chunk_tokens": 1, "recompute": True}):
        config = recipe(**changes)
        ReadOnce(model, config)(retrieval_step(model, config))
        every.append(gradients(model))
    assert_equal_gradients(every[1], every[0], atol=1e-5)


def test_answers_in_chunks_are_answers_in_one(make_model: MakeModel, recipe: Recipe) -> None:
    model, every = make_model(), []
    for tokens in (1, 100_000):
        config = recipe(answer_chunk_tokens=tokens)
        done = ReadOnce(model, config)(retrieval_step(model, config))
        every.append((done.losses["placed"], gradients(model)))
    assert every[0][0] == pytest.approx(every[1][0], abs=1e-5)
    assert_equal_gradients(every[0][1], every[1][1], atol=1e-5)


def test_chat_loss_is_on_the_turns_of_the_assistant(make_model: MakeModel, recipe: Recipe) -> None:
    model = make_model()
    chat = [{"role": "user", "content": "Hi <|im_end|>"}, {"role": "assistant", "content": "Good day."}]
    text = "<|im_start|>user\nHi ~<|im_end|>\n<|im_start|>assistant\nGood day.<|im_end|>\n"
    config = recipe()
    ids, is_target = Collator(model, config).chat(Chat(tuple(chat)))
    wanted = model.tokenizer.decode([i for i, t in zip(ids, is_target, strict=True) if t])
    assert wanted == "Good day.<|im_end|>"
    assert ids.count(model.tokenizer.eos_token_id) == text.count("<|im_end|>")
    done = ReadOnce(model, config)(ChatStep("test", [ids, ids[:5]], [is_target, is_target[:5]]))
    labels = torch.tensor([[i if t else -100 for i, t in zip(ids, is_target, strict=True)]])
    assert done.losses["chat"] == pytest.approx(model.lm(torch.tensor([ids]), labels=labels).loss.item(), abs=1e-4)
    model.lm.zero_grad()


def test_a_step_of_the_mixture_runs(make_model: MakeModel, recipe: Recipe) -> None:
    model, config = make_model(), recipe(generative={"p_full": 0.3, "p_chat": 0.3})
    mixture, read_once, kinds = Mixture(config, model), ReadOnce(model, config), set()
    for number in range(16):
        kinds |= read_once(mixture.step(number)).losses.keys()
    assert kinds == {"contrastive", "placed", "full", "chat"}
    model.lm.zero_grad()
