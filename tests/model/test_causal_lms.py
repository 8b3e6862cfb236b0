"""Every architecture that transformers has for causal language models works, falls back, or is refused by name.

The table in the documentation says which; here each is built tiny and random, and used.
"""

import re
from pathlib import Path

import pytest
from architecture_table import examine
from architectures import make_tokenizer
from causal_lms import CAUSAL_LMS, tiny_lm
from repository import ROOT

from gritrag import RAG, Document, GritModel, Index

PAGE = ROOT / "docs" / "reference" / "architectures.md"
LINES = {line.split("|")[1].strip(): line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")}


def test_the_page_has_a_line_for_every_architecture() -> None:
    assert tuple(LINES)[1:] == CAUSAL_LMS  # behind the heading


def test_the_page_counts_what_it_lists() -> None:
    (told,) = re.findall(r"(\d+) work, (\d+) fall back and (\d+) are refused", PAGE.read_text("utf-8"))
    outcomes = [line.split("|")[2].strip() for line in LINES.values()]
    assert tuple(map(int, told)) == tuple(map(outcomes.count, ("works", "falls back", "refused")))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("architecture", CAUSAL_LMS)
def test_an_architecture_does_what_the_page_says(architecture: str) -> None:
    assert str(examine(architecture)) == LINES[architecture]


@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        ("lfm2", "lfm2 keeps a running state in 2 of its 4 layers"),
        ("gemma4_text", "gemma4_text keeps keys and values of several shapes"),
        ("deepseek_v2", "deepseek_v2 keeps keys and values of several shapes"),
    ],
)
def test_a_model_without_states_answers_from_text(architecture: str, why: str, tmp_path: Path) -> None:
    tiny_lm(architecture).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    model = GritModel.from_pretrained(tmp_path / "model", dtype="float32")
    assert model.state_elements_per_token == 0
    documents = [Document("the old bridge", id="a"), Document("seven boats", id="b")]
    with Index.create(tmp_path / "index", model=model, states="none") as index:
        index.add(documents)
        rag = RAG(index, mode="doc-query", k=2)
        answers = rag.ask_many(["which bridge?", "how many boats lie there?"], max_new_tokens=5)
        alone = rag.ask("how many boats lie there?", max_new_tokens=5)
        assert (answers[1].text, answers[1].usage.cached_tokens) == (alone.text, 0)
        assert {hit.document.id for hit in answers[0].hits} == {"a", "b"}
        with pytest.raises(ValueError, match=rf"{why}.*Answer with mode='doc-query'"):
            RAG(index, mode="doc-cache").ask("which bridge?")
    with pytest.raises(ValueError, match=f"{why}.*states='none'"):
        model.read_documents(["a text"])


def test_a_base_under_another_name_is_found(tmp_path: Path) -> None:
    """Llama 4 says `language_model`, and keeps it as `model`."""
    lm = tiny_lm("llama4_text")
    assert not hasattr(lm, lm.base_model_prefix)
    model = GritModel(lm, make_tokenizer())
    (reading,) = model.read_documents(["the old bridge"])
    assert reading.state.keys.shape[0] == 4
