"""A whitening behind the pooling: its law, the checkpoint that is written, and what is refused."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from gritrag import Document, GritModel
from gritrag.cli.app import app
from gritrag.train.after.whiten import Sample, whiten, write

WORDS = "ferry bridge kettle valley clock tower owl harbour winter letter copper garden".split()  # noqa: SIM905


def sample(seed: int, count: int = 40) -> Sample:
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=12)) for _ in range(2 * count)]
    questions = [f"Where is the {text}?" for text in texts[count:]]
    return Sample([Document(text) for text in texts[:count]], questions, range(count))


@pytest.fixture
def folder(tiny_model: GritModel, tmp_path: Path) -> Path:
    """A bare model."""
    tiny_model.lm.save_pretrained(tmp_path / "model")
    tiny_model.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def spread(*groups: np.ndarray) -> np.ndarray:
    moments = np.mean([each.T.astype(np.float64) @ each / len(each) for each in groups], axis=0)
    return moments / np.trace(moments)


def test_the_whole_whitening_leaves_all_directions_alike(tiny_model: GritModel) -> None:
    """Of documents and questions of all samples, and of what lies between a question and its document, each of which
    weighs the same however large it is."""
    samples = [sample(0), sample(1, 10)]
    matrix = whiten(tiny_model, samples, power=0.5, floor=1e-7).matrix
    documents = [tiny_model.encode_document(each.documents) for each in samples]
    questions = [tiny_model.encode_query(each.questions) for each in samples]
    apart = [asked - found for asked, found in zip(questions, documents, strict=True)]
    shown = np.linalg.eigvalsh(matrix @ (spread(*documents, *questions) + spread(*apart)) @ matrix)
    assert shown.max() == pytest.approx(1, abs=0.02)
    assert (shown > 0.9).mean() > 0.8, "but for directions that hold next to nothing"
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-4 * np.abs(matrix).max())


def test_a_part_of_it_brings_documents_apart_and_not_as_far_as_the_whole(tiny_model: GritModel) -> None:
    part, whole = (whiten(tiny_model, [sample(0)], power=power) for power in (0.25, 0.5))
    assert part.cosine_before == whole.cosine_before > part.cosine_after > whole.cosine_after
    vectors = tiny_model.encode_document(sample(0).documents)
    cosines = (vectors @ vectors.T)[~np.eye(len(vectors), dtype=bool)]
    assert part.cosine_before == pytest.approx(cosines.mean(), abs=1e-4)
    assert (part.documents, part.questions) == (40, 40)


def test_the_checkpoint_has_other_vectors_and_the_same_states(folder: Path, tmp_path: Path) -> None:
    bare = GritModel.from_pretrained(folder, dtype="float32")
    fitted = whiten(bare, [sample(0)])
    write(str(folder), bare, fitted, tmp_path / "one")
    model = GritModel.from_pretrained(tmp_path / "one", dtype="float32")
    texts = [document.text for document in sample(7).documents[:5]]
    expected = bare.encode_document(texts) @ fitted.matrix
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(model.encode_document(texts), expected, atol=1e-5)
    assert np.abs(expected - bare.encode_document(texts)).max() > 0.01
    assert model.fingerprint != bare.fingerprint
    for ours, theirs in zip(model.read_documents(texts), bare.read_documents(texts), strict=True):
        np.testing.assert_array_equal(ours.state.keys, theirs.state.keys)

    again = whiten(model, [sample(3)])
    (tmp_path / "one" / "README.md").write_text("A card.")
    write(str(tmp_path / "one"), model, again, tmp_path / "two")
    twice = GritModel.from_pretrained(tmp_path / "two", dtype="float32").encode_document(texts)
    expected = expected @ again.matrix
    np.testing.assert_allclose(twice, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    assert (tmp_path / "two" / "README.md").read_text() == "A card."
    assert len({file.stat().st_mode for file in (tmp_path / "two").iterdir()}) == 1  # others can read all of it


def test_a_checkpoint_finds_its_base_from_where_it_was_copied_to(folder: Path, tmp_path: Path) -> None:
    """Whether that lies beside the checkpoint or in it."""
    for name, base in (("beside", "../model"), ("within", "model")):
        checkpoint = tmp_path / name
        checkpoint.mkdir()
        if name == "within":
            folder.rename(checkpoint / "model")
        (checkpoint / "gritrag.json").write_text(json.dumps({"base": base, "template": "gritrag"}))
        model = GritModel.from_pretrained(checkpoint, dtype="float32")
        out = tmp_path / "deep" / name
        write(str(checkpoint), model, whiten(model, [sample(0)]), out)
        assert GritModel.from_pretrained(out, dtype="float32").encode_query(["x"]).shape == (1, model.dim)


@pytest.mark.parametrize(
    ("samples", "settings", "told"),
    [
        ([sample(0)], {"power": 0}, "power must lie in"),
        ([sample(0)], {"power": 0.6}, "power must lie in"),
        ([sample(0)], {"floor": 0}, "floor above 0"),
        ([], {}, "needs documents and questions"),
        ([Sample(sample(0).documents, [], [])], {}, "needs documents and questions"),
        ([sample(0, 3)], {}, "6 texts are too few to fit 32 directions to; give at least 32"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    tiny_model: GritModel, samples: list[Sample], settings: dict[str, float], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        whiten(tiny_model, samples, **settings)


def test_the_command(folder: Path, tmp_path: Path) -> None:
    given = sample(0)
    rows = [
        {"id": str(n), "question": question, "passage": document.text, "answers": [], "title": ""}
        for n, (document, question) in enumerate(zip(given.documents, given.questions, strict=True))
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["whiten", str(path), "--out", str(tmp_path / "out"), "--model", str(folder)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "40 documents and 40 questions; mean cosine of two documents" in " ".join(result.output.split())
    bare = GritModel.from_pretrained(folder, dtype="float32")
    expected = bare.encode_query(["x"]) @ whiten(bare, [given]).matrix
    found = GritModel.from_pretrained(tmp_path / "out", dtype="float32").encode_query(["x"])
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-4)
    again = CliRunner().invoke(app, command)
    assert again.exit_code != 0
    assert "not an empty folder" in again.output
