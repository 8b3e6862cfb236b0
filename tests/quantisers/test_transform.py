"""Laws of transform coding: bits that pack, a basis that loses less than levels do, and a calibration that is known."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gritrag.index.codecs import CODECS, get_codec
from gritrag.model.grit import GritModel
from gritrag.model.state import DocumentState
from gritrag.quantisers.calibration import fit
from gritrag.quantisers.transform import Bits, Transform
from gritrag.train.calibrate import calibrate, query_moments

LAYERS, HEADS, HEAD_DIM = 4, 2, 8
START = 50 * torch.ones(2, LAYERS, HEADS, 3, HEAD_DIM)
TEXTS = [
    f"{word} and {other} went up the hill" for word in ("Ann", "Bo", "Cy", "Di") for other in ("Eve", "Flo", "Gus")
]


def numbers(tokens: int, seed: int = 0) -> torch.Tensor:
    """`[L, H, T, K]`: few causes, many numbers, each with a mean, as in a model."""
    shared, draw = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    causes = torch.randn(tokens, 12, generator=draw) * torch.logspace(0.5, -1.0, 12)
    mixing = torch.randn(12, LAYERS * HEADS * HEAD_DIM, generator=shared)
    rest = 0.05 * torch.randn(tokens, LAYERS * HEADS * HEAD_DIM, generator=draw)
    flat = causes @ mixing + rest + 3 * torch.randn(LAYERS * HEADS * HEAD_DIM, generator=shared)
    return flat.view(tokens, LAYERS, HEADS, HEAD_DIM).permute(1, 2, 0, 3).contiguous()


def moments() -> torch.Tensor:
    """Queries that look almost only along two channels of each head."""
    return torch.diag_embed(torch.tensor([100.0, 100.0, *[0.01] * 6])).expand(LAYERS, HEADS, -1, -1)


@pytest.fixture(scope="module")
def transform() -> Transform:
    keys, values = numbers(600), numbers(600, seed=1)
    return Transform(fit(keys, None, 8, blocks=2), fit(values, None, 8, blocks=2), START)


def error(kept: torch.Tensor, read: torch.Tensor) -> float:
    return float((kept - read).norm() / (read - read.mean(2, keepdim=True)).norm())


@given(
    eight=st.integers(0, 5),
    four=st.integers(0, 4),
    two=st.integers(0, 3),
    tokens=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_whole_numbers_come_out_of_the_bytes_as_they_went_in(
    eight: int, four: int, two: int, tokens: int, seed: int
) -> None:
    bits = Bits(eight, 2 * four, 4 * two)
    most = bits.levels()
    codes = (torch.rand(3, tokens, len(most), generator=torch.Generator().manual_seed(seed)) * most).floor()
    joined = bits.join(codes)
    assert joined.dtype == torch.uint8
    assert joined.shape == (3, tokens, bits.bytes)
    assert torch.equal(bits.part(joined), codes)


@pytest.mark.parametrize("limit", [0, 1, 7, 16, 32, 64, 1000])
def test_a_basis_keeps_to_its_bytes(limit: int) -> None:
    basis = fit(numbers(200), None, limit, blocks=2)
    assert basis.bits.bytes <= limit
    assert basis.bits.directions <= LAYERS // 2 * HEADS * HEAD_DIM
    assert basis.pack(numbers(5)).shape == (2, 5, basis.bits.bytes)


def test_more_bytes_lose_less_also_of_documents_that_were_not_fitted() -> None:
    unseen, errors = numbers(50, seed=9), []
    for limit in (0, 2, 4, 8, 16, 32):
        basis = fit(numbers(600), None, limit, blocks=2)
        errors.append(error(basis.unpack(basis.pack(unseen)), unseen))
    assert errors == sorted(errors, reverse=True)
    assert 0.9 < errors[0] < 1.1
    assert errors[-1] < 0.03


def test_fewer_blocks_lose_less_for_the_same_bytes() -> None:
    unseen = numbers(50, seed=9)
    bases = [fit(numbers(600), None, 16 // blocks, blocks) for blocks in (4, 2, 1)]
    errors = [error(basis.unpack(basis.pack(unseen)), unseen) for basis in bases]
    assert errors == sorted(errors, reverse=True)


def test_what_queries_do_not_look_along_may_be_lost() -> None:
    """The same bytes: less error where queries look, more elsewhere."""
    unseen = numbers(50, seed=9)
    plain, weighted = (fit(numbers(600), m, 4, blocks=2) for m in (None, moments()))
    off = {
        name: basis.unpack(basis.pack(unseen)) - unseen for name, basis in (("plain", plain), ("weighted", weighted))
    }
    assert off["weighted"][..., :2].norm() < 0.9 * off["plain"][..., :2].norm()
    assert off["weighted"][..., 2:].norm() > off["plain"][..., 2:].norm()


@pytest.mark.parametrize("tokens", [1, 2, 127, 128, 129, 300])
def test_runs_are_all_tokens_in_order(transform: Transform, tokens: int) -> None:
    packed = transform.pack(numbers(tokens), numbers(tokens, seed=1))
    runs = list(transform.runs(packed, torch.empty(transform.shape(packed))))
    assert [token for group, _ in runs for token in range(tokens)[group]] == list(range(tokens))
    assert all(run.shape == (LAYERS, HEADS, group.stop - group.start, HEAD_DIM) for group, run in runs)
    keys, values = transform.unpack(packed)
    assert error(keys, numbers(tokens)) < 0.2 or tokens == 1
    assert keys.shape == values.shape == (LAYERS, HEADS, tokens, HEAD_DIM)


def test_numbers_far_from_all_that_was_fitted_are_clipped_and_stay_finite(transform: Transform) -> None:
    keys, values = transform(numbers(3) * 1e30, -numbers(3) * 1e38)
    assert keys.isfinite().all()
    assert values.isfinite().all()


@pytest.mark.parametrize("same", [0, 1, 2, 3])
def test_what_all_documents_begin_with_comes_from_the_calibration(transform: Transform, same: int) -> None:
    state = torch.stack([numbers(20), numbers(20, seed=1)])
    plain_keys, plain_values = transform(*state)
    state[:, :, :, :same] = START[:, :, :, :same]
    keys, values = transform(*state)
    assert torch.equal(torch.stack([keys, values])[:, :, :, :same], START[:, :, :, :same])
    assert torch.equal(keys[:, :, same:], plain_keys[:, :, same:])
    assert torch.equal(values[:, :, same:], plain_values[:, :, same:])


def test_a_document_may_be_shorter_than_what_others_begin_with(transform: Transform) -> None:
    keys, values = transform(*START[:, :, :, :2])
    assert torch.equal(torch.stack([keys, values]), START[:, :, :, :2])


def test_a_calibration_comes_back_from_its_file(transform: Transform, tmp_path: Path) -> None:
    transform.save(tmp_path / "states.safetensors")
    again = Transform.load(tmp_path / "states.safetensors")
    packed = transform.pack(numbers(20), numbers(20, seed=1))
    again.check(packed)
    for kept, expected in zip(again.unpack(packed), transform.unpack(packed), strict=True):
        assert torch.equal(kept, expected)


def test_a_codec_takes_a_calibration_from_its_file(transform: Transform, tmp_path: Path) -> None:
    transform.save(tmp_path / "states.safetensors")
    codec = get_codec(f"transform:{tmp_path / 'states.safetensors'}")
    state = DocumentState(numbers(200), numbers(200, seed=1), torch.arange(200), "causal")
    tensors = codec.encode(state)
    back = codec.decode(tensors, "causal")
    assert torch.equal(back.token_ids, state.token_ids)
    assert not back.is_lossless
    assert torch.equal(back[130:140].keys, back.keys[:, :, 130:140])
    fixed = tensors["calibration"].nbytes + tensors["leading"].nbytes
    elements = 2 * LAYERS * HEADS * HEAD_DIM
    assert sum(t.nbytes for t in tensors.values()) - fixed == codec.bytes_per_token(elements) * 200


def test_what_another_calibration_packed_is_refused(transform: Transform) -> None:
    other = Transform(fit(numbers(300, seed=5), None, 8, blocks=2), transform.values, START)
    packed = other.pack(numbers(5), numbers(5, seed=1))
    with pytest.raises(ValueError, match=r"packed with calibration [0-9a-f]{16}, this one is [0-9a-f]{16}"):
        transform.check(packed)


def test_states_of_another_model_are_refused(transform: Transform) -> None:
    with pytest.raises(ValueError, match=r"\[4, 2, 8\] layers, heads and head dim, this one has \[4, 2, 7\]"):
        transform.pack(numbers(5)[..., :7], numbers(5)[..., :7])


@pytest.mark.parametrize("content", [b"", b"no tensors", None])
def test_a_file_that_is_no_calibration_is_refused(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "states.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"states\.safetensors is no calibration"):
        get_codec(f"transform:{file}")


def test_queries_are_seen_as_keys_meet_them(tiny_model: GritModel) -> None:
    found = query_moments(tiny_model, TEXTS[:3], seed=0)
    shape = tiny_model.shape
    assert found.shape == (shape.layers, shape.heads, shape.head_dim, shape.head_dim)
    assert torch.equal(found, query_moments(tiny_model, TEXTS[:3], seed=0))
    assert (torch.linalg.eigvalsh(found) > -1e-5).all()


def test_a_calibrated_model_keeps_most_of_what_it_reads_and_all_of_how_it_begins(tiny_model: GritModel) -> None:
    calibrated = calibrate(tiny_model, TEXTS * 3)
    common = calibrated.start.shape[3]
    assert 0 < common < 30
    state = tiny_model.read_documents(["Cy and Eve went down the hill"])[0].state
    keys, values = calibrated(state.keys, state.values)
    assert error(keys[:, :, :common], state.keys[:, :, :common]) < 0.002
    assert error(keys, state.keys) < 1
    assert error(values, state.values) < 1


def test_too_little_text_is_told_with_how_much_is_needed(tiny_model: GritModel) -> None:
    with pytest.raises(ValueError, match="tokens are too few to calibrate on; give at least"):
        calibrate(tiny_model, ["one"])


def test_the_default_model_comes_with_a_calibration_of_at_most_3000_bytes_per_token() -> None:
    assert "transform" in CODECS
    codec = get_codec("transform")
    draw = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 30, 3, 150, 64, generator=draw)
    tensors = codec.encode(DocumentState(keys, values, torch.arange(150), "causal"))
    assert sum(tensor.nbytes for tensor in tensors.values()) <= 3000 * 150
    assert codec.decode(tensors, "causal").keys.shape == keys.shape
