// The page: which index, one question after another, from states and, to compare, from text.

import { Answer } from "./answers.js";
import { ApiError, events, getJson, useKey } from "./api.js";
import * as passages from "./passages.js";
import * as uploads from "./uploads.js";

const at = (id) => document.getElementById(id);
let indexes = [];
let running = null;

const say = (text) => (at("status").textContent = text);

function tell(error) {
  at("problem").hidden = !error;
  at("problem").textContent = error ? error.message : "";
  if (error instanceof ApiError && error.status === 401) {
    at("key-form").hidden = false;
    at("key").focus();
  }
}

async function loadIndexes() {
  try {
    indexes = (await getJson("v1/indexes")).data;
    tell(null);
  } catch (error) {
    tell(error);
    return;
  }
  const chosen = at("index").value;
  at("index").replaceChildren(...indexes.map((index) => new Option(index.id, index.id)));
  if (indexes.some((index) => index.id === chosen)) at("index").value = chosen;
  showFacts();
}

function showFacts() {
  const index = indexes.find((each) => each.id === at("index").value);
  const can = Boolean(index?.writable);
  at("facts").textContent = index
    ? `${index.documents.toLocaleString("en")} passages, ${(index.stats.bytes.states / 2 ** 20).toFixed(1)} MiB of states`
    : "no index: start the server with one";
  at("files").disabled = !can;
  at("upload-hint").textContent = can
    ? "Text, code, PDF, Word, PowerPoint, Excel, HTML or EPUB. Each is read once."
    : "This index is served for reading only.";
}

async function ask(event) {
  event.preventDefault();
  const question = at("question").value.trim();
  if (!question || running) return;
  running = new AbortController();
  tell(null);
  at("go").disabled = true;
  at("stop").hidden = false;
  at("verdict").hidden = true;
  at("answers").replaceChildren();
  at("answers").hidden = false;
  const both = at("compare").checked;
  const plans = [["doc-cache", both ? "Cached: from states" : "Answer"], ...(both ? [["doc-query", "Uncached: read again"]] : [])];
  const answers = plans.map(([, title]) => new Answer(title, at("answers")));
  say("Answering");
  try {
    for (const [number, [mode]] of plans.entries()) await stream(question, mode, answers[number], number === 0);
    compare(answers);
    say(`Answer: ${answers[0].result.text}`);
  } catch (error) {
    if (error.name !== "AbortError") tell(error);
    say(error.name === "AbortError" ? "Stopped" : "No answer");
  } finally {
    answers.forEach((answer) => answer.end());
    running = null;
    at("go").disabled = false;
    at("stop").hidden = true;
  }
}

async function stream(question, mode, answer, isFirst) {
  const body = { question, mode, k: Number(at("count").value) || 5, index: at("index").value || null, stream: true };
  answer.begin();
  for await (const { name, data } of events("v1/rag", body, running.signal)) {
    if (data.error) throw new ApiError(500, data.error.message);
    if (name === "hits" && isFirst) {
      passages.show(data.hits);
      at("found").hidden = false;
    } else if (name === "text") {
      answer.add(data.text);
    } else if (name === "answer") {
      answer.finish(data, passages.open);
      if (isFirst) passages.mark(data.hits, data);
    }
  }
  if (!answer.result) throw new ApiError(500, "the server ended the answer early");
}

function compare(answers) {
  const longest = Math.max(...answers.map((answer) => answer.result.timings.total));
  answers.forEach((answer) => answer.draw(longest));
  if (answers.length < 2) return;
  const [cached, uncached] = answers.map((answer) => answer.result.timings.first_token);
  const times = uncached / cached;
  const words = times < 1 ? `${(1 / times).toFixed(1)} times later` : `${times.toFixed(1)} times sooner`;
  at("verdict").textContent = `The first token came ${words} from states.`;
  at("verdict").hidden = false;
}

async function upload(files) {
  for (const file of files) await uploads.add(file, at("index").value);
  at("files").value = "";
  await loadIndexes();
}

at("ask").addEventListener("submit", ask);
at("stop").addEventListener("click", () => running?.abort());
at("index").addEventListener("change", showFacts);
at("files").addEventListener("change", () => upload([...at("files").files]));
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(at("key").value.trim());
  at("key-form").hidden = true;
  loadIndexes();
});
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  at("drop").addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", over);
    if (name === "drop" && !at("files").disabled) upload([...event.dataTransfer.files]);
  });
}
loadIndexes();
