// Files are uploaded, and read once into the chosen index.

import { getJson, postJson, request } from "./api.js";
import { seconds } from "./answers.js";

const list = document.getElementById("uploads");
const LOOK_AGAIN = 400; // milliseconds

export async function add(file, index) {
  const item = document.createElement("li");
  const name = document.createElement("strong");
  const state = document.createElement("span");
  const bar = document.createElement("progress");
  name.textContent = file.name;
  state.textContent = "uploading";
  bar.setAttribute("aria-label", `Reading ${file.name}`);
  item.append(name, state, bar);
  list.prepend(item);
  try {
    state.textContent = await read(file, index, (text) => (state.textContent = text));
  } catch (error) {
    state.textContent = error.message;
    state.className = "problem";
  }
  bar.remove();
}

async function read(file, index, say) {
  const began = performance.now();
  const before = (await getJson(`v1/indexes/${index}`)).stats;
  const form = new FormData();
  form.append("file", file);
  form.append("purpose", "assistants");
  const uploaded = await (await request("v1/files", { method: "POST", body: form })).json();
  say("reading");
  const path = `v1/vector_stores/${index}/files`;
  let stored = await postJson(path, { file_id: uploaded.id });
  while (stored.status === "in_progress") {
    await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN));
    stored = await getJson(`${path}/${uploaded.id}`);
    say(`reading, ${seconds((performance.now() - began) / 1000)}`);
  }
  if (stored.status !== "completed") throw new Error(stored.last_error?.message ?? stored.status);
  const after = (await getJson(`v1/indexes/${index}`)).stats;
  const tokens = after.tokens - before.tokens;
  const states = (after.bytes.states - before.bytes.states) / 2 ** 20;
  const notes = stored.notes ? ` (${stored.notes})` : "";
  return (
    `read once: ${stored.chunks} passages, ${tokens.toLocaleString("en")} tokens, ${states.toFixed(1)} MiB of states, ` +
    `${seconds((performance.now() - began) / 1000)}${notes}`
  );
}
