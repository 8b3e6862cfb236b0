#!/usr/bin/env bash
# mcp 2.3.0 (the Python SDK): a tool whose parameter is `text: str | None` does not get the text that was sent where that text is JSON.
#
# MCPServer parses every string argument as JSON unless the parameter is annotated with `str` and nothing else, so that clients which send a
# list as a string are understood. For `str | None` this changes valid values: the text "null" arrives as None, and "[1, 2]" or '{"a": 1}'
# is refused, because it has become a list or an object, which is no `str`. With `text: str` all of them arrive as they were sent. So one
# optional text in a signature is enough for ids, file names or queries to be lost, and "null" is lost without an error.
#
# Seen with mcp 2.3.0:
#   plain('hello'): 'hello'          optional('hello'): 'hello'
#   plain('null'): 'null'            optional('null'): None
#   plain('[1, 2]'): '[1, 2]'        optional('[1, 2]'): refused
#   plain('{"a": 1}'): '{"a": 1}'    optional('{"a": 1}'): refused
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q mcp==2.3.0
cat > "$folder/tools.py" <<'PYTHON'
import asyncio
import sys

from mcp import Client
from mcp.server.mcpserver import MCPServer

server = MCPServer("echo")


@server.tool()
def plain(text: str) -> str:
    return repr(text)


@server.tool()
def optional(text: str | None = None) -> str:
    return repr(text)


async def main() -> None:
    found = {}
    async with Client(server) as client:
        for text in ("hello", "null", "[1, 2]", '{"a": 1}'):
            for tool in ("plain", "optional"):
                result = await client.call_tool(tool, {"text": text})
                said = "refused" if result.is_error else result.content[0].text
                found[tool, text] = said
                print(f"{tool}({text!r}): {said}")
    expected = {"hello": "'hello'", "null": "None", "[1, 2]": "refused", '{"a": 1}': "refused"}
    as_described = all(found["optional", text] == said for text, said in expected.items())
    sys.exit(not as_described or any(found["plain", text] != repr(text) for text in expected))


asyncio.run(main())
PYTHON
"$folder/venv/bin/python" "$folder/tools.py" && echo "as described"
