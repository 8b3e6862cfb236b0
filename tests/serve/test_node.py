"""The official `openai` client for Node drives the server. It comes from npm, so this needs a network."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from serving import QUESTIONS, Running

from gritrag import GritModel

PACKAGE = "openai@7.59.0"
SCRIPT = """
import OpenAI, { toFile } from 'openai';
const client = new OpenAI({ baseURL: process.argv[2] + '/v1', apiKey: 'none', maxRetries: 0 });
const question = process.argv[3];
const messages = [{ role: 'user', content: question }];
const chat = await client.chat.completions.create({ model: 'tiny', messages, max_tokens: 6 });
let streamed = '', usage = null;
for await (const chunk of await client.chat.completions.create({
  model: 'tiny', messages, max_tokens: 6, stream: true, stream_options: { include_usage: true },
})) {
  streamed += chunk.choices[0]?.delta?.content ?? '';
  usage = chunk.usage ?? usage;
}
const embedding = await client.embeddings.create({ model: 'gritrag', input: question });
const rag = await client.chat.completions.create({ model: 'rag/docs', messages, max_tokens: 4 });
const response = await client.responses.create({
  model: 'tiny', input: question, max_output_tokens: 4,
  tools: [{ type: 'file_search', vector_store_ids: ['docs'] }],
});
const store = await client.vectorStores.create({ name: 'node' });
const file = await client.files.create({
  file: await toFile(Buffer.from('a raven sits on the mast'), 'raven.txt'), purpose: 'assistants',
});
const attached = await client.vectorStores.files.createAndPoll(store.id, { file_id: file.id });
const found = await client.vectorStores.search(store.id, { query: 'what sits on the mast?' });
let refused = null;
try { await client.chat.completions.create({ model: 'none', messages }); } catch (error) { refused = error.code; }
console.log(JSON.stringify({
  text: chat.choices[0].message.content, streamed, usage, embedding: embedding.data[0].embedding,
  hits: rag.gritrag.hits.length, output: response.output.map((item) => item.type), status: attached.status,
  found: found.data[0].filename, refused,
}));
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node with npm")
def test_the_client_for_node(server: Running, tiny_model: GritModel, tmp_path: Path) -> None:
    (tmp_path / "drive.mjs").write_text(SCRIPT)
    (tmp_path / "package.json").write_text('{"private": true}')
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", PACKAGE], cwd=tmp_path, check=True, timeout=180)
    command = ["node", "drive.mjs", server.url, QUESTIONS[0]]
    told = json.loads(subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60).stdout)
    assert told["text"] == tiny_model.generate([{"role": "user", "content": QUESTIONS[0]}], max_new_tokens=6)
    assert told["streamed"] == told["text"]
    assert told["usage"]["prompt_tokens_details"]["cached_tokens"] >= 0
    np.testing.assert_allclose(told["embedding"], tiny_model.encode_document([QUESTIONS[0]])[0], atol=1e-5)
    assert told["hits"] == 5
    assert told["output"] == ["file_search_call", "message"]
    assert (told["status"], told["found"]) == ("completed", "raven.txt")
    assert told["refused"] == "model_not_found"
