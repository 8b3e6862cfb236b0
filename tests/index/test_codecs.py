"""Laws of codecs: what comes back, how far it may be off, how many bytes it took, and what placing makes of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hash_reader import HashReader
from hypothesis import given, settings
from hypothesis import strategies as st

from gritrag.codecs import CODECS, get_codec
from gritrag.codecs.int4 import VALUES, Int4
from gritrag.codecs.int8 import Int8
from gritrag.codecs.integers import Integers, cut
from gritrag.index.index import Index
from gritrag.index.storage.packed import PackedState, bytes_per_token, decode, encode
from gritrag.model.grit import GritModel
from gritrag.model.state import DocumentState
from gritrag.records import Document

SMOLLM2 = (30, 3, 64)
SMOLLM2_ELEMENTS = 2 * 30 * 3 * 64
GENERAL = ["float32", "bf16", "int8", "int4"]
"""Codecs for states of every shape."""

QUANTISED = ["int8", "int4"]

INTEGERS = [Int8(), Int4(), Int4(group=5)]


def state_of(layers: int, heads: int, tokens: int, head_dim: int, seed: int = 0, spread: float = 1.0) -> DocumentState:
    """Channels of keys have means of their own, as those of models do."""
    draw = torch.Generator().manual_seed(seed)
    keys, values = spread * torch.randn(2, layers, heads, tokens, head_dim, generator=draw)
    means = 3 * spread * torch.randn(layers, heads, 1, head_dim, generator=draw)
    return DocumentState(keys + means, values, torch.randint(0, 50_000, (tokens,), generator=draw), "causal")


def there_and_back(codec: str, state: DocumentState) -> DocumentState:
    return decode(encode(state, codec), codec, state.reading)


def stored(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("name", GENERAL)
@pytest.mark.parametrize("shape", [(2, 3, 1, 4), (1, 1, 7, 5), (2, 1, 64, 8), (1, 2, 131, 3), (1, 1, 2, 1)])
def test_every_shape_comes_back_with_its_tokens_and_reading(name: str, shape: tuple[int, int, int, int]) -> None:
    state = state_of(*shape)
    back = there_and_back(name, state)
    assert back.keys.shape == back.values.shape == state.keys.shape
    assert back.token_ids.dtype == torch.int64
    assert torch.equal(back.token_ids, state.token_ids)
    assert len(back) == len(state)
    assert back.reading == "causal"


@pytest.mark.parametrize("name", GENERAL)
def test_what_is_written_is_contiguous_and_on_the_processor_with_ids_in_32_bits(name: str) -> None:
    tensors = encode(state_of(2, 3, 9, 5), name)
    assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in tensors.values())
    assert tensors["token_ids"].dtype == torch.int32


@pytest.mark.parametrize("name", GENERAL)
def test_decoding_twice_gives_the_same_numbers(name: str) -> None:
    tensors = encode(state_of(2, 2, 70, 6), name)
    first, second = decode(tensors, name, "causal"), decode(tensors, name, "causal")
    assert torch.equal(first.keys, second.keys)
    assert torch.equal(first.values, second.values)


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("tokens", [122, 200, 2000])
def test_a_token_takes_at_most_the_bytes_that_are_promised(name: str, tokens: int) -> None:
    layers, heads, head_dim = SMOLLM2
    zeros = torch.zeros(layers, heads, tokens, head_dim)
    tensors = encode(DocumentState(zeros, zeros, torch.zeros(tokens, dtype=torch.long), "causal"), name)
    most = {"int8": 12_300, "int4": 6_600}[name]
    assert bytes_per_token(name, SMOLLM2_ELEMENTS) <= most
    assert stored(tensors) <= most * tokens
    if tokens >= 200:
        assert stored(tensors) <= bytes_per_token(name, SMOLLM2_ELEMENTS) * tokens * 1.005


def test_casts_take_the_bytes_that_are_promised() -> None:
    for name in ("float32", "bf16"):
        state = state_of(2, 3, 5, 4)
        assert stored(encode(state, name)) == bytes_per_token(name, 2 * 2 * 3 * 4) * len(state)


@pytest.mark.parametrize("words", [range(1, 2), range(2, 40), range(150, 300)])
@pytest.mark.parametrize("name", GENERAL)
def test_an_estimate_holds_for_documents_of_a_few_tokens_too(name: str, words: range, tmp_path: Path) -> None:
    """Scales, and a header, that hardly any token shares: less than 16 bits may then take more than they."""
    reader = HashReader(shape=(4, 2, 16), max_document_tokens=400)
    texts = [" ".join(f"w{n}-{word}" for word in range(words[n % len(words)])) for n in range(40)]
    guess = Index.estimate(reader, texts, states=name).state_bytes
    with Index.create(tmp_path / "index", model=reader, states=name) as index:
        index.add(texts)
        assert guess == pytest.approx(index.stats()["bytes"]["states"], rel=0.05)


def test_two_nibbles_share_a_byte_and_few_bands_have_a_second_one() -> None:
    tensors = encode(state_of(2, 3, 10, 16), "int4")
    assert tensors["keys"].shape == tensors["values"].shape == (6, 9 * 16 / 2 + 4)
    assert tensors["keys"].dtype == torch.uint8
    assert tensors["first"].shape == (2, 2, 3, 1, 16)
    assert tensors["bands"].shape == (2, 1)
    assert tensors["fine"].shape == (1, 9 * 2 * 4 / 2 + 4)


def test_the_channels_that_spread_farthest_have_a_second_nibble_and_so_have_those_they_rotate_with() -> None:
    state = state_of(2, 3, 40, 16)
    far = state.keys.clone()
    far[1, 2, :, 5] *= 30
    keys, _ = Int4()(far, state.values)
    off = (keys - far)[:, :, 1:].abs().amax(2)
    for half in (0, 8):  # the band of channels 4 to 7, and its other half
        level = (
            far[1, 2, 1:, half + 4 : half + 8].aminmax(dim=0).max - far[1, 2, 1:, half + 4 : half + 8].amin(0)
        ) / 15
        assert (off[1, 2, half + 4 : half + 8] < 0.6 * level / 16 + 0.01).all()
        assert (off[1, 2, half : half + 4] > 0.1 * level.min() / 16).all()
    assert off[1, 2, 5] < 0.1 * off[1, 2, 5].new_tensor(30.0)


def off_by(name: str, numbers: torch.Tensor, dim: int) -> torch.Tensor:
    """Half a step, scales being rounded to float16 and never below its least normal number."""
    least, most = numbers.aminmax(dim=dim, keepdim=True)
    if dim == 2:
        step = (most - least) / {"int8": 255, "int4": 15}[name]
    else:  # a scale in sixteenths of an octave is up to 2^(1/16) too wide
        step = torch.maximum(most, -least) / {"int8": 127, "int4": VALUES / 2 ** (1 / 16)}[name]
    return 0.52 * step.clamp_min(2**-14) + 2**-10 * least.abs() * (dim == 2) + 1e-6 * numbers.abs()


@pytest.mark.parametrize("codec", INTEGERS, ids=["int8", "int4", "int4-groups-of-5"])
@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 150),
    head_dim=st.integers(1, 9),
    spread=st.sampled_from([0.0, 1e-6, 1e-3, 1.0, 300.0, 3_000.0]),
    seed=st.integers(0, 2**16),
)
def test_no_number_is_off_by_more_than_half_a_step(
    codec: Integers, tokens: int, head_dim: int, spread: float, seed: int
) -> None:
    state = state_of(1, 2, tokens, head_dim, seed, spread)
    keys, values = codec(state.keys, state.values)
    first = min(1, tokens - 1)
    for group in cut(first, tokens, max(1, (tokens - first) // codec.group)):
        part = state.keys[:, :, group]
        assert ((keys[:, :, group] - part).abs() <= off_by(codec.name, part, 2)).all()
    rest = state.values[:, :, first:]
    assert ((values[:, :, first:] - rest).abs() <= off_by(codec.name, rest, 3) + 2**-14).all()
    for kept, read in ((keys, state.keys), (values, state.values)):
        assert torch.equal(kept[:, :, :first], read[:, :, :first].half().float())


@given(start=st.integers(0, 9), tokens=st.integers(1, 1000), count=st.integers(1, 20))
def test_groups_are_all_tokens_in_order_and_of_nearly_one_length(start: int, tokens: int, count: int) -> None:
    groups = cut(start, start + tokens, count)
    lengths = [group.stop - group.start for group in groups]
    assert [token for group in groups for token in range(start + tokens)[group]] == list(range(start, start + tokens))
    assert len(groups) == count
    assert max(lengths) - min(lengths) <= 1


def test_a_group_needs_a_token() -> None:
    with pytest.raises(ValueError, match="at least 1 token, got 0"):
        Int4(group=0)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_what_another_codec_packed_is_refused(name: str) -> None:
    other = {"int8": "int4", "int4": "int8"}[name]
    with pytest.raises(ValueError, match=f"{name} is made of .*key_scale"):
        decode(encode(state_of(1, 1, 3, 4), other), name, "causal")


@pytest.mark.parametrize("name", QUANTISED)
def test_numbers_of_other_tokens_are_refused(name: str) -> None:
    tensors = encode(state_of(1, 1, 3, 4), name)
    with pytest.raises(ValueError, match="numbers of 3 tokens and the ids of 2"):
        decode({**tensors, "token_ids": tensors["token_ids"][:2]}, name, "causal")


def test_a_file_says_itself_how_many_groups_it_has() -> None:
    state = state_of(1, 2, 40, 6)
    packed = Int4(group=7).pack(state.keys, state.values)
    for there, back in zip(Int4(group=7).unpack(packed), Int4(group=64).unpack(packed), strict=True):
        assert torch.equal(there, back)


@pytest.mark.parametrize("codec", INTEGERS[:2], ids=["int8", "int4"])
def test_an_outlying_token_costs_only_its_own_values_their_precision(codec: Integers) -> None:
    state = state_of(1, 1, 20, 8)
    outlying = state.values.clone()
    outlying[:, :, 3] *= 1000
    _, beside = codec(state.keys, outlying)
    others = [token for token in range(1, 20) if token != 3]
    off = (beside - state.values)[:, :, others].abs()
    assert (off <= off_by(codec.name, state.values, 3)[:, :, others]).all()


@pytest.mark.parametrize("codec", INTEGERS[:2], ids=["int8", "int4"])
def test_a_channel_of_large_keys_costs_the_others_nothing(codec: Integers) -> None:
    state = state_of(1, 1, 20, 8)
    large = state.keys.clone()
    large[..., 5] = 100 * large[..., 5] + 500
    plain, _ = codec(state.keys, state.values)  # of one head, so no band is refined in either
    beside, _ = codec(large, state.values)
    others = [channel for channel in range(8) if channel != 5]
    assert torch.equal(plain[..., others], beside[..., others])


@pytest.mark.parametrize("codec", INTEGERS[:2], ids=["int8", "int4"])
def test_what_no_model_computes_stays_finite(codec: Integers) -> None:
    huge = torch.full((1, 1, 3, 4), 3e38) * torch.tensor([1.0, -1.0, 0.0, 1e-30])
    keys, values = codec(huge, huge)
    assert keys.isfinite().all()
    assert values.isfinite().all()
    assert keys[0, 0, 0, 0] > 60_000
    assert keys[0, 0, 0, 1] < -60_000


@pytest.mark.parametrize("whole", [Int8(group=10_000), Int4(group=10_000)], ids=["int8", "int4"])
def test_numbers_on_a_level_come_back_exactly(whole: Integers) -> None:
    """Constants, and as many evenly spaced numbers as there are levels; the first token is no level."""
    levels, end = {"int8": (256, 127.0), "int4": (16, VALUES)}[whole.name]
    ramp = torch.arange(-1, levels).float()[None, None, :, None].expand(1, 1, -1, 4)
    inner = {"int8": [0.0, 1.0, -1.0], "int4": [0.5, 1.5, -2.5]}[whole.name]
    ends = torch.tensor([end, *inner]).expand(1, 1, ramp.shape[2], 4)
    keys, values = whole(ramp, ends)
    assert torch.equal(keys, ramp)
    assert torch.equal(values, ends)
    keys, _ = whole(torch.full_like(ramp, 3.25), ends)
    assert torch.equal(keys, torch.full_like(ramp, 3.25))


@pytest.mark.parametrize("name", QUANTISED)
def test_values_go_to_a_buffer_on_another_device(name: str) -> None:
    """The device without numbers stands for any other: what computes across devices is an error there too."""
    back = there_and_back(name, state_of(2, 2, 9, 8))
    where = {keys.device.type for _, keys in back.runs(torch.empty(2, 2, 9, 8, device="meta"))}
    assert where == {"meta" if get_codec(name).unpacks_anywhere else "cpu"}


@pytest.mark.parametrize("tokens", [2, 7, 130, 400])
def test_runs_are_all_layers_and_tokens_once(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gritrag.codecs.integers.RUN", 3000)
    state = state_of(5, 3, tokens, 16)
    for codec in (Int8(), Int4()):
        packed, values = codec.pack(state.keys, state.values), torch.empty_like(state.values)
        seen = torch.zeros(5, tokens, dtype=torch.long)
        for (layers, of_run), keys in codec.runs(packed, values):
            seen[layers, of_run] += 1
            assert keys.shape == (len(range(5)[layers]), 3, len(range(tokens)[of_run]), 16)
        assert (seen == 1).all()
        monkeypatch.undo()
        for whole, piecewise in zip(codec.unpack(packed), (codec.unpack(packed)[0], values), strict=True):
            assert torch.equal(whole, piecewise)
        monkeypatch.setattr("gritrag.codecs.integers.RUN", 3000)


@pytest.mark.parametrize("name", QUANTISED)
def test_a_quantised_state_never_passes_for_lossless(name: str) -> None:
    state = state_of(2, 2, 30, 8)
    back = there_and_back(name, state)
    assert isinstance(back, PackedState)
    assert state.is_lossless
    assert not back.is_lossless
    assert not back[3:9].is_lossless
    assert there_and_back("float32", state).is_lossless


@pytest.mark.parametrize("name", QUANTISED)
def test_a_quantised_state_can_be_cut_like_any_other(name: str) -> None:
    back = there_and_back(name, state_of(2, 2, 70, 8))
    part = back[60:69]
    assert torch.equal(part.keys, back.keys[:, :, 60:69])
    assert torch.equal(part.values, back.values[:, :, 60:69])
    assert torch.equal(part.token_ids, back.token_ids[60:69])
    assert len(part) == 9
    assert back.nbytes < state_of(2, 2, 70, 8).nbytes / 2


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_placed_straight_from_its_bytes_as_from_its_numbers(
    name: str, dtype: torch.dtype, tiny_model: GritModel
) -> None:
    shape = tiny_model.decoder.shape
    back = there_and_back(name, state_of(shape.layers, shape.heads, 150, shape.head_dim))
    dense = DocumentState(back.keys, back.values, back.token_ids, back.reading)
    for rotation, start in ((tiny_model.rotation, 0), (tiny_model.rotation, 37), (None, 0)):
        placed, expected = (torch.zeros(2, shape.layers, shape.heads, 160, shape.head_dim, dtype=dtype) for _ in "ab")
        back.write(placed[0, :, :, 4:154], placed[1, :, :, 4:154], rotation, start)
        dense.write(expected[0, :, :, 4:154], expected[1, :, :, 4:154], rotation, start)
        assert torch.equal(placed, expected)


@pytest.mark.parametrize(("name", "most"), [("int8", 0.01), ("int4", 0.15)])
def test_what_a_model_reads_is_kept_nearly(name: str, most: float, tiny_model: GritModel) -> None:
    state = tiny_model.read_documents(["amber birch cedar delta ember fjord grove heron inlet"])[0].state
    back = there_and_back(name, state)
    for kept, read in ((back.keys, state.keys), (back.values, state.values)):
        assert 0 < (kept - read).norm() < most * read.norm()


@pytest.mark.parametrize("name", QUANTISED)
def test_an_index_gives_back_what_its_codec_leaves(
    name: str, make: Callable[..., Index], reader: HashReader, corpus: list[Document]
) -> None:
    with make("plain", states="float32") as plain, make("packed", states=name) as packed:
        for index in (plain, packed):
            index.add(corpus[:4])
        for read, back in zip(plain.load_states(corpus[:4]), packed.load_states(corpus[:4]), strict=True):
            assert read is not None
            assert isinstance(back, PackedState)
            left = there_and_back(name, read)
            assert torch.equal(back.keys, left.keys)
            assert torch.equal(back.values, left.values)
            assert torch.equal(back.token_ids, read.token_ids)


def test_an_unknown_codec_is_told_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"unknown codec 'int5'.*float32, bf16, int8, int4, transform, or 'none'"):
        get_codec("int5")
    assert set(CODECS) >= set(GENERAL)
