"""Laws of transform coding: bits that pack, a basis that loses less than levels do, and a calibration that is known."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from gritrag.codecs import CODECS, get_codec
from gritrag.codecs.calibration import allot, fit
from gritrag.codecs.transform import Basis, Bits, Transform
from gritrag.index.storage.packed import bytes_per_token, decode, encode
from gritrag.model.grit import GritModel
from gritrag.model.state import DocumentState
from gritrag.train.after.calibrate import calibrate, fisher
from gritrag.train.contexts import Contexts
from gritrag.train.data.steps import Prompted

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


def moments(*weights: float) -> torch.Tensor:
    """What errors in channels cost, alike in all heads; in all channels alike where nothing is told of them."""
    return torch.diag_embed(torch.tensor(weights or [1.0] * HEAD_DIM)).expand(LAYERS, HEADS, -1, -1)


def fitted(most: int, blocks: int = 2, tokens: int = 600, of: torch.Tensor | None = None) -> Basis:
    (basis,) = fit([numbers(tokens)], [moments() if of is None else of], most, blocks)
    return basis


@pytest.fixture(scope="module")
def transform() -> Transform:
    keys, values = fit([numbers(600), numbers(600, seed=1)], [moments(), moments()], 32, blocks=2)
    return Transform(keys, values, START)


def there_and_back(basis: Basis, given: torch.Tensor) -> torch.Tensor:
    return basis.unpack(basis.pack(given)).float()


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
    for joined_TP, codes_TR in zip(joined, codes, strict=True):
        parted = bits.part(joined_TP.T, rows=2)
        assert torch.equal(parted[:-2], codes_TR.T.to(torch.uint8))
        assert (parted[-2:] == 1).all()


@given(most=st.integers(0, 200), seed=st.integers(0, 99), spread=st.floats(0, 4))
def test_bits_keep_to_their_bytes_and_nearly_use_them_up(most: int, seed: int, spread: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    variance_BD = (spread * torch.randn(3, 40, generator=draw)).exp().sort(dim=1, descending=True).values
    bits = allot(variance_BD, most)
    used = sum(of_block.bytes for of_block in bits)
    assert all(of_block.directions <= 40 for of_block in bits)
    assert used <= most
    assert used >= min(most, 3 * 40) - 3 * 3 or spread < 0.5  # where all are alike, all change at once


def test_bits_go_where_errors_would_cost_most() -> None:
    """To one part more than to the other, and to one half of the layers."""
    small, large = torch.ones(LAYERS // 2), 100 * torch.ones(LAYERS // 2)
    weights = torch.cat([small, large])[:, None, None, None] * moments()
    plain, weighted = fit([numbers(600), numbers(600)], [moments(), weights], 24, blocks=2)
    assert plain.bytes + weighted.bytes <= 24
    assert weighted.bytes > plain.bytes
    first, second = weighted.bits
    assert second.bytes > first.bytes


@pytest.mark.parametrize("limit", [0, 1, 7, 16, 32, 64, 1000])
def test_a_basis_keeps_to_its_bytes(limit: int) -> None:
    basis = fitted(limit, tokens=200)
    assert basis.bytes <= limit
    assert basis.pack(numbers(5)).shape == (basis.bytes, 5)


def test_more_bytes_lose_less_also_of_documents_that_were_not_fitted() -> None:
    unseen, errors = numbers(50, seed=9), []
    for limit in (0, 4, 8, 16, 32, 64):
        basis = fitted(limit)
        errors.append(error(there_and_back(basis, unseen), unseen))
    assert errors == sorted(errors, reverse=True)
    assert 0.9 < errors[0] < 1.1
    assert errors[-1] < 0.03


def test_fewer_blocks_lose_less_for_the_same_bytes() -> None:
    unseen = numbers(50, seed=9)
    bases = [fitted(16, blocks) for blocks in (4, 2, 1)]
    errors = [error(there_and_back(basis, unseen), unseen) for basis in bases]
    assert errors == sorted(errors, reverse=True)


def test_what_costs_little_may_be_lost() -> None:
    """The same bytes: less error in channels where it costs, more elsewhere."""
    unseen = numbers(50, seed=9)
    plain, weighted = (fitted(8, of=m) for m in (moments(), moments(100, 100, *[0.01] * 6)))
    off = {name: there_and_back(basis, unseen) - unseen for name, basis in (("plain", plain), ("weighted", weighted))}
    assert off["weighted"][..., :2].norm() < 0.9 * off["plain"][..., :2].norm()
    assert off["weighted"][..., 2:].norm() > off["plain"][..., 2:].norm()


def test_heads_that_cost_nothing_are_no_trouble() -> None:
    basis = fitted(16, of=moments() * torch.tensor([1.0, 0.0])[:, None, None])
    assert there_and_back(basis, numbers(5)).isfinite().all()


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("together", [1, 2, 3, 6])
@pytest.mark.parametrize("tokens", [1, 2, 255, 256, 257, 600])
def test_runs_are_all_layers_and_tokens_once(
    tokens: int, together: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gritrag.codecs.transform.TOGETHER", together)
    given = torch.stack([numbers(tokens), numbers(tokens, seed=1)])
    given[:, :, :, :2] = START[:, :, :, : min(2, tokens)]
    codec = Transform(*fit([numbers(600), numbers(600, seed=1)], [moments(), moments()], 32, blocks), START)
    packed = codec.pack(*given)
    values = torch.full(codec.shape(packed), torch.nan)
    keys, times = torch.full_like(values, torch.nan), torch.zeros(LAYERS, tokens)
    for (layers, group), run in codec.runs(packed, values):
        assert run.shape == keys[layers, :, group].shape
        keys[layers, :, group] = run
        times[layers, group] += 1
    assert (times == 1).all()
    assert torch.equal(torch.stack([keys, values])[:, :, :, :2], START[:, :, :, : min(2, tokens)])
    for part, (kept, read) in enumerate(zip((keys, values), given, strict=True)):
        assert torch.equal(kept, codec.unpack(packed)[part])
        assert tokens < 3 or error(kept[:, :, 2:], read[:, :, 2:]) < 0.2


def with_product(basis: Basis, product: torch.dtype) -> Basis:
    return Basis(basis.bits, product, basis.mean, basis.metric, basis.directions, basis.step)


@pytest.mark.parametrize("mean", [0.0, 300.0])
@pytest.mark.parametrize("limit", [16, 64])
def test_bfloat16_adds_no_more_than_it_rounds(limit: int, mean: float) -> None:
    """Also of numbers that are far from zero, for their spread: what is added to all tokens alike is not rounded."""
    shift = mean * torch.randn(LAYERS, HEADS, 1, HEAD_DIM, generator=torch.Generator().manual_seed(3))
    (basis,) = fit([numbers(600) + shift], [moments()], limit, blocks=4)
    given = numbers(200, seed=5) + shift
    exact, rounded = (there_and_back(with_product(basis, dtype), given) for dtype in (torch.float32, torch.bfloat16))
    off = rounded - exact
    spread = (exact - exact.mean(2, keepdim=True)).square().mean(2, keepdim=True).sqrt()
    assert (off.abs() <= 2**-8 * exact.abs() + 2**-5 * spread).all()
    assert (off.mean(2).abs() <= 2**-10 * exact.abs().amax(2) + 2**-6 * spread[:, :, 0]).all()


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
    codec = f"transform:{tmp_path / 'states.safetensors'}"
    state = DocumentState(numbers(200), numbers(200, seed=1), torch.arange(200), "causal")
    tensors = encode(state, codec)
    back = decode(tensors, codec, "causal")
    assert torch.equal(back.token_ids, state.token_ids)
    assert not back.is_lossless
    assert torch.equal(back[130:140].keys, back.keys[:, :, 130:140])
    fixed = tensors["calibration"].nbytes + tensors["leading"].nbytes
    elements = 2 * LAYERS * HEADS * HEAD_DIM
    assert sum(t.nbytes for t in tensors.values()) - fixed == bytes_per_token(codec, elements) * 200


def test_what_another_calibration_packed_is_refused(transform: Transform) -> None:
    other = Transform(fitted(16, tokens=300), transform.values, START)
    packed = other.pack(numbers(5), numbers(5, seed=1))
    with pytest.raises(ValueError, match=r"packed with calibration [0-9a-f]{16}, this one is [0-9a-f]{16}"):
        transform.check(packed)


def test_what_was_packed_with_the_codes_of_each_block_apart_is_refused(transform: Transform, tmp_path: Path) -> None:
    """Older versions wrote the same bytes in another order, and knew them by the hash of the calibration alone."""
    transform.save(tmp_path / "states.safetensors")
    digest = xxhash.xxh3_64_digest((tmp_path / "states.safetensors").read_bytes())
    packed = transform.pack(numbers(5), numbers(5, seed=1))
    transform.check(packed)
    with pytest.raises(ValueError, match=f"packed with calibration {digest.hex()}, this one is"):
        transform.check({**packed, "calibration": torch.tensor(list(digest), dtype=torch.uint8)})


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


def test_errors_cost_what_the_fisher_information_says(tiny_model: GritModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half its trace is the mean divergence, for errors of variance 1, of all that is read after a disturbed state."""
    monkeypatch.setattr("gritrag.train.after.calibrate.OTHERS", 0)
    monkeypatch.setattr("gritrag.train.after.calibrate.REACH", 0)
    state = tiny_model.read_documents(TEXTS[:1])[0].state
    costs = fisher(tiny_model, [state] * 60, 0, seed=0)
    ids, draw = state.token_ids.tolist(), torch.Generator().manual_seed(0)

    def logs(state: DocumentState) -> torch.Tensor:
        with torch.no_grad():
            logits_AV, _ = Contexts(tiny_model).placed([state], [Prompted(ids[:1], ids[1:], (0,))])
        return logits_AV.double().log_softmax(-1)

    undisturbed = logs(state)
    for part, cost in enumerate(costs):
        assert cost.shape == (*tiny_model.decoder.shape[:2], *[tiny_model.decoder.shape.head_dim] * 2)
        size, found = 0.03 * (state.keys, state.values)[part].std(), []
        for _ in range(20):
            disturbed = [state.keys, state.values]
            disturbed[part] = disturbed[part] + size * torch.randn(disturbed[part].shape, generator=draw)
            divergence = (undisturbed.exp() * (undisturbed - logs(state.with_tensors(*disturbed)))).sum()
            found.append(float(divergence / size**2 / len(ids)))
        expected = float(cost.diagonal(dim1=-2, dim2=-1).sum()) / 2
        assert sum(found) / len(found) == pytest.approx(expected, rel=0.2)


