"""First tokens and readings on tiny models and on random weights of a geometry."""

import json
from pathlib import Path

import pytest
import torch
from places import PLACES
from repository import TINY
from typer.testing import CliRunner

from gritrag import RAG, GritModel, Hit, Index
from gritrag.cli import app
from gritrag.evaluate import first_token, reading, workload
from gritrag.evaluate.bounds import told
from gritrag.evaluate.first_token import PARTS, Setting, main, sections
from gritrag.evaluate.workload import GEOMETRIES, Subject, config_of, documents_of, parameters, random_model, tokenizer
from gritrag.model import packed as packed_module
from gritrag.model.lifting import Lifter
from gritrag.model.packed import can_pack_bf16
from gritrag.model.retrieval_heads import RetrievalHeads

SIZES = {"smollm2-135m": 134.5e6, "qwen3-0.6b": 596e6, "qwen3-1.7b": 1.72e9, "llama3-8b": 8.03e9, "mistral-7b": 7.25e9}


def test_every_way_has_a_row_of_every_round_whose_parts_make_the_first_token() -> None:
    result = main(Subject(TINY, "float32"), Setting(documents=2, tokens=40, repetitions=3))
    rows = [row for row in result.rows if row["kind"] == "first-token"]
    cells = [(row["cell"]["mode"], row["cell"]["search"]) for row in rows]
    assert cells == [(mode, search) for mode in ("doc-query", "doc-cache") for search in (False, True)]
    for row in rows:
        assert tuple(row["seconds"]) == PARTS
        assert {len(values) for values in row["seconds"].values()} == {3}
        for number in range(3):
            parts = [row["seconds"][part][number] for part in PARTS]
            assert sum(parts[:-1]) == pytest.approx(parts[-1], rel=1e-4)
    spent = {cell: row["seconds"] for cell, row in zip(cells, rows, strict=True)}
    for mode in ("doc-query", "doc-cache"):
        assert min(spent[mode, True]["retrieve"]) > min(spent[mode, False]["retrieve"]), "hits need no search"
    assert min(spent["doc-cache", False]["load"]) > min(spent["doc-query", False]["load"])


def test_ratios_are_of_the_same_rounds_and_lost_rounds_are_told() -> None:
    rows = [
        {"kind": "first-token", "cell": {"mode": mode, "search": search}, "state_bytes_per_token": 1.0}
        | {"seconds": dict.fromkeys(PARTS, seconds)}
        for mode, seconds in (("doc-query", [1.0, 4.0]), ("doc-cache", [2.0, 1.0]))
        for search in (False, True)
    ]
    settings = {"documents": 1, "tokens": 2, "codec": "bf16", "repetitions": 2}
    told, lost = sections({"settings": settings}, rows)
    assert "from hits, 2.2 [1.4, 3.1] times sooner" in told.text
    assert lost.tables[0].rows[0][0].startswith("from hits: in 1 of 2 rounds")


