"""A GritLM checkpoint as its makers published it loads by its name: their weights and format, none of their code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import MistralConfig, MistralForCausalLM

from gritrag import RAG, Document, GritModel, Index
from gritrag.model import names as naming

SPECIALS = ["<unk>", "<s>", "</s>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of GritLM/GritLM-7B, with a tiny random model in them: a SentencePiece vocabulary with byte fallback,
    weights of Mistral, a config that names code, and that code, which must not run."""
    folder = tmp_path_factory.mktemp("GritLM-7B")
    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:?<>|"
    pieces = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁t", "he", "▁the", "<|", "|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("<", "|"), ("|", ">")]
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    backend.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<s>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "chat_template": CHAT_TEMPLATE, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(named))

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4096, "initializer_range": 0.2}
    MistralForCausalLM(MistralConfig(vocab_size=len(pieces), **sizes, **heads)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoModel": "MistralModel", "AutoModelForCausalLM": "MistralForCausalLM"}
    config["auto_map"] = {auto: f"modeling_gritlm7b.{name}" for auto, name in classes.items()}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_gritlm7b.py").write_text("raise RuntimeError('code from the hub was run')")
    return folder


@pytest.fixture
def gritlm(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> GritModel:
    asked: list[str] = []
    monkeypatch.setattr(naming, "snapshot_download", lambda name, **_: asked.append(name) or str(snapshot))
    model = GritModel.from_pretrained("GritLM/GritLM-7B", dtype="float32", device="cpu")
    assert asked == ["GritLM/GritLM-7B"]
    return model


def test_it_reads_as_it_was_trained_to(gritlm: GritModel) -> None:
    config = gritlm.config
    assert (config.template, config.reading, config.pooling) == ("gritlm", "bidirectional", "mean")
    assert gritlm.prompts.template.marker == "<s>"


def test_prompts_are_token_for_token_the_published_ones(gritlm: GritModel) -> None:
    """SentencePiece puts a space before the first word of what it is given: only the first word of a prompt has one."""

    def published(text: str) -> list[int]:
        return gritlm.tokenizer(text, add_special_tokens=False).input_ids

    query = gritlm.prompts.query("the hen, or who?", "Find the one")
    assert query.ids == published("<s><|user|>\nFind the one\n<|embed|>\nthe hen, or who?")
    pooled = [id for id, is_pooled in zip(query.ids, query.is_pooled, strict=True) if is_pooled]
    assert gritlm.tokenizer.decode(pooled) == "the hen, or who?"
    assert gritlm.prompts.query("the hen", None).ids == published("<s><|embed|>\nthe hen")
    assert gritlm.document_token_ids("the hen") == published("<s><|embed|>\nthe hen")
    assert gritlm.prompts.question_ids("who?", has_documents=False) == published("<s><|user|>\nwho?\n<|assistant|>\n")
    chat = [{"role": "user", "content": "who?"}]
    assert gritlm.prompts.prompt_ids(chat) == published("<s><|user|>\nwho?\n<|assistant|>\n")


def test_its_vectors_are_the_mean_of_bidirectional_states_of_the_text(gritlm: GritModel) -> None:
    ids = gritlm.tokenizer("<s><|user|>\nFind it\n<|embed|>\nthe hen", add_special_tokens=False).input_ids
    text = len(gritlm.tokenizer("<s><|user|>\nFind it\n<|embed|>\n", add_special_tokens=False).input_ids)
    seen = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool)
    hidden = gritlm.lm.model(input_ids=torch.tensor([ids]), attention_mask=seen).last_hidden_state[0, text:]
    want = torch.nn.functional.normalize(hidden.mean(0), dim=0).detach()
    np.testing.assert_allclose(gritlm.encode_query(["the hen"], "Find it")[0], want, atol=1e-5)


def test_it_answers_from_an_index(gritlm: GritModel, tmp_path: Path) -> None:
    with Index.create(tmp_path / "index", model=gritlm, states="float32") as index:
        index.add([Document("the hen", id="a"), Document("an owl", id="b")])
        for mode in ("doc-cache", "doc-query", "no-retrieval"):
            answer = RAG(index, mode=mode, k=2).ask("the hen?", max_new_tokens=6)
            assert answer.usage.generated_tokens >= 1
            assert len(answer.hits) == (0 if mode == "no-retrieval" else 2)
