"""mteb's own evaluation of a tiny model, on local tasks: every kind runs, and a figure is what ours would be."""

from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from datasets import Dataset
from mteb.mocks.mock_tasks.classification import MockClassificationTask
from mteb.mocks.mock_tasks.clustering import MockClusteringTask
from mteb.mocks.mock_tasks.retrieval import MockRetrievalTask
from mteb.mocks.mock_tasks.sts import MockSTSTask
from mteb.models.models_protocols import EncoderProtocol
from mteb.types import PromptType
from scipy.stats import spearmanr
from torch.utils.data import DataLoader

from gritrag import Document
from gritrag.model.grit import GritModel
from gritrag.mteb import MtebEncoder

TASK = {"task_metadata": MockSTSTask.metadata, "hf_split": "test", "hf_subset": "default"}
TEXTS = ["Owls click.", "The clock leans.", "Gulls nest."]
PAIRS = {
    "sentence1": ["Owls click.", "The clock leans.", "Gulls nest here.", "Rye bread is sold."],
    "sentence2": ["Owls click!", "A tower leans.", "The well is deep.", "Bread of rye is for sale."],
    "score": [5.0, 3.0, 0.5, 4.0],
}


class LocalSTS(MockSTSTask):
    metadata = MockSTSTask.metadata.model_copy(update={"name": "LocalSTS"})
    min_score, max_score = 0, 5

    def load_data(self, **kwargs: Any) -> None:
        self.dataset, self.data_loaded = {"test": Dataset.from_dict(PAIRS)}, True


class InstructedSTS(LocalSTS):
    metadata = LocalSTS.metadata.model_copy(update={"name": "InstructedSTS", "prompt": "Tell alike"})


def loader(**columns: list[str]) -> DataLoader:
    return DataLoader(Dataset.from_dict(columns), batch_size=2)


def test_it_is_an_encoder_of_mteb_and_files_results_under_the_fingerprint(tiny_model: GritModel) -> None:
    encoder = MtebEncoder(tiny_model)
    assert isinstance(encoder, EncoderProtocol)
    assert encoder.mteb_model_meta.revision == tiny_model.fingerprint.digest
    assert encoder.mteb_model_meta.embed_dim == tiny_model.dim


@pytest.mark.parametrize(
    "task", [MockRetrievalTask, MockClusteringTask, MockClassificationTask], ids=lambda task: task.__name__
)
def test_mteb_evaluates_it(tiny_model: GritModel, task: type) -> None:
    result = mteb.evaluate(MtebEncoder(tiny_model), [task()], cache=None, raise_error=True, show_progress_bar=False)
    assert 0 <= result.task_results[0].get_score() <= 1


def test_the_score_of_a_task_is_that_of_our_vectors(tiny_model: GritModel) -> None:
    result = mteb.evaluate(MtebEncoder(tiny_model), [LocalSTS()], cache=None, show_progress_bar=False)
    first, second = (tiny_model.encode_query(PAIRS[side]) for side in ("sentence1", "sentence2"))
    expected = spearmanr((first * second).sum(1), PAIRS["score"]).statistic
    assert result.task_results[0].get_score() == pytest.approx(expected, abs=1e-3)


def test_documents_are_read_as_documents_with_their_titles_and_queries_as_queries(tiny_model: GritModel) -> None:
    encoder = MtebEncoder(tiny_model)
    read = encoder.encode(
        loader(text=[f"Osk {text}" for text in TEXTS], title=["Osk"] * 3, body=TEXTS),
        prompt_type=PromptType.document,
        **TASK,
    )
    expected = tiny_model.encode_document([Document(text, title="Osk") for text in TEXTS])
    np.testing.assert_allclose(read, expected, atol=1e-6)
    for prompt_type in (PromptType.query, None):
        asked = encoder.encode(loader(text=TEXTS), prompt_type=prompt_type, **TASK)
        np.testing.assert_allclose(asked, tiny_model.encode_query(TEXTS), atol=1e-6)


def test_instructions_of_tasks_are_read_only_if_asked_for(tiny_model: GritModel) -> None:
    metadata = MockSTSTask.metadata.model_copy(update={"prompt": "Tell alike"})
    asked = MtebEncoder(tiny_model, task_instructions=True).encode(
        loader(text=TEXTS), **{**TASK, "task_metadata": metadata}
    )
    np.testing.assert_allclose(asked, tiny_model.encode_query(TEXTS, "Tell alike"), atol=1e-6)
    assert np.abs(asked - tiny_model.encode_query(TEXTS)).max() > 1e-3


def test_a_result_with_instructions_is_not_taken_for_one_without(tiny_model: GritModel, tmp_path: Path) -> None:
    """mteb finds results again by name, revision and experiment: it would tell the first for both."""
    told = []
    for cache in (None, mteb.ResultCache(tmp_path)):
        for asks in (False, True):
            encoder = MtebEncoder(tiny_model, task_instructions=asks)
            result = mteb.evaluate(encoder, InstructedSTS(), cache=cache, show_progress_bar=False)
            told.append(result.task_results[0].get_score())
    assert told[:2] == pytest.approx(told[2:])
    assert told[0] != pytest.approx(told[1])


def test_a_long_text_is_cut_and_an_empty_one_is_like_nothing(tiny_model: GritModel) -> None:
    long = "word " * tiny_model.max_document_tokens
    vectors = MtebEncoder(tiny_model).encode(loader(text=[long, " ", "Owls click."]), **TASK)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 0, 1])


def test_loading_by_name(tiny_model: GritModel, tmp_path: Path) -> None:
    tiny_model.lm.save_pretrained(tmp_path / "tiny")
    tiny_model.tokenizer.save_pretrained(tmp_path / "tiny")
    encoder = MtebEncoder(str(tmp_path / "tiny"), device="cpu", dtype="float32", pooling="last")
    assert encoder.mteb_model_meta.name == "gritrag/tiny"
    assert encoder.model.config.pooling == "last"
