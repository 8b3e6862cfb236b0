"""A model as a field of a LangChain object: a loaded one, or any name that `GritModel.from_pretrained` takes."""

from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import BeforeValidator

from gritrag.model.grit import GritModel

__all__ = ["HoldsModel", "Model", "model_name"]


def _loaded(model: Any) -> Any:
    return GritModel.from_pretrained(model) if isinstance(model, str | Path) else model


Model = Annotated[GritModel, BeforeValidator(_loaded)]


class HoldsModel:
    """What a loaded model is in stays in its process."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} holds a loaded model and cannot be pickled: pass on the names of model and "
            "index, and make it there, with GritModel.from_pretrained(name) and Index.open(path, model=model, mode='r')"
        )


def model_name(model: GritModel) -> str:
    """What to call a model in traces; its fingerprint, not its name, says which one it is."""
    return model.config.base or str(model.lm.config.model_type)
