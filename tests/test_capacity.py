"""The plan on paper: numbers that can be checked by hand."""

import json

import pytest
from typer.testing import CliRunner

from gritrag.capacity import CODECS, FORMULAS, Constants, Plan, as_record, measured, plan, render, size_of
from gritrag.cli import app

CONSTANTS = Constants(flops=100e9, disk=1e9)


def row(passages: int, model: str) -> Plan:
    return next(row for row in plan(CONSTANTS) if row.passages == passages and row.model == model)


def test_states_are_those_of_the_codecs() -> None:
    small = row(10**8, "SmolLM2-135M")
    assert small.states["bf16"] == pytest.approx(461e12, rel=0.01)  # 100M passages of 200 tokens of 23,044 bytes
    assert small.states["int8"] < 0.53 * small.states["bf16"]
    assert small.states["int4"] < 0.29 * small.states["bf16"]
    assert row(10**6, "Qwen3-0.6B").states["bf16"] == pytest.approx(10**6 * 200 * 114_692)


def test_hours_and_limits_by_hand() -> None:
    large = row(10**6, "Llama-3-8B")
    assert large.gpu_hours == pytest.approx(2 * 8.03e9 * 2e8 / 3.956e14 / 3600, rel=1e-3)
    assert large.here_hours == pytest.approx(2 * 8.03e9 * 2e8 / 1e11 / 3600)
    assert large.break_even["bf16"] == pytest.approx(131_076 * 1e11 / 1.606e10)
    assert large.query_bytes == pytest.approx(1000 * 131_076)


def test_the_tier_follows_the_bytes() -> None:
    tiers = {(row.passages, row.model): row.tier for row in plan(CONSTANTS, passages=(10**4, 10**6, 10**10))}
    assert tiers[10**4, "SmolLM2-135M"] == "memory"
    assert tiers[10**6, "SmolLM2-135M"] == "disk"
    assert tiers[10**10, "SmolLM2-135M"].startswith("object storage")


def test_every_number_has_a_formula_and_the_constants_are_measured() -> None:
    numbers = set(as_record(CONSTANTS, plan(CONSTANTS))["rows"][0]) - {"passages", "model", "cost_driver"}
    assert set(FORMULAS) == numbers
    found = measured()
    assert 1e8 < found.flops < 1e15
    assert 1e6 < found.disk < 1e12
    text = render(found, plan(found))
    assert text.count("SmolLM2-135M") == 3
    assert all(f"states {codec}" in text for codec in CODECS)
    assert [size_of(number) for number in (999, 1500, 2e12, 4e16)] == ["999 B", "1.5 kB", "2 TB", "40.0 PB"]


def test_the_command_needs_no_model_and_no_files() -> None:
    done = CliRunner().invoke(app, ["estimate", "--plan", "--json"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.output)["rows"]) == 9
    assert CliRunner().invoke(app, ["estimate"]).exit_code == 2
