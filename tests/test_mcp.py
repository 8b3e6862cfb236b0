"""Agents: the official client drives the tools over a subprocess and over HTTP; writing is there only if asked for."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.server.mcpserver import MCPServer
from mcp.types import CallToolResult
from typer.testing import CliRunner

from gritrag import Document, GritModel, Index
from gritrag.cli import app
from gritrag.mcp import make_server

DOCUMENTS = [
    Document("The ferry stops sailing at four.", id="osk.pdf#page=2", title="Osk", metadata={"page": 2, "year": 2024}),
    Document("Owls click their beaks.", id="owl", metadata={"year": 1889}),
    Document("Bread is sold at six.", id="bread"),
]


@pytest.fixture
def index(tiny_model: GritModel, tmp_path: Path) -> Iterator[Index]:
    with Index.create(tmp_path / "index", model=tiny_model, states="float32") as index:
        index.add(DOCUMENTS)
        yield index


@pytest.fixture
def server(index: Index) -> MCPServer:
    return make_server(index, writes=True, chunk_size=64)


def content(result: CallToolResult) -> dict[str, Any]:
    assert not result.is_error, result.content
    assert result.structured_content is not None
    assert json.loads(result.content[0].text) == result.structured_content  # for clients that know no structure
    return result.structured_content


def said(result: CallToolResult) -> str:
    assert result.is_error
    return result.content[0].text


async def test_without_being_asked_nothing_can_be_written(index: Index) -> None:
    async with Client(make_server(index)) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert tools.keys() == {"search", "ask", "list"}
        assert all(tool.annotations and tool.annotations.read_only_hint for tool in tools.values())
        refused = await client.call_tool("delete", {"ids": ["owl"]})
        assert refused.is_error
    assert "owl" in index


async def test_every_tool_says_what_it_takes_and_gives(server: MCPServer) -> None:
    async with Client(server) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert tools.keys() == {"search", "ask", "list", "add", "delete"}
        for tool in tools.values():
            assert tool.description
            assert tool.output_schema
        assert tools["search"].input_schema["required"] == ["question"]
        assert tools["delete"].annotations is not None
        assert tools["delete"].annotations.destructive_hint
        assert client.instructions
        assert "Cite" in client.instructions


async def test_search_finds_filters_and_says_the_place(server: MCPServer) -> None:
    async with Client(server) as client:
        found = content(await client.call_tool("search", {"question": "ferry four", "k": 3, "mode": "sparse"}))[
            "passages"
        ]
        assert found[0]["id"] == "osk.pdf#page=2"
        assert (found[0]["title"], found[0]["place"], found[0]["metadata"]["year"]) == ("Osk", "page 2", 2024)
        for where in ({"year": {"$lt": 1900}}, {"$nor": [{"year": {"$gte": 1900}}, {"year": {"$exists": False}}]}):
            old = await client.call_tool("search", {"question": "x", "where": where})
            assert [each["id"] for each in content(old)["passages"]] == ["owl"]


async def test_ask_answers_from_states_and_names_sources(server: MCPServer) -> None:
    async with Client(server) as client:
        answer = content(await client.call_tool("ask", {"question": "When?", "k": 2, "max_new_tokens": 4}))
        assert len(answer["sources"]) == 2
        assert 0 < answer["cached_tokens"] < answer["prompt_tokens"]
        assert 0 < answer["first_token_seconds"] <= answer["total_seconds"]


async def test_list_goes_on_where_it_ended(server: MCPServer) -> None:
    async with Client(server) as client:
        first = content(await client.call_tool("list", {"limit": 2}))
        assert ([each["id"] for each in first["documents"]], first["total"]) == (["osk.pdf#page=2", "owl"], 3)
        assert first["documents"][0]["place"] == "page 2"
        rest = content(await client.call_tool("list", {"limit": 2, "after": first["next"]}))
        assert ([each["id"] for each in rest["documents"]], rest["next"]) == (["bread"], None)


@pytest.mark.parametrize("id", ["null", "[1]", '{"a": 1}', '["osk.pdf"]'])
async def test_list_goes_on_behind_an_id_that_looks_like_json(id: str, server: MCPServer, index: Index) -> None:
    index.add([Document("Its name is odd.", id=id), Document("It comes last.", id="last")])
    async with Client(server) as client:
        first = content(await client.call_tool("list", {"limit": 4}))
        assert first["next"] == id
        rest = content(await client.call_tool("list", {"after": first["next"]}))
        assert [each["id"] for each in rest["documents"]] == ["last"]
        again = content(await client.call_tool("list", {"limit": 1, "after": rest["next"]}))
        assert again["documents"][0]["id"] == "osk.pdf#page=2", "behind nothing it begins"


async def test_what_is_added_is_found_and_what_is_deleted_is_gone(server: MCPServer, index: Index) -> None:
    async with Client(server) as client:
        long = " ".join(f"Sentence {number} of a long text." for number in range(9))
        report = content(
            await client.call_tool(
                "add", {"documents": [{"text": "Seals bark.", "id": "s"}, {"text": long, "id": "l"}]}
            )
        )
        assert report["ids"][0] == "s"
        assert report["ids"][1:3] == ["l#0", "l#1"]
        again = content(await client.call_tool("add", {"documents": [{"text": "Seals bark.", "id": "s"}]}))
        assert (again["added"], again["skipped"]) == (0, 1)
        assert content(await client.call_tool("delete", {"ids": ["s", "unknown"]})) == {"deleted": 1}
        assert "s" not in index
        assert content(await client.call_tool("delete", {"ids": ["l"]})) == {"deleted": len(report["ids"]) - 1}
        await client.call_tool("add", {"documents": [{"text": long, "id": "l"}]})
        await client.call_tool("add", {"documents": [{"text": "Short now.", "id": "l"}]})
        assert [id for id in index if id.partition("#")[0] == "l"] == ["l"]


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("search", {}, "question"),
        ("search", {"question": ""}, "at least 1 character"),
        ("search", {"question": "x", "k": 0}, "greater than or equal to 1"),
        ("search", {"question": "x", "where": {"year": {"$no": 1}}}, "$no"),
        ("ask", {"question": "x", "max_new_tokens": 10**9}, "less than or equal to"),
        ("list", {"after": "nowhere"}, "no document 'nowhere'"),
        ("add", {"documents": []}, "at least 1 item"),
        ("add", {"documents": [{"text": " "}]}, "is empty"),
    ],
)
async def test_a_mistake_is_told_and_the_server_goes_on(
    server: MCPServer, tool: str, arguments: dict[str, Any], message: str
) -> None:
    async with Client(server) as client:
        assert message in said(await client.call_tool(tool, arguments))
        assert content(await client.call_tool("list", {}))["total"] == 3


def test_an_index_that_was_opened_for_reading_offers_no_writing(index: Index, tiny_model: GritModel) -> None:
    with Index.open(index.path, model=tiny_model, mode="r") as reading, pytest.raises(ValueError, match="for reading"):
        make_server(reading, writes=True)


@pytest.fixture
def command(tiny_model: GritModel, tmp_path: Path) -> list[str]:
    """The command line of a server over an index of the documents, and of a model that is read from files."""
    model, folder = tmp_path / "model", tmp_path / "index"
    tiny_model.lm.save_pretrained(model)
    tiny_model.tokenizer.save_pretrained(model)
    with Index.create(folder, model=GritModel.from_pretrained(str(model), dtype="float32")) as index:
        index.add(DOCUMENTS)
    code = "from gritrag.cli import app; app()"
    return ["-c", code, "mcp", str(folder), "--model", str(model), "--dtype", "float32"]


async def test_over_standard_input_and_output(command: list[str]) -> None:
    async with Client(
        stdio_client(StdioServerParameters(command=sys.executable, args=[*command, "--write"]))
    ) as client:
        assert len((await client.list_tools()).tools) == 5
        assert content(await client.call_tool("add", {"documents": [{"text": "Seals bark.", "id": "s"}]}))["added"] == 1
        found = content(await client.call_tool("search", {"question": "seals", "mode": "sparse"}))
        assert found["passages"][0]["id"] == "s"
        assert content(await client.call_tool("ask", {"question": "Who?", "max_new_tokens": 2}))["sources"]


@pytest.fixture
def url(index: Index) -> Iterator[str]:
    """Of a server on loopback that reads."""
    config = uvicorn.Config(make_server(index).streamable_http_app(), host="127.0.0.1", port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/mcp"
    server.should_exit = True
    thread.join()


async def test_over_http_and_for_this_machine_only(url: str) -> None:
    async with Client(url) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == {"search", "ask", "list"}
        assert content(await client.call_tool("list", {}))["total"] == 3
    async with httpx.AsyncClient() as page:  # of another site, in the browser of somebody who runs the server
        assert (await page.post(url, json={}, headers={"Host": "evil.example"})).status_code == 421
        assert (await page.post(url, json={}, headers={"Origin": "http://evil.example"})).status_code == 403


def test_the_command_listens_on_loopback_alone(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[Any, ...]] = []
    monkeypatch.setattr(MCPServer, "run", lambda server, transport, **options: runs.append((transport, options)))
    for more in ([], ["--http", "--port", "8042"]):
        result = CliRunner().invoke(app, [*command[2:], *more])
        assert result.exit_code == 0, result.output
    assert runs == [("stdio", {}), ("streamable-http", {"host": "127.0.0.1", "port": 8042})]
