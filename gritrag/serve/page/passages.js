// The passages that were found, with scores, and with the words that the answer took from them marked.

import { nameOf } from "./answers.js";

const list = document.getElementById("passages");
const template = document.getElementById("passage-template");
const WORDS = /[\p{L}\p{N}]+/gu;
const RUN = 3; // words in a row that passage and answer share are marked; of shorter answers all

export function show(hits) {
  list.replaceChildren();
  for (const hit of hits) {
    const item = template.content.firstElementChild.cloneNode(true);
    item.querySelector(".rank").textContent = hit.rank;
    item.querySelector(".name").textContent = nameOf(hit);
    item.querySelector(".score").textContent = `score ${hit.score.toFixed(3)}`;
    item.querySelector(".passage").textContent = hit.text;
    item.querySelector(".id").textContent = hit.id;
    list.append(item);
  }
}

export function mark(hits, answer) {
  const said = wordsOf(answer.text);
  const length = Math.max(1, Math.min(RUN, said.length));
  const runs = new Set(runsOf(said, length));
  const cited = new Set(answer.citations.map((citation) => citation.id));
  hits.forEach((hit, number) => {
    const item = list.children[number];
    item.classList.toggle("is-cited", cited.has(hit.id));
    const passage = item.querySelector(".passage");
    const words = wordsOf(hit.text);
    passage.replaceChildren();
    let end = 0;
    for (const [first, last] of shared(words, runs, length)) {
      const piece = document.createElement("mark");
      piece.textContent = hit.text.slice(words[first].start, words[last].end);
      passage.append(hit.text.slice(end, words[first].start), piece);
      end = words[last].end;
    }
    passage.append(hit.text.slice(end));
  });
}

// Spans of words, first and last, that stand in a row in the answer too.
function shared(words, runs, length) {
  const spans = [];
  runsOf(words, length).forEach((run, first) => {
    if (!runs.has(run)) return;
    const open = spans.at(-1);
    if (open && first <= open[1] + 1) open[1] = first + length - 1;
    else spans.push([first, first + length - 1]);
  });
  return spans;
}

const runsOf = (words, length) =>
  words.slice(length - 1).map((_, first) => words.slice(first, first + length).map((word) => word.text).join(" "));

const wordsOf = (text) =>
  [...text.matchAll(WORDS)].map((match) => ({ text: match[0].toLowerCase(), start: match.index, end: match.index + match[0].length }));

export function open(number) {
  const details = list.children[number].querySelector("details");
  details.open = true;
  details.querySelector("summary").focus();
  details.scrollIntoView({ block: "center" });
}
