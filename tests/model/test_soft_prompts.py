"""Soft tokens: a contextual token belongs to its own text wherever that stands, demonstrations to one call."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from repository import ENCODER
from safetensors.torch import load_file, save_file

from gritrag import Document, GritModel
from gritrag.config import CheckpointConfig, PartsConfig
from gritrag.model.context import Context
from gritrag.model.parts import FORMAT
from gritrag.model.placing import place
from gritrag.model.sampling import Sampling

CONTEXTUAL = {"template": "instruct", "pooling": "first+last", "parts": PartsConfig(contextual_encoder=ENCODER)}
SHOWN = {"template": "instruct", "pooling": "last", "parts": PartsConfig(demonstrations=3)}
TEXTS = ["the river", "a bridge over the river, and a mill", "rye"]
PAIRS = [("who?", "Tamsin Reed painted it."), ("when?", "It was built in 1871.")]


@pytest.fixture
def contextual(make_model: object) -> GritModel:
    return make_model(**CONTEXTUAL)


@pytest.fixture
def shown(make_model: object) -> GritModel:
    return make_model(**SHOWN)


def test_the_contextual_token_comes_first_and_the_end_token_last(contextual: GritModel) -> None:
    vocabulary = contextual.lm.get_input_embeddings().weight.shape[0]
    for prompt in (contextual.prompts.document("the river"), contextual.prompts.query("the river", "find it")):
        assert prompt.ids[0] == contextual.parts.slots.contextual >= vocabulary
        assert prompt.ids[-1] == contextual.tokenizer.eos_token_id
        assert (prompt.is_pooled[0], prompt.is_pooled[-1]) == (True, True)
        assert max(prompt.ids[1:]) < vocabulary
    assert contextual.dim == 64


def test_it_is_computed_from_the_text_behind_it_and_nothing_else(contextual: GritModel) -> None:
    """In a batch, alone, and in one row with another text: the same embedding."""
    layer = contextual.lm.get_input_embeddings()
    ids = [contextual.document_token_ids(text) for text in TEXTS]
    alone = [layer(torch.tensor([row]))[0, 0] for row in ids]
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)
    joined = layer(torch.tensor([[*ids[1], *contextual.prompts.question_ids("who?", True), *ids[2]]]))[0]
    torch.testing.assert_close(joined[0], alone[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(joined[-len(ids[2])], alone[2], atol=1e-5, rtol=1e-4)
    words = torch.tensor([ids[0][1:]])
    assert torch.equal(layer(words), torch.nn.functional.embedding(words, layer.weight))


def test_it_is_as_large_as_word_embeddings(contextual: GritModel) -> None:
    layer = contextual.lm.get_input_embeddings()
    token = layer(torch.tensor([contextual.document_token_ids("the river")]))[0, 0]
    assert float(token.square().mean().sqrt()) == pytest.approx(float(layer.weight.square().mean().sqrt()), rel=1e-3)


def test_a_batch_of_one_equals_a_batch_of_many(contextual: GritModel, shown: GritModel) -> None:
    prompt = shown.fit_demonstrations(PAIRS, "find it")
    for encode in (
        contextual.encode_document,
        contextual.encode_query,
        lambda t: shown.encode_query(t, demonstrations=prompt),
    ):
        np.testing.assert_allclose(encode(TEXTS), np.concatenate([encode([t]) for t in TEXTS]), atol=1e-5)


def test_answers_from_a_state_with_a_contextual_token_are_those_of_the_uncached_run(contextual: GritModel) -> None:
    """One document: the same tokens. The state holds the soft token as one of its own."""
    (reading,) = contextual.read_documents(["the river is twelve metres deep"])
    ids = contextual.document_token_ids("the river is twelve metres deep")
    assert reading.state.token_ids.tolist() == ids
    assert reading.state.keys.shape[2] == len(ids)
    question = contextual.prompts.question_ids("how deep?", True)
    contexts = [Context.of(reading.state, question), Context.of(ids, question)]
    cached, uncached = (contextual.decoder.decode([context], Sampling(max_new_tokens=12)) for context in contexts)
    for decoding in (cached, uncached):
        list(decoding)
    assert cached.completions == uncached.completions


def test_text_that_stood_before_a_contextual_token_is_quoted_without_it(contextual: GritModel) -> None:
    """What is generated stood at the end of a run that a document follows, whose first token nobody can guess."""
    document = contextual.document_token_ids("the river")

    def generated(last: int, said: int, count: int, lookup: bool) -> list[int]:
        prompt = [last, said, *document, last]
        return contextual.decoder.complete([prompt], Sampling(max_new_tokens=count, lookup=lookup))[0].token_ids

    ends = contextual.lm.config.eos_token_id, contextual.tokenizer.eos_token_id
    words = [word for word in range(3, contextual.lm.config.vocab_size) if word not in ends]
    pairs = ((last, said) for last in words for said in words)
    last, said = next(pair for pair in pairs if generated(*pair, count=1, lookup=False) == [pair[1]])
    assert generated(last, said, 6, lookup=True) == generated(last, said, 6, lookup=False)


def test_a_contextual_token_needs_an_end(make_model: object) -> None:
    with pytest.raises(ValueError, match="'chatml' ends them with ''"):
        make_model(**{**CONTEXTUAL, "template": "chatml"})
    with pytest.raises(ValueError, match="not both"):
        PartsConfig(contextual_encoder=ENCODER, demonstrations=1)
    with pytest.raises(ValueError, match="all-minilm-l6-v2"):
        make_model(**{**CONTEXTUAL, "parts": PartsConfig(contextual_encoder="no-such-encoder")})


def test_demonstrations_are_two_tokens_a_pair_behind_the_first(shown: GritModel) -> None:
    bare = shown.prompts.query("who?", "find it")
    prompt = shown.parts.slots.with_demonstrations(bare, 2)
    assert prompt.ids == [bare.ids[0], *[shown.parts.slots.demonstration] * 4, *bare.ids[1:]]
    assert prompt.is_pooled == [bare.is_pooled[0], *[False] * 4, *bare.is_pooled[1:]]


def test_fitted_demonstrations_are_the_vectors_of_its_pairs_and_changes_queries_only(shown: GritModel) -> None:
    prompt = shown.fit_demonstrations(PAIRS, "find it")
    np.testing.assert_allclose(prompt.vectors[::2], shown.encode_query([q for q, _ in PAIRS], "find it"), atol=1e-6)
    np.testing.assert_allclose(prompt.vectors[1::2], shown.encode_document([d for _, d in PAIRS]), atol=1e-6)
    documents = shown.encode_document(TEXTS)
    with_prompt, without = shown.encode_query(TEXTS, demonstrations=prompt), shown.encode_query(TEXTS, "find it")
    assert np.abs(with_prompt - without).max() > 1e-3
    other = shown.fit_demonstrations(PAIRS[::-1], "find it")
    assert np.abs(shown.encode_query(TEXTS, demonstrations=other) - with_prompt).max() > 1e-4
    np.testing.assert_array_equal(shown.encode_document(TEXTS), documents)


def test_demonstrations_that_cannot_be_read_are_refused(shown: GritModel, tiny_model: GritModel) -> None:
    for pairs in ([], PAIRS * 2):
        with pytest.raises(ValueError, match=rf"reads 1 to 3 demonstrations, got {len(pairs)}"):
            shown.fit_demonstrations(pairs)
    with pytest.raises(ValueError, match="reads no demonstrations"):
        tiny_model.fit_demonstrations(PAIRS)
    with pytest.raises(ValueError, match="reads no demonstrations"):
        tiny_model.encode_query(TEXTS, demonstrations=shown.fit_demonstrations(PAIRS))


# --- on disk ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(make_model: object, tokenizer: object, tmp_path: Path) -> tuple[Path, GritModel]:
    model: GritModel = make_model(pooling="latent_attention", parts=PartsConfig(latents=6, latent_heads=4))
    torch.nn.init.normal_(model.parts.pooler.latent_attention.output.weight)
    model.lm.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model.parts.save(tmp_path / "parts.safetensors")
    config = model.config.model_copy(update={"base": "base", "parts_file": "parts.safetensors"})
    config.save(tmp_path)
    return tmp_path, model


def test_parts_are_saved_beside_and_belong_to_the_fingerprint(checkpoint: tuple[Path, GritModel]) -> None:
    folder, model = checkpoint
    loaded = GritModel.from_pretrained(folder, dtype="float32", device="cpu")
    np.testing.assert_allclose(loaded.encode_document(TEXTS), model.encode_document(TEXTS), atol=1e-6)
    assert loaded.fingerprint.parts["parts"] == model.parts.identity
    tensors = load_file(folder / "parts.safetensors")
    tensors["pooler.latent_attention.latents"][0, 0] += 1
    save_file(tensors, folder / "parts.safetensors", metadata={"format": FORMAT})
    edited = GritModel.from_pretrained(folder, dtype="float32", device="cpu")
    differing = {k for k, v in edited.fingerprint.parts.items() if v != loaded.fingerprint.parts[k]}
    assert differing == {"parts"}


def test_a_model_without_parts_has_the_fingerprint_and_the_file_that_it_had(
    tiny_model: GritModel, tmp_path: Path
) -> None:
    assert "parts" not in tiny_model.fingerprint.parts
    CheckpointConfig(base="b").save(tmp_path)
    assert "parts" not in (tmp_path / "gritrag.json").read_text()
    assert CheckpointConfig.load(tmp_path) == CheckpointConfig(base="b")


def test_parts_that_do_not_fit_are_refused(checkpoint: tuple[Path, GritModel]) -> None:
    folder, _ = checkpoint
    file = folder / "parts.safetensors"
    tensors = load_file(file)

    def load() -> GritModel:
        return GritModel.from_pretrained(folder, dtype="float32", device="cpu")

    save_file(tensors, file, metadata={"format": "gritrag-parts-9"})
    with pytest.raises(ValueError, match="has format 'gritrag-parts-9', this version reads 'gritrag-parts-1'"):
        load()
    fewer = {name: tensor for name, tensor in tensors.items() if "latents" not in name}
    save_file(fewer, file, metadata={"format": FORMAT})
    with pytest.raises(ValueError, match=r"latents is absent, expected \[6, 32\]"):
        load()
    file.unlink()
    with pytest.raises(ValueError, match="cannot read the parts"):
        load()


def test_a_state_serves_a_context_with_others(contextual: GritModel) -> None:
    """Placing knows nothing of soft tokens: two states stand one behind the other, whole."""
    readings = contextual.read_documents([Document("the river"), Document("rye", title="Bread")])
    context = Context.of(*(reading.state for reading in readings), contextual.prompts.question_ids("who?", True))
    cache = place([context], contextual.decoder.shape, contextual.rotation, room=4)
    assert cache.length == sum(len(reading.state) for reading in readings)


def test_an_encoder_comes_from_a_folder_inside_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_model: object, contextual: GritModel
) -> None:
    """As the wheel of all-MiniLM-L6-v2 keeps it."""
    shutil.copytree(ENCODER, tmp_path / "some_encoder" / "model")
    (tmp_path / "some_encoder" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    model: GritModel = make_model(**{**CONTEXTUAL, "parts": PartsConfig(contextual_encoder="some_encoder")})
    np.testing.assert_allclose(model.encode_document(TEXTS), contextual.encode_document(TEXTS), atol=1e-6)
