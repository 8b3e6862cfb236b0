"""Weights as a model computes with them, kept in the cache folder, so that they can be mapped.

A file of weights is mapped where it holds them in the dtype that is asked for. No file holds what an adapter, another
dtype or rounding makes of them: they take memory of their own, beside the form in which they are packed. So they are
written once, and are those of a file at the next load, which needs no adapter then. Weights are taken from a copy, and
whether an adapter has parted words that come in from words that go out: configuration and settings of generation are
those of the model's folder, which may change.
"""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
import xxhash
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from gritrag.folders import cache_folder
from gritrag.model.identity import hash_files
from gritrag.model.inner_errors import INNER_ERRORS

logger = logging.getLogger(__name__)

FOLDER = "weights-1"
CHECKSUM = "checksum"
SCRATCH = "writing-"
"""Folders that begin so are being written, or were left by a process that was killed."""

ABANDONED = 3600.0
"""Seconds after which nobody is writing any more."""

KEPT = 4
"""So many copies are kept, those that were used last."""

ONE_FILE = "1000TB"


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
        try:
            config = AutoConfig.from_pretrained(directory)
            if not getattr(AutoConfig.from_pretrained(self.folder), "tie_word_embeddings", True):
                config.tie_word_embeddings = False  # peft says so: a fact of the fingerprint
            lm, info = cast(
                "tuple[PreTrainedModel, dict[str, Any]]",
                AutoModelForCausalLM.from_pretrained(
                    self.folder,
                    config=config,
                    generation_config=_generation_config(directory),
                    dtype=dtype,
                    output_loading_info=True,
                    local_files_only=True,
                ),
            )
        except torch.OutOfMemoryError:
            raise
        except (OSError, SafetensorError, *INNER_ERRORS) as error:  # another process may just have removed it
            logger.debug("a copy of weights does not load: %s", error)
            missing = True
        else:
            missing = bool(info["missing_keys"])
        if missing:  # the folder of the model says something else now than when they were written
            shutil.rmtree(self.folder, ignore_errors=True)
            return None
        return lm

    def _is_whole(self) -> bool:
        if not self.folder.is_dir():
            return False
        try:
            is_whole = hash_files(self.folder) == (self.folder / CHECKSUM).read_text("utf-8")
        except PermissionError:  # it is somebody else's
            return False
        except (OSError, ValueError):  # a file of it is not there
            is_whole = False
        if not is_whole:
            logger.warning("weights in %s are damaged: made again", self.folder)
            shutil.rmtree(self.folder, ignore_errors=True)
            return False
        with suppress(OSError):  # a cache that is only read
            os.utime(self.folder)
        return True

    def keep(self, lm: PreTrainedModel) -> bool:
        """Write the weights of a model, unless another process has; whether they are there now. They are not where
        there is little room on the disk, nor where the folder cannot be written."""
        nbytes = sum(parameter.nbytes for parameter in lm.parameters())
        parent = self.folder.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            if self._is_whole():
                return True
            if self.folder.exists():  # it is somebody else's, and cannot be replaced
                return False
            self._forget_others()
            if shutil.disk_usage(parent).free < 2 * nbytes:
                return False
            logger.info("keeping weights as they are computed with, %.1f GB, in %s", nbytes / 1e9, self.folder)
            with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=parent) as scratch:
                self._write(lm, Path(scratch) / "model")
        except (OSError, SafetensorError, *INNER_ERRORS) as error:  # transformers refuses to save some that it loads
            logger.debug("weights are not kept: %s", error)
            return self._is_whole()  # another process may have been faster
        return True

    def _write(self, lm: PreTrainedModel, made: Path) -> None:
        lm.save_pretrained(made, max_shard_size=ONE_FILE)
        (made / CHECKSUM).write_text(hash_files(made), "utf-8")
        for file in made.iterdir():  # a mapped file that somebody shortens ends the process
            file.chmod(0o444)
        made.rename(self.folder)

    def _forget_others(self) -> None:
        """Those that were not used for longest, and what was left by a process that was killed while it wrote one."""
        ages: list[tuple[float, Path]] = []
        for folder in self.folder.parent.iterdir():
            with suppress(FileNotFoundError):  # another process was faster
                ages.append((time.time() - folder.stat().st_mtime, folder))
        copies = sorted(each for each in ages if not each[1].name.startswith(SCRATCH))
        left = [each for each in ages if each[1].name.startswith(SCRATCH) and each[0] > ABANDONED]
        for _, folder in [*copies[KEPT - 1 :], *left]:
            shutil.rmtree(folder, ignore_errors=True)


def _generation_config(directory: Path) -> GenerationConfig:
    """As transformers finds it where weights are loaded from that folder."""
    try:
        return GenerationConfig.from_pretrained(directory)
    except OSError:
        return GenerationConfig.from_pretrained(directory, config_file_name="config.json", _from_model_config=True)
