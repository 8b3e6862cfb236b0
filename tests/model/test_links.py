"""Links: end tokens behind a document that belong to its state, and to nothing else."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ferry import DOCUMENTS, QUESTION

from gritrag import RAG, GritModel, Index
from gritrag.config import CheckpointConfig
from gritrag.prompts import GRITRAG, PLAIN

MakeModel = Callable[..., GritModel]

TEXT = "The ferry sails at four."


def test_links_close_the_state_of_a_document_and_change_neither_vectors_nor_questions(make_model: MakeModel) -> None:
    plain, linked = make_model(), make_model(link_tokens=3)
    ids = plain.prompts.document(TEXT).ids
    assert linked.prompts.document(TEXT).ids == ids + [linked.tokenizer.eos_token_id] * 3
    assert linked.prompts.query(TEXT, None).ids == plain.prompts.query(TEXT, None).ids
    without, with_links = plain.read_documents([TEXT])[0], linked.read_documents([TEXT])[0]
    np.testing.assert_allclose(with_links.vector, without.vector, atol=1e-6)
    assert with_links.state is not None
    assert without.state is not None
    assert len(with_links.state) == len(without.state) + 3


def test_links_stand_behind_the_end_of_a_text_that_closes_it_for_its_vector(make_model: MakeModel) -> None:
    plain, linked = (make_model(template="instruct", pooling="last", link_tokens=links) for links in (0, 1))
    one, two = (model.prompts.document(TEXT) for model in (plain, linked))
    assert two.ids == [*one.ids, linked.tokenizer.eos_token_id]
    np.testing.assert_allclose(linked.encode_document([TEXT]), plain.encode_document([TEXT]), atol=1e-6)


def test_bidirectional_reading_sees_them(make_model: MakeModel) -> None:
    one, two = (
        make_model(reading="bidirectional", link_tokens=links).read_documents([TEXT])[0].vector for links in (1, 2)
    )
    assert not np.allclose(one, two, atol=1e-4)


def test_other_links_are_another_fingerprint_and_none_the_one_of_old(make_model: MakeModel) -> None:
    prints = {str(make_model(link_tokens=links).fingerprint) for links in (0, 1, 5)}
    assert len(prints) == 3
    assert (GRITRAG.fingerprint, PLAIN.fingerprint) == ("gritrag-e6fc7c7cf2ffa4cc", "plain-c38c2da515967637")


def test_one_document_with_links_answers_exactly_as_read_again(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(link_tokens=2)
    with Index.create(tmp_path / "index", model=model, states="float32") as index:
        index.add(DOCUMENTS)
        cached, again = (
            RAG(index, mode=mode, k=1).ask(QUESTION, documents=DOCUMENTS[:1], max_new_tokens=8)
            for mode in ("doc-cache", "doc-query")
        )
    assert cached.exact
    assert cached.text == again.text
    assert cached.usage.cached_tokens == len(model.prompts.document(DOCUMENTS[0].content).ids)


def test_a_checkpoint_keeps_them_and_one_without_does_not_name_them(tmp_path: Path) -> None:
    CheckpointConfig(base="x", link_tokens=2).save(tmp_path)
    assert CheckpointConfig.load(tmp_path).link_tokens == 2
    CheckpointConfig(base="x").save(tmp_path)
    assert "link_tokens" not in json.loads((tmp_path / "gritrag.json").read_text("utf-8"))
    with pytest.raises(ValueError, match="link_tokens"):
        CheckpointConfig(link_tokens=-1)


def test_a_tokenizer_without_an_end_token_has_none(make_model: MakeModel) -> None:
    model = make_model()
    end = model.tokenizer.eos_token
    try:
        model.tokenizer.eos_token = None
        with pytest.raises(ValueError, match="link_tokens=0"):
            GritModel(model.lm, model.tokenizer, CheckpointConfig(link_tokens=1))
    finally:
        model.tokenizer.eos_token = end
