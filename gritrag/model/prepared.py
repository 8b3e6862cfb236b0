"""A model that is loaded, proved, and in memory once."""

from pathlib import Path

import torch

from gritrag.model.load import Loaded, load
from gritrag.model.packed import Packed
from gritrag.model.pages import can_give_back
from gritrag.model.probe_cache import probe_once
from gritrag.model.probed import Probed


def prepare(
    name: str | Path, dtype: torch.dtype, device: torch.device, trust_remote_code: bool, has_half_weights: bool
) -> tuple[Loaded, Probed]:
    """Load a model and prove what it can. See `load` for arguments and errors.

    Where its weights are packed, they are in memory in that form only. What they were packed from lies in a mapped
    file: in that of the model, or in a copy, which is written at the first load.
    """
    loaded, probed = _proved(name, dtype, device, trust_remote_code, has_half_weights)
    if can_give_back():
        is_of_file = all(each.is_of_file for each in _packed(probed))
        if not is_of_file and loaded.copy is not None and loaded.copy.keep(loaded.lm):
            del loaded, probed
            loaded, probed = _proved(name, dtype, device, trust_remote_code, has_half_weights)
        for each in _packed(probed):  # probes have read them
            each.give_back()
    return loaded, probed


def _proved(
    name: str | Path, dtype: torch.dtype, device: torch.device, trust_remote_code: bool, has_half_weights: bool
) -> tuple[Loaded, Probed]:
    loaded = load(name, dtype, device, trust_remote_code, has_half_weights)
    done = " halved" if has_half_weights else ""
    return loaded, probe_once(loaded.lm, f"{loaded.weights} {loaded.adapter}{done}")


def _packed(probed: Probed) -> list[Packed]:
    return [] if probed.step is None else probed.step.packed