@pytest.mark.parametrize("packs", [False, True])
def test_a_first_token_is_told_beside_what_bounds_it(packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if packs:
        monkeypatch.setattr(packed_module, "SMALLEST", 0)
    dtype = "bfloat16" if packs and can_pack_bf16(torch.device("cpu")) else "float32"
    subject = Subject(TINY, dtype)
    model = subject.load()
    result = main(subject, Setting(documents=2, tokens=40, repetitions=2))
    (least,) = [row for row in result.rows if row["kind"] == "bound"]
    linear = {id(m.weight): m.weight for m in model.lm.modules() if isinstance(m, torch.nn.Linear)}
    assert model.step is not None
    assert bool(model.step.packed) == packs
    numbers = sum(weight.numel() for weight in linear.values())
    assert least["weight_bytes"] == numbers * (2 if packs else 4), "packed weights are read in 16 bits"
    assert least["state_bytes"] == 2 * 40 * model.state_elements_per_token * model.dtype.itemsize
    assert least["products_seconds"] > 0
    row = {**least, "memory_bytes_per_second": (least["weight_bytes"] + least["state_bytes"]) / 0.002}
    assert "once takes 2.0 ms" in told(row, [0.01, 0.01], 20)
    assert "takes 5.0 [5.0, 5.0] times as long" in told(row, [0.01, 0.01], 20)
    assert "for the 20 tokens" in told(row, [0.01, 0.01], 20)
    assert "which reading a large buffer reaches" in result.sections()[0].text


def test_reading_again_and_ranking_are_ways_of_their_own() -> None:
    setting = Setting(documents=2, tokens=40, repetitions=2, recompute=(0.1, 1.0), rerank=6)
    result = main(Subject(TINY, "float32"), setting)
    rows = [row for row in result.rows if row["kind"] == "first-token"]
    cells = {(row["cell"]["mode"], row["cell"]["search"]) for row in rows}
    shares = {(f"doc-cache, recompute {share}", search) for share in ("0.1", "1") for search in (False, True)}
    plain = {(mode, search) for mode in ("doc-query", "doc-cache") for search in (False, True)}
    assert cells == plain | shares | {("doc-cache, 6 ranked", True)}
    told = result.sections()[0].text
    assert "recompute 0.1" in told
    assert "6 ranked" in told
    with pytest.raises(ValueError, match="at least k"):
        Setting(documents=5, rerank=2)
    with pytest.raises(ValueError, match="recompute must be"):
        Setting(recompute=(2.0,))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_geometry_has_the_size_of_its_model(geometry: str) -> None:
    if geometry in SIZES:
        assert parameters(config_of(geometry)) == pytest.approx(SIZES[geometry], rel=0.01)
    assert config_of(geometry).max_position_embeddings >= 32 * 500 + 1000
    assert len(tokenizer()) <= config_of(geometry).vocab_size


@pytest.mark.parametrize("storage", ["disk", "memory"])
def test_random_weights_are_measured_without_any_file(
    storage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(first_token, "MEMORY", tmp_path)
    options = ["--documents", "2", "--tokens", "50", "--repetitions", "1", "--states", "int4", "--storage", storage]
    told = CliRunner().invoke(
        app, ["bench", "first-token", "--geometry", "tiny", "--dtype", "bfloat16", *options, "--json"]
    )
    assert told.exit_code == 0, told.output
    result = json.loads(told.stdout)
    assert result["facts"]["model"] == "random weights of tiny"
    assert result["facts"]["dtype"] == "bfloat16"
    assert result["facts"]["settings"]["storage"] == storage
    assert [row["kind"] for row in result["rows"]] == ["first-token"] * 4 + ["bound"]
    assert list(tmp_path.iterdir()) == [], "no index is left"


def test_documents_of_random_weights_have_their_length_and_words_are_no_bytes() -> None:
    model = random_model("tiny", "float32", "cpu")
    assert [len(model.document_token_ids(each)) for each in documents_of(model, 60, 5, 0)] == [60] * 5
    text = documents_of(model, 200, 1, 0)[0].text
    assert 3 < len(text) / 200 < 7, "characters per token, as in tokenizers that are in use"
    assert random_model("tiny", "float32", "cpu").fingerprint.digest == model.fingerprint.digest


def test_what_does_not_fit_is_told_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "free_memory", lambda device: int(9e9))
    monkeypatch.setattr(workload, "AutoModelForCausalLM", OnlyMeta)
    with pytest.raises(ValueError, match=r"llama3-8b in bfloat16 needs 20.1 GB on cpu, of which 9.0 GB are free; take"):
        random_model("llama3-8b", "bfloat16", "cpu")
    with pytest.raises(ValueError, match=r"no geometry 'llama4'; there are: tiny, smollm2-135m"):
        random_model("llama4")


class OnlyMeta:
    """Refuses to allocate."""

    @staticmethod
    def from_config(config: object, **settings: object) -> torch.nn.Module:
        lm = LM.from_config(config, **settings)
        assert {parameter.device.type for parameter in lm.parameters()} == {"meta"}
        return lm  # type: ignore[no-any-return]


LM = workload.AutoModelForCausalLM


def test_a_context_that_is_too_long_and_an_unknown_storage_are_told() -> None:
    with pytest.raises(
        ValueError, match=r"2 documents of 2000 tokens and a question make \d+ tokens, this model takes"
    ):
        main(Subject(TINY), Setting(documents=2, tokens=2000))
    with pytest.raises(ValueError, match="not on 'tape'"):
        Setting(storage="tape")  # type: ignore[arg-type]


def test_reading_compares_three_ways_over_the_same_tokens() -> None:
    result = reading.main(
        Subject(TINY, "float32"), reading.Setting(documents=2, shortest=30, longest=40, repetitions=2)
    )
    assert [row["cell"]["pass"] for row in result.rows] == [reading.BARE, reading.ENCODE, reading.READ]
    assert len({row["tokens"] for row in result.rows}) == 1
    assert "times as long as the embedding pass" in " ".join(result.show().split())


def test_a_read_pass_that_costs_too_much_is_told() -> None:
    seconds = {reading.BARE: [1.0], reading.ENCODE: [2.0], reading.READ: [3.0]}
    rows = [{"kind": "reading", "cell": {"pass": name}, "seconds": s, "tokens": 10} for name, s in seconds.items()]
    lost = reading.sections({"settings": {}}, rows)[-1].tables[0].rows
    assert [row[0].split()[0] for row in lost] == ["read_documents", "encode_document"]


def test_lifting_is_a_way_of_its_own(tiny_model: GritModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether random documents are lifted would be chance."""
    assert tiny_model.rotation is not None
    own = Lifter(tiny_model.lm, RetrievalHeads(((1, 3), (2, 0)), 1.0), tiny_model.rotation)
    monkeypatch.setattr(tiny_model.decoder, "lifter", own)
    with Index.create(tmp_path / "index", model=tiny_model) as index:
        index.add([f"{place} has owls and hens" for place in PLACES[:3]])
        names = list(first_token.ways(index, first_token.Setting(documents=3)))
        assert names == ["doc-query", "doc-cache", "doc-cache, lifted"]
        assert "doc-cache, lifted" not in first_token.ways(index, first_token.Setting(documents=1))
        hits = [Hit(hit.document, 1 / hit.rank, hit.rank) for hit in index.search("How many owls?", k=3)]
        for always in (True, False):
            with first_token.lifting(tiny_model, always):
                answer = RAG(index, k=3).ask("How many owls?", hits=hits, max_new_tokens=1)
            assert any(hit.is_complement for hit in answer.hits) == always
    assert tiny_model.decoder.lifter is own
