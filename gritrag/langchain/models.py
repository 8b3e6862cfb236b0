"""A model as a field of a LangChain object: a loaded one, or any name that `GritModel.from_pretrained` takes."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from gritrag.model.grit import GritModel

__all__ = ["Model", "model_name"]


def _loaded(model: Any) -> Any:
    return GritModel.from_pretrained(model) if isinstance(model, str | Path) else model


Model = Annotated[GritModel, BeforeValidator(_loaded)]


def model_name(model: GritModel) -> str:
    """What to call a model in traces; its fingerprint, not its name, says which one it is."""
    return model.config.base or str(model.lm.config.model_type)
