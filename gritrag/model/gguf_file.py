"""GgufFile: what a GGUF file says of its model that transformers does not take over.

transformers reads sizes, weights and vocabulary of such a file. It drops how rotary angles are scaled, and the width of
heads: a model with them would load, and answer wrongly. Here both are read from the file, or the file is refused.

Shape letters: `F` frequencies, half of what is rotated of a head.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, TokenType
from gguf.quants import dequantize
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

PLAIN = ("F32", "F16", "F64", "I8", "I16", "I32", "I64")
"""Types whose numbers stand in a file as they are."""

FACTORS_PER_FREQUENCY = "rope_freqs.weight"
LONG_FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight")


class GgufFile:
    """The metadata of one file.

    Raises:
        ValueError: no GGUF file, one that is cut off, or one with weights that cannot be unpacked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            reader = GGUFReader(path)
        except (ValueError, IndexError, KeyError) as error:
            told = str(error).splitlines()[0]
            raise ValueError(
                f"{path} cannot be read as a GGUF file: {told}. It may be cut off, or use a quantisation that this "
                "version of gguf does not know: download it again, or take one in Q8_0, Q4_K_M or F16"
            ) from None
        self._fields: Mapping[str, Any] = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.architecture = str(self._value("general.architecture", ""))
        self._check_types()

    def _value(self, key: str, default: Any = None) -> Any:
        field = self._fields.get(key)
        return default if field is None else field.contents()

    def _of_model(self, key: str, default: Any = None) -> Any:
        return self._value(f"{self.architecture}.{key}", default)

    def _check_types(self) -> None:
        kinds = {tensor.tensor_type for tensor in self._tensors.values()}
        unread = sorted(kind.name for kind in kinds if kind.name not in PLAIN and not _is_read(kind))
        if unread:
            raise ValueError(
                f"{self.path} holds weights in {', '.join(unread)}, which the gguf library cannot unpack; take the "
                "same model in another quantisation, such as Q8_0, Q4_K_M or F16"
            )

    # --- rotary embedding --------------------------------------------------------------------------------------------

    @property
    def rope_scaling(self) -> dict[str, Any]:
        """How angles are scaled, in the words of `rope_parameters` of transformers; empty where they are not.

        Raises:
            ValueError: scaling that transformers cannot be told of.
        """
        old = self._of_model("rope.scale_linear")  # as files of 2023 say it
        kind = str(self._of_model("rope.scaling.type", "none" if old is None else "linear"))
        factor = float(self._of_model("rope.scaling.factor", old or 1.0))
        if kind == "longrope" or any(name in self._tensors for name in LONG_FACTORS):
            raise self._refusal("longrope")
        factors_F = self._factors()
        if factors_F is not None and kind not in ("none", "linear"):
            raise self._refusal(f"{kind} beside factors per frequency")
        if factors_F is not None:
            return self._llama3(factors_F)
        if kind == "none" or factor == 1.0:
            return {}
        if kind == "linear":
            return {"rope_type": "linear", "factor": factor}
        if kind == "yarn":
            return self._yarn(factor)
        raise self._refusal(kind)

    def _refusal(self, what: str) -> ValueError:
        return ValueError(
            f"{self.path} scales its rotary angles by {what}, which cannot be read from a GGUF file: answers would be "
            "wrong. Take the same model as safetensors"
        )

    def _yarn(self, factor: float) -> dict[str, Any]:
        """YaRN (Peng et al. 2023, arXiv 2309.00071), with the defaults of llama.cpp."""
        told = {
            name: self._of_model(f"rope.scaling.{key}")
            for name, key in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow"))
        }
        if float(self._of_model("rope.scaling.yarn_ext_factor", 1.0)) != 1.0:
            raise self._refusal("yarn with another share of extrapolation")
        original = self._of_model("rope.scaling.original_context_length")
        if original is None:
            raise self._refusal("yarn without the context length that it was trained with")
        attention = self._of_model("rope.scaling.attn_factor", self._of_model("rope.scaling.yarn_attn_factor"))
        scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": int(original)}
        if attention is not None:
            scaling["attention_factor"] = float(attention) * (0.1 * math.log(factor) + 1.0)
        return scaling | {name: float(value) for name, value in told.items() if value is not None}

    def _factors(self) -> np.ndarray | None:
        """What each frequency is divided by, float64 `[F]`; None where that is 1."""
        tensor = self._tensors.get(FACTORS_PER_FREQUENCY)
        if tensor is None:
            return None
        factors_F = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float64).reshape(-1)
        return None if np.allclose(factors_F, 1) else factors_F

    def _llama3(self, factors_F: np.ndarray) -> dict[str, Any]:
        """The settings of Llama 3 that give these factors; a file holds the factors only.

        Between two wavelengths the share `s` of a frequency that is kept falls linearly with 1 / wavelength, from 1 to
        0: `s = (original / wavelength - low) / (high - low)`. All of it is fixed by one of the three; `low` is 1.
        """
        base = float(self._of_model("rope.freq_base", 10000.0))
        wavelengths_F = 2 * math.pi * base ** (np.arange(len(factors_F)) / len(factors_F))
        factor = float(factors_F.max())
        kept_F = (1 / factors_F - 1 / factor) / (1 - 1 / factor)
        between_F = (kept_F > 1e-4) & (kept_F < 1 - 1e-4)
        if between_F.sum() > 1:
            slope, offset = np.polyfit(1 / wavelengths_F[between_F], kept_F[between_F], 1)
            high, original = 1 - 1 / offset, -slope / offset
        else:  # one says where, and none leaves a choice: those of Llama 3 are tried
            high = 4.0
            longest = wavelengths_F[kept_F >= 1 - 1e-4].max(initial=0.0)
            original = float((wavelengths_F * (3 * kept_F + 1))[between_F].max(initial=4 * longest + 1))
        scaling = {
            "rope_type": "llama3",
            "factor": round(factor, 4),
            "low_freq_factor": 1.0,
            "high_freq_factor": round(float(high), 2),
            "original_max_position_embeddings": round(float(original)),
        }
        if not np.allclose(_llama3_factors(scaling, wavelengths_F), factors_F, rtol=2e-3):
            raise self._refusal("factors per frequency that are not those of Llama 3")
        return scaling

    # --- what a config and a tokenizer are told ----------------------------------------------------------------------

    def correct(self, config: PreTrainedConfig) -> None:
        """Set what transformers has left at its defaults.

        Raises:
            ValueError: as `rope_scaling`.
        """
        text: Any = config.get_text_config()
        scaling = self.rope_scaling
        if scaling:
            text.rope_parameters = {**_of_all_layers(text.rope_parameters), **scaling}
        width = self._of_model("attention.key_length")
        if isinstance(width, int) and isinstance(getattr(text, "head_dim", None), int):
            text.head_dim = width

    def split_tokens(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Tokens that the file calls whole (control and user-defined ones), and this tokenizer cuts into pieces."""
        tokens, kinds = self._value("tokenizer.ggml.tokens", []), self._value("tokenizer.ggml.token_type", [])
        whole = (TokenType.CONTROL, TokenType.USER_DEFINED)
        return [
            token
            for number, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
            if kind in whole and tokenizer.encode(token, add_special_tokens=False) != [number]
        ]


def _is_read(kind: GGMLQuantizationType) -> bool:
    """Asked of the library itself: it says so by raising for an empty array."""
    try:
        dequantize(np.empty((0, 0), dtype=np.uint8), kind)
    except NotImplementedError:
        return False
    except (ValueError, AssertionError, ZeroDivisionError):
        pass  # it can, but not nothing
    return True


def _of_all_layers(rope_parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings that hold for all layers.

    Raises:
        ValueError: they differ from layer to layer, so scaling is that of some only.
    """
    given = dict(rope_parameters or {})
    if any(isinstance(value, Mapping) for value in given.values()):
        raise ValueError("this architecture has rotary angles per kind of layer, and a GGUF file scales all alike")
    return given


def _llama3_factors(scaling: Mapping[str, Any], wavelengths_F: np.ndarray) -> np.ndarray:
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept_F = (scaling["original_max_position_embeddings"] / wavelengths_F - low) / (high - low)
    kept_F = kept_F.clip(0, 1)
    factors: np.ndarray = 1 / ((1 - kept_F) / scaling["factor"] + kept_F)
    return factors
