"""Weights as a model computes with them, kept in the cache folder, so that they can be mapped.

A file of weights is mapped where it holds them in the dtype that is asked for. No file holds what an adapter, another
dtype or rounding makes of them: they take memory of their own, beside the form in which they are packed. So they are
written once, and are those of a file at the next load, which needs no adapter then.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
import xxhash
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gritrag.folders import cache_folder
from gritrag.model.identity import hash_files
from gritrag.model.inner_errors import INNER_ERRORS

logger = logging.getLogger(__name__)

FOLDER = "weights-1"
CHECKSUM = "checksum"

KEPT = 4
"""So many copies are kept, those that were used last."""


class WeightCopy:
    """The copy of one model's weights, which may not be there.

    Args:
        facts: whatever the weights depend on.
    """

    def __init__(self, facts: Sequence[str]) -> None:
        self.folder = cache_folder() / FOLDER / xxhash.xxh3_128_hexdigest("\n".join(facts).encode())

    def load(self, directory: Path, dtype: torch.dtype) -> PreTrainedModel | None:
        """The model with these weights; None where there is no whole copy.

        Args:
            directory: whose configuration it has.
            dtype: of the weights.
        """
        if not self._is_whole():
            return None
        config = AutoConfig.from_pretrained(directory)
        try:
            lm, info = cast(
                "tuple[PreTrainedModel, dict[str, Any]]",
                AutoModelForCausalLM.from_pretrained(
                    self.folder, config=config, dtype=dtype, output_loading_info=True, local_files_only=True
                ),
            )
        except torch.OutOfMemoryError:
            raise
        except (OSError, SafetensorError, *INNER_ERRORS) as error:  # another process may just have removed it
            logger.debug("a copy of weights does not load: %s", error)
            return None
        return None if info["missing_keys"] else lm

    def _is_whole(self) -> bool:
        try:
            is_whole = hash_files(self.folder) == (self.folder / CHECKSUM).read_text("utf-8")
        except (OSError, ValueError):  # nothing is there
            return False
        if not is_whole:
            logger.warning("weights in %s are damaged: made again", self.folder)
            shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # a cache that is only read
            os.utime(self.folder)
        return is_whole

    def keep(self, lm: PreTrainedModel) -> bool:
        """Write the weights of a model; whether that was done now. It is not where there is little room on the disk,
        nor where the folder cannot be written."""
        nbytes = sum(parameter.nbytes for parameter in lm.parameters())
        parent = self.folder.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            if self.folder.exists() or shutil.disk_usage(parent).free < 2 * nbytes:
                return False
            logger.info("keeping weights as they are computed with, %.1f GB, in %s", nbytes / 1e9, self.folder)
            with tempfile.TemporaryDirectory(dir=parent) as scratch:
                made = Path(scratch) / "model"
                lm.save_pretrained(made)
                (made / CHECKSUM).write_text(hash_files(made), "utf-8")
                made.rename(self.folder)
            self._forget_others()
        except (OSError, SafetensorError) as error:
            logger.debug("weights are not kept: %s", error)
            return False
        return True

    def _forget_others(self) -> None:
        """Those that were not used for longest, and what was left by a process that was killed while it wrote one."""
        others = sorted(self.folder.parent.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
        for folder in others[KEPT:]:
            shutil.rmtree(folder, ignore_errors=True)