def test_a_calibrated_model_keeps_most_of_what_it_reads_and_all_of_how_it_begins(tiny_model: GritModel) -> None:
    calibrated = calibrate(tiny_model, TEXTS * 3)
    common = calibrated.start.shape[3]
    assert 0 < common < 30
    state = tiny_model.read_documents(["Cy and Eve went down the hill"])[0].state
    keys, values = calibrated(state.keys, state.values)
    assert error(keys[:, :, :common], state.keys[:, :, :common]) < 0.002
    assert error(keys, state.keys) < 1
    assert error(values, state.values) < 1


@pytest.mark.parametrize("shortest", ["A", "Ann"])
def test_a_document_may_be_no_more_than_how_all_begin(make_model: Callable[..., GritModel], shortest: str) -> None:
    model = make_model(template="plain")  # ends a document with an empty line, which may stand in another
    calibrated = calibrate(model, [shortest, *(f"{shortest}\n\n{text}" for text in TEXTS * 3)])
    state = model.read_documents([shortest])[0].state
    assert calibrated.start.shape[3] == len(state)
    assert error(calibrated(state.keys, state.values)[0], state.keys) < 0.01


@pytest.mark.parametrize("texts", [["one"], ["one"] * 200, []])
def test_too_little_text_is_told_with_how_much_is_needed(tiny_model: GritModel, texts: list[str]) -> None:
    with pytest.raises(ValueError, match="tokens are too few to calibrate on; give at least"):
        calibrate(tiny_model, texts)


def test_documents_that_are_too_long_to_be_read_again_are_told(tiny_model: GritModel) -> None:
    states = [reading.state for reading in tiny_model.read_documents(["a" * (tiny_model.context_length // 2 + 1)])]
    with pytest.raises(ValueError, match="no document can be read again after itself; give some of"):
        fisher(tiny_model, states, 0, seed=0)


def test_a_model_whose_keys_cannot_be_moved_is_refused(make_model: Callable[..., GritModel]) -> None:
    with pytest.raises(ValueError, match="keys of this model cannot be moved"):
        calibrate(make_model("gpt2"), TEXTS * 3)


def test_the_default_model_comes_with_a_calibration_of_at_most_3000_bytes_per_token() -> None:
    assert "transform" in CODECS
    draw = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 30, 3, 150, 64, generator=draw)
    tensors = encode(DocumentState(keys, values, torch.arange(150), "causal"), "transform")
    assert sum(tensor.nbytes for tensor in tensors.values()) <= 3000 * 150
    assert decode(tensors, "transform", "causal").keys.shape == keys.shape
