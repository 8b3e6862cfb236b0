"""Clusters: one that a build starts ends with it; a node that is killed while it works for a build loses nothing."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from gritrag import GritModel, Index
from gritrag.chunks import Cutting, read_files
from gritrag.documents.sources import list_sources
from gritrag.index import ray as engine

CUTTING = Cutting(chunk_size=48)
LOST_SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
"""Nodes answer their head twice a second, so that one that does not is missed after seconds, and not after half a
minute."""

pytestmark = pytest.mark.ray


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """Two nodes of this machine. The head has processors enough to go on alone."""
    settings = {"object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "_system_config": LOST_SOON, **settings})
    cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_cluster_of_its_own_has_a_processor_to_parse_and_ends_with_the_build() -> None:
    with engine._running(engine.Cluster(actors=1)) as actors:
        assert (actors, ray.cluster_resources()["CPU"]) == (1, 2)
    assert not ray.is_initialized()


def readers_of(raylet: int) -> list[int]:
    """Processes of actors that read, on the node of a raylet."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, stat = (folder / "cmdline").read_bytes(), (folder / "stat").read_text()
        except OSError:
            continue
        if b"_ReadPass" in name and int(stat.rpartition(")")[2].split()[1]) == raylet:
            found.append(int(folder.name))
    return found


def test_a_killed_node_loses_nothing(nodes: Cluster, tiny_model: GritModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    model = GritModel.from_pretrained(tmp_path / "model", dtype="float32")
    (tmp_path / "notes").mkdir()
    for n in range(24):
        lines = [f"Boat {n} carries {n + k} owls to island {k}, and {n * k} geese." for k in range(12)]
        (tmp_path / "notes" / f"{n:02}.txt").write_text(" ".join(lines))
    listing = list_sources([tmp_path / "notes"])
    [lost] = nodes.worker_nodes
    killed: list[int] = []
    staged: list[Path] = []
    raylet = lost.all_processes["raylet"][0].process.pid

    def kill_when_both_read() -> None:
        while not (staged and readers_of(raylet)):
            time.sleep(0.02)
            staged[:] = (tmp_path / "index" / "staging").glob("parts/*")
        killed.extend(readers_of(raylet))
        nodes.remove_node(lost, allow_graceful=False)

    killer = threading.Thread(target=kill_when_both_read, daemon=True)
    killer.start()
    with Index.create(tmp_path / "index", model=model, states="float32") as index:
        built = engine.add_files(index, listing, CUTTING, engine.Cluster(actors=2), dtype="float32")
        killer.join(timeout=60)
        assert killed
        assert not any(os.path.exists(f"/proc/{reader}") for reader in killed)
        assert [node["Alive"] for node in ray.nodes()].count(True) == 1
        expected = [chunk for part in read_files(listing.sources, model.count_tokens, CUTTING) for chunk in part.chunks]
        assert engine.BATCH * len(staged) < len(expected), "there was more to do"
        assert (built.report.added, built.skipped) == (len(expected), [])
        assert index.get(list(index)) == expected
        assert index.verify() == ([], [])
        assert None not in index.load_states(expected)
        vectors = np.stack(index.load_vectors(expected))
    assert np.abs(vectors - model.encode_document(expected)).max() <= 1e-5
