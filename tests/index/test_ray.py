"""Indexing on Ray builds what indexing here builds; what is killed, and who asks again, loses nothing."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from typer.testing import CliRunner

from gritrag import GritModel, Index
from gritrag.chunks import Cutting
from gritrag.cli import app
from gritrag.documents.sources import Listing
from gritrag.index import ray as engine
from gritrag.index.commit import Commit
from gritrag.index.staging import Staging
from gritrag.ingest import note_roots, recall_roots

CUTTING = Cutting(chunk_size=48)
CLUSTER = engine.Cluster(actors=2)
WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty", "knoll", "larch"]

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One for all tests of this module; its processes end with it."""
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tiny_model: GritModel, tmp_path_factory: pytest.TempPathFactory) -> GritModel:
    """A tiny model that has a name, as the workers load it too."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model.save_pretrained(folder / "model")
    return GritModel.from_pretrained(folder / "model", dtype="float32")


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prose, rows and a table, of some hundred chunks; two texts are alike, and two files are broken."""
    folder = tmp_path_factory.mktemp("notes")
    for n in range(12):
        words = [WORDS[(n * k + k) % 12] for k in range(1, 30)]
        (folder / f"{n:02}.txt").write_text(f"Note {n}. " + " ".join(words))
    (folder / "same.md").write_text((folder / "03.txt").read_text())
    rows = [{"text": f"{WORDS[n % 12]} {WORDS[n % 7]} {n}", "id": f"r{n}", "year": n} for n in range(150)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"text": \n')
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 and no more")
    return folder


def local(folder: Path, model: GritModel, notes: Path, **options: Any) -> dict[str, Any]:
    """What the command builds without Ray."""
    arguments = ["index", notes, "-i", folder, "-m", model.loaded_as["name"], "--dtype", "float32"]
    arguments += [
        "--chunk-size",
        CUTTING.chunk_size,
        "--states",
        "float32",
        "--json",
        "--yes",
        *options.pop("more", ()),
    ]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def contents(folder: Path, model: GritModel) -> dict[str, Any]:
    with Index.open(folder, model=model) as index:
        documents = index.get(list(index))
        entries = [index._parts.catalog.entry(document.id) for document in documents]
        states = index.load_states(documents)
        assert index.verify() == ([], [])
    return {
        "documents": documents,
        "keys": [entry.state_key for entry in entries],
        "tokens": [entry.token_ids.tolist() for entry in entries],
        "vectors": np.stack([entry.vector for entry in entries]),
        "states": states,
    }


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("documents", "keys", "tokens"):
        assert found[name] == expected[name]
    assert np.abs(found["vectors"] - expected["vectors"]).max() <= 1e-5
    for state, wanted in zip(found["states"], expected["states"], strict=True):
        torch.testing.assert_close(state.keys, wanted.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(state.values, wanted.values, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def expected(model: GritModel, notes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("local") / "index"
    local(folder, model, notes)
    return contents(folder, model)


def on_ray(folder: Path, model: GritModel, *paths: str | Path, cluster: engine.Cluster = CLUSTER) -> engine.Built:
    """As the command does it."""
    with Index.open(folder, model=model, mode="rw") as index:
        listing, roots = engine.list_places(paths), recall_roots(index)
        placed = Listing(roots.place(listing.sources), listing.skipped)
        note_roots(index, roots)
        return engine.add_files(index, placed, CUTTING, cluster, dtype="float32", roots=roots)


@pytest.fixture
def reads_elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Called, it makes this process unable to read: then only actors can, which are other processes."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("this process reads")

    def forbid() -> None:
        for name in ("read_documents", "encode_document"):
            monkeypatch.setattr(GritModel, name, refuse)

    yield forbid
    monkeypatch.undo()


def test_the_command_builds_the_same_index(
    model: GritModel, notes: Path, expected: dict[str, Any], tmp_path: Path, reads_elsewhere: Callable[[], None]
) -> None:
    plain = local(tmp_path / "plain", model, notes)
    more = ("--engine", "ray", "--actors", "2")
    reads_elsewhere()
    first = local(tmp_path / "index", model, notes, more=more)
    assert {name: first[name] for name in plain if name != "not_read"} == {
        name: plain[name] for name in plain if name != "not_read"
    }
    assert sorted(map(str, first["not_read"])) == sorted(map(str, plain["not_read"]))
    assert_equal(contents(tmp_path / "index", model), expected)
    assert not (tmp_path / "index" / "staging").exists()
    again = local(tmp_path / "index", model, notes, more=more)
    assert (again["added"], again["replaced"], again["skipped"]) == (0, 0, first["added"] + first["skipped"])


def test_what_changed_is_replaced_and_what_went_is_removed(model: GritModel, notes: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in sorted(notes.glob("*.txt"))[:4]:
        (copy / path.name).write_bytes(path.read_bytes())
    more = ("--engine", "ray", "--actors", "2")
    local(tmp_path / "index", model, copy, more=more)
    (copy / "00.txt").write_text("Quite another text.")
    (copy / "01.txt").unlink()
    done = local(tmp_path / "index", model, copy, more=more)
    assert done["removed"] >= 1
    local(tmp_path / "plain", model, copy)
    found, wanted = contents(tmp_path / "index", model), contents(tmp_path / "plain", model)
    assert sorted(found["keys"]) == sorted(wanted["keys"])
    assert {each.id: each for each in found["documents"]} == {each.id: each for each in wanted["documents"]}


def by_id(found: dict[str, Any]) -> dict[str, Any]:
    """Contents in the order of the ids."""
    order = np.argsort([document.id for document in found["documents"]])
    return {name: column[order] if name == "vectors" else [column[n] for n in order] for name, column in found.items()}


def test_ids_that_clash_are_left_out_and_told_as_they_are_without_ray(model: GritModel, tmp_path: Path) -> None:
    """Two folders and two files of one, with ids of their own; the index knows one of the folders before."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    short, long = " ".join(WORDS * 2), " ".join(WORDS * 9)
    rows = {
        "one/a.jsonl": [{"text": "amber of one", "id": "x"}, {"text": short, "id": "y"}, {"text": "cedar", "id": "z"}],
        "one/b.jsonl": [{"text": long, "id": "y"}, {"text": "delta", "id": "y#5"}, {"text": "fjord"}],
        "two/a.jsonl": [{"text": "amber of two", "id": "x"}, {"text": "grove"}, {"text": "heron", "id": 7}] * 2,
    }
    for name, lines in rows.items():
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)))
    for folders in (["two"], ["one", "two"], ["one"]):
        reports, found = [], []
        for name, more in {"local": (), "ray": ("--engine", "ray", "--actors", "2")}.items():
            places = [str(tmp_path / folder) for folder in folders]
            report = local(tmp_path / name, model, Path(places[0]), more=(*places[1:], *more))
            reports.append({**report, "not_read": sorted(report["not_read"], key=str)})
            found.append(by_id(contents(tmp_path / name, model)))
        assert_equal(found[1], found[0])
        assert reports[1] == reports[0]
        texts = {each.id: each.text for each in found[0]["documents"]}
        assert texts["x"] == "amber of two", "who had it keeps it"
        if "one" in folders:
            assert {"z", "7", "y#0", "y#5", "one:b.jsonl#3"} <= texts.keys()
            assert texts["y#5"] == "delta", "what of a document is left out takes no id"
            reasons = " ".join(each["reason"] for each in reports[0]["not_read"])
            assert "'x' is that of a document in this index from two" in reasons
            assert "'y' is that of an earlier document, in one:a.jsonl" in reasons


def workers() -> list[int]:
    """Processes of actors that read, of this test's cluster."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes()
            raylet = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            driver = int(Path(f"/proc/{raylet}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if b"_ReadPass" in name and driver == os.getpid():
            found.append(int(folder.name))
    return found


def test_a_killed_actor_loses_nothing(model: GritModel, notes: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    killed: list[int] = []
    staged: list[Path] = []

    def kill_when_half_is_done() -> None:
        while not staged:
            time.sleep(0.02)
            staged.extend((tmp_path / "index" / "staging").glob("parts/*"))
        for worker in workers():
            os.kill(worker, signal.SIGKILL)
            killed.append(worker)

    Index.create(tmp_path / "index", model=model, states="float32").close()
    killer = threading.Thread(target=kill_when_half_is_done, daemon=True)
    killer.start()
    on_ray(tmp_path / "index", model, notes)
    killer.join(timeout=60)
    assert killed
    assert engine.BATCH * len(staged) < len(expected["documents"]), "there was more to do"
    assert_equal(contents(tmp_path / "index", model), expected)


def test_a_build_that_stopped_reads_nothing_twice(
    model: GritModel, notes: Path, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(self: Commit) -> None:
        raise KeyboardInterrupt

    Index.create(tmp_path / "index", model=model, states="float32").close()
    with monkeypatch.context() as patch:
        patch.setattr(Commit, "_put_states", stops)
        with pytest.raises(KeyboardInterrupt):
            on_ray(tmp_path / "index", model, notes)
    with Index.open(tmp_path / "index", model=model) as index:
        assert len(index) == 0
        assert Staging(index.path, None, "float32").known().keys() == set(expected["keys"])

    def parts() -> dict[str, int]:
        """When each was written; what is read again would get the same name."""
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "index" / "staging" / "parts").iterdir()}

    written = parts()
    seen: dict[str, int] = {}
    monkeypatch.setattr(Staging, "clear", lambda self: seen.update(parts()))
    on_ray(tmp_path / "index", model, notes)
    assert seen == written, "nothing was staged again"
    assert_equal(contents(tmp_path / "index", model), expected)


def test_urls_are_read_as_folders_are(
    model: GritModel, notes: Path, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRITRAG_STATE_CACHE", str(tmp_path / "cache"))
    states_at = f"file://{tmp_path}/objects"
    Index.create(tmp_path / "index", model=model, states="float32", states_at=states_at).close()
    built = on_ray(tmp_path / "index", model, f"file://{notes}")
    assert {Path(str(each.path)).name for each in built.skipped} == {"broken.pdf", "rows.jsonl"}
    found = contents(tmp_path / "index", model)
    assert found["keys"] == expected["keys"]
    assert {document.metadata["source_root"] for document in found["documents"]} == {notes.name}
    with Index.open(tmp_path / "index", model=model) as index:
        assert recall_roots(index).known[notes.name].path == f"file://{notes}", "the index knows where its root is"
    assert not (tmp_path / "objects" / "staging").exists()


def test_mistakes_are_told_and_store_nothing(model: GritModel, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one", "id": "x"}\n')
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.7 and no more")
    Index.create(tmp_path / "index", model=model, states="none").close()
    with pytest.raises(ValueError, match=r"(?s)nothing to index in /.*b\.pdf: it is broken"):
        on_ray(tmp_path / "index", model, tmp_path / "b.pdf")
    with Index.open(tmp_path / "index", model=model) as index:
        assert len(index) == 0
    with pytest.raises(ValueError, match="give fewer --actors"):
        on_ray(tmp_path / "index", model, tmp_path / "a.jsonl", cluster=engine.Cluster(actors=9))
    Index.create(tmp_path / "quota", model=model, state_quota="1MB").close()
    with pytest.raises(ValueError, match="quota"):
        on_ray(tmp_path / "quota", model, tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="no such file"):
        on_ray(tmp_path / "index", model, f"file://{tmp_path}/nowhere")
