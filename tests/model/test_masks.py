"""What a model makes of masks decides what it is asked for: no answer may depend on others in its batch, nor on a bias
that its model takes for a mask."""

from pathlib import Path

import pytest
import torch
from architectures import make_tokenizer
from causal_lms import here, tiny_config, tiny_lm
from likelihoods import check_as_read_in_full
from transformers import AutoModelForCausalLM, PreTrainedConfig

from gritrag import RAG, Document, Hit, Index
from gritrag.model.context import Context, Part
from gritrag.model.grit import GritModel
from gritrag.model.inputs import inputs
from gritrag.model.probed import Masks
from gritrag.model.probes import probe
from gritrag.model.sampling import Sampling

TEXTS = ["seven boats lie at the landing stage near the old mill", "a mill"]
QUESTION = "where do the boats lie?"
SAMPLING = Sampling(max_new_tokens=6, lookup=False)

MASKS = {
    "phi": Masks(),
    "gpt2": Masks(),
    "olmo2": Masks(),
    "mpt": Masks(in_rows=False, with_bias=False),  # ALiBi in columns, and a bias hides
    "bart": Masks(in_rows=False),  # positions in columns
    "bloom": Masks(by_token=False, with_bias=False),
    "doge": Masks(with_bias=False),  # a bias hides
    "xglm": Masks(by_token=False),  # attention in a way of its own
}
WINDOWS = ["gpt_neo", "llama4_text", "gemma3_text", "mistral"]
ALONE = ["mpt", "bart", "roformer", *WINDOWS]


def model_of(architecture: str, dtype: torch.dtype = torch.float32) -> GritModel:
    return GritModel(tiny_lm(architecture).to(dtype), make_tokenizer())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", here(*MASKS))
def test_masks_of_every_kind_of_model(architecture: str, dtype: torch.dtype) -> None:
    assert probe(tiny_lm(architecture).to(dtype)).masks == MASKS[architecture]


@pytest.mark.parametrize("architecture", WINDOWS)
def test_layers_that_see_a_part_are_windows(architecture: str) -> None:
    decoder = model_of(architecture).decoder
    assert (decoder.has_window, decoder.reads_alone, decoder.takes_biases) == (True, True, False)


@pytest.mark.parametrize("architecture", here(*ALONE, "phi", "bloom", "doge"))
def test_an_answer_is_that_of_its_context_alone(architecture: str) -> None:
    model = model_of(architecture)
    states = [reading.state for reading in model.read_documents(TEXTS)]
    question = model.prompts.question_ids(QUESTION, has_documents=True)
    contexts = [Context.of(*states, question), Context.of(states[1], question[:7]), Context.of(question[:3])]
    together, alone = (_said(model, *given) for given in (contexts, [contexts[:1], contexts[1:2], contexts[2:]]))
    assert together == alone
    assert len({tuple(tokens) for tokens in together}) == 3


def _said(model: GritModel, *contexts: Context | list[Context]) -> list[list[int]]:
    """Of a batch, or of several batches."""
    if isinstance(contexts[0], list):
        return [tokens for batch in contexts for tokens in _said(model, *batch)]
    decoding = model.decoder.decode(contexts, SAMPLING)  # type: ignore[arg-type]
    list(decoding)
    return [completion.token_ids for completion in decoding.completions]


def test_padding_eats_into_windows_that_are_wider_than_what_is_probed() -> None:
    config = tiny_config("mistral")
    config.sliding_window = 64
    model = model_from(config)
    assert probe(model.lm).masks.in_rows
    states = [reading.state for reading in model.read_documents(TEXTS)]
    contexts = [Context.of(states[0], list(range(3, 80))), Context.of(states[0], [90, 91])]
    assert _said(model, *contexts) == _said(model, contexts[:1], contexts[1:])


def model_from(config: PreTrainedConfig) -> GritModel:
    torch.manual_seed(0)
    return GritModel(AutoModelForCausalLM.from_config(config).eval(), make_tokenizer())


def llama_4() -> GritModel:
    """Its layers without positions scale queries by their column, here from the 64th on: not seen by the probe."""
    config = tiny_config("llama4_text")
    config.attn_temperature_tuning, config.floor_scale, config.attention_chunk_size = True, 64, 512
    return model_from(config)


@pytest.mark.parametrize("architecture", [*ALONE, "llama 4 that counts padding"])
def test_a_question_is_as_probable_as_behind_the_text(architecture: str) -> None:
    model = llama_4() if " " in architecture else model_of(architecture)
    check_as_read_in_full(model, TEXTS, QUESTION)


@pytest.mark.parametrize("architecture", here("doge"))
def test_a_bias_that_would_hide_documents_is_left_out(architecture: str, tmp_path: Path) -> None:
    model = model_of(architecture)
    documents = [Document(text, id=str(number)) for number, text in enumerate(TEXTS)]
    hits = [Hit(documents[0], 1.0, 1), Hit(documents[1], 0.9, 2)]
    with Index.create(tmp_path / "index", model=model) as index:
        index.add(documents)
        said = [RAG(index, relevance_bias=bias).ask(QUESTION, hits=hits, max_new_tokens=6) for bias in (8.0, 0.0)]
    assert said[0].text == said[1].text
    assert said[0].usage.cached_tokens > 0


@pytest.mark.parametrize("architecture", ["phi", "olmo2", "falcon", "gemma"])
def test_a_document_far_below_the_best_is_not_seen(architecture: str) -> None:
    """The law of what takes a bias: so low a bias is a mask."""
    model = model_of(architecture)
    assert model.decoder.takes_biases
    far, best = (reading.state for reading in model.read_documents(TEXTS))
    question = tuple(model.prompts.question_ids(QUESTION, has_documents=True))
    hidden = Context((Part(far, -1e4, True), Part(best, 0.0, True), Part(question)))
    alone = Context((Part(best), Part(question)), start=len(far) - len(best))
    logits = [_logits(model, context) for context in (hidden, alone, Context.of(far, best, question))]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)
    assert (logits[2] - logits[0]).abs().max() > 0.01


@torch.inference_mode()
def _logits(model: GritModel, context: Context) -> torch.Tensor:
    cache, given = model.decoder.place([context], SAMPLING), inputs([context], model.device)
    return model.forwards.best.logits(given.ids, given.positions, given.mask, cache)[0, -1]


@pytest.mark.parametrize("architecture", ["bloom", "xglm", "gpt_neo", "llama4_text", "gemma3_text"])
def test_what_takes_no_mask_by_token_is_not_read_again(architecture: str, tmp_path: Path) -> None:
    with Index.create(tmp_path / "index", model=model_of(architecture)) as index:
        with pytest.raises(ValueError, match="recompute is not for models"):
            RAG(index, recompute=0.5)
        RAG(index)
