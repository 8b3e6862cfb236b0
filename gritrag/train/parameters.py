"""The parameters of a language model that a run trains."""

from pathlib import Path

from transformers import PreTrainedModel

from gritrag.model.adapter import PeftModel, attach
from gritrag.model.low_rank import sum_layers
from gritrag.model.weight_change import linear_layers
from gritrag.train.config import AdapterConfig

__all__ = ["choose_parameters"]


def choose_parameters(lm: PreTrainedModel, settings: AdapterConfig, is_sharded: bool) -> PeftModel | None:
    """Freeze what is not trained; the adapter, where one is."""
    if settings.method == "lora":
        init = Path(settings.init) if settings.init else None
        adapter = attach(lm, settings.rank, settings.alpha, init)
        if not is_sharded:
            sum_layers(lm)
        return adapter
    trained = {id(p) for layer in linear_layers(lm).values() for p in layer.parameters(recurse=False)}
    for parameter in lm.parameters():
        parameter.requires_grad_(settings.embeddings or id(parameter) in trained)
    return None
