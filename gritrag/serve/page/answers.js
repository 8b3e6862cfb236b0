// An answer as it is written: its text, the time to the first token, and where the time went.

const STAGES = ["retrieve", "load", "place", "forward", "decode"];
const template = document.getElementById("answer-template");

export const seconds = (value) => (value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(2)} s`);

export class Answer {
  constructor(title, into) {
    this.element = template.content.firstElementChild.cloneNode(true);
    this.find("h2").textContent = title;
    this.title = title;
    this.result = null;
    this.began = null;
    into.append(this.element);
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  begin() {
    this.began = performance.now();
    this.find(".text").classList.add("busy");
    this.element.setAttribute("aria-busy", "true");
  }

  add(text) {
    const shown = this.find(".text");
    if (!shown.textContent) {
      this.find(".first-token strong").textContent = seconds((performance.now() - this.began) / 1000);
      text = text.trimStart();
    }
    shown.append(text);
  }

  finish(result, onCitation) {
    this.result = result;
    this.find(".text").textContent = result.text;
    this.find(".first-token strong").textContent = seconds(result.timings.first_token);
    const cached = result.usage.prompt_tokens_details.cached_tokens;
    const share = Math.round((100 * cached) / result.usage.prompt_tokens);
    this.find(".usage").textContent =
      `${cached} of ${result.usage.prompt_tokens} tokens reused (${share} %), ${result.usage.completion_tokens} written; ` +
      (cached === 0 ? "nothing reused" : result.exact ? "exact: the text is that of reading again" : "approximate: passages were read one by one") +
      (result.unanswerable == null ? "" : `; the passages lack the answer with a probability of ${Math.round(100 * result.unanswerable)} %`);
    const cited = this.find(".cited");
    for (const citation of result.citations) {
      const rank = result.hits.findIndex((hit) => hit.id === citation.id);
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `[${rank + 1}] ${nameOf(result.hits[rank])}`;
      button.addEventListener("click", () => onCitation(rank));
      cited.append(button);
    }
    this.end();
  }

  end() {
    this.find(".text").classList.remove("busy");
    this.element.removeAttribute("aria-busy");
  }

  // Bars of several answers have one scale: `longest` seconds.
  draw(longest) {
    const { retrieve, load, place, first_token, total } = this.result.timings;
    const spent = { retrieve, load, place, forward: Math.max(0, first_token - retrieve - load - place), decode: total - first_token };
    const bar = this.find(".bar");
    const list = this.find(".stages");
    bar.replaceChildren();
    list.replaceChildren();
    for (const stage of STAGES) {
      const piece = document.createElement("i");
      piece.className = stage;
      piece.style.width = `${(100 * spent[stage]) / longest}%`;
      bar.append(piece);
      const entry = document.createElement("div");
      entry.className = stage;
      const name = document.createElement("dt");
      const time = document.createElement("dd");
      name.textContent = stage;
      time.textContent = seconds(spent[stage]);
      entry.append(name, time);
      list.append(entry);
    }
  }
}

// What a passage is called: its title or file, and where it stands in it.
export function nameOf(hit) {
  const place = ["page", "slide", "part", "sheet", "row"].filter((field) => field in hit.metadata);
  const words = place.map((field) => `${field} ${hit.metadata[field]}`);
  const name = hit.title || hit.metadata.filename || hit.metadata.source_file || hit.id;
  return [name, ...words].join(", ");
}
