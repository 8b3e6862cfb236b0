"""A model as a field of a LangChain object: a loaded one, or any name that `GritModel.from_pretrained` takes."""

from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import BeforeValidator

from gritrag.index.reader import given_reader
from gritrag.model.grit import GritModel

__all__ = ["HoldsModel", "Model", "loaded", "model_name"]


def loaded(model: Any) -> Any:
    """A model as it was given; where it is a name, the model of that name, loaded once for all that hold it."""
    return given_reader(model) if isinstance(model, str | Path) else model


Model = Annotated[GritModel, BeforeValidator(loaded)]


class HoldsModel:
    """What a loaded model is in stays in its process."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} holds a loaded model and cannot be pickled: pass on the names of model and "
            "index, and make it there, by the name of the model or the path of the index"
        )


def model_name(model: GritModel) -> str:
    """What to call a model in traces; its fingerprint, not its name, says which one it is."""
    return model.config.base or str(model.lm.config.model_type)
