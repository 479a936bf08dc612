/** The search box: finds words of the open transcript, goes from match to match, replaces them all. */

import { byId, debounced, say, setText } from "./dom.js";
import { number, text } from "./i18n.js";

const DELAY_MS = 150;

export class SearchView {
  #transcriptView;
  #transcript = null;
  #found = [];
  #foundAt = -1;
  /** The text that was last replaced and how often, until another one is searched. */
  #replaced = null;

  constructor(transcriptView) {
    this.#transcriptView = transcriptView;
    const box = byId("search");
    box.addEventListener("input", debounced(() => this.#search(), DELAY_MS));
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      this.#goTo(event.shiftKey ? -1 : 1);
    });
    byId("search-next").addEventListener("click", () => this.#goTo(1));
    byId("search-previous").addEventListener("click", () => this.#goTo(-1));
    byId("replace").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#replaceAll(box.value, byId("replacement").value);
    });
  }

  /** Begin anew in a transcript; `null` if there is none. */
  begin(transcript) {
    this.#transcript = transcript;
    this.#replaced = null;
    byId("search").value = "";
    this.#found = [];
    this.#foundAt = -1;
  }

  /** Forget the matches: an edit may have moved them. */
  forget() {
    this.#replaced = null;
    this.#found = [];
    this.#foundAt = -1;
    this.#transcriptView.markFound([], -1);
  }

  render() {
    const searching = byId("search").value.trim() !== "";
    const count = this.#found.length;
    const values = { place: number(this.#foundAt + 1), count: number(this.#replaced ? this.#replaced.count : count) };
    const key = this.#replaced ? "replace.done" : count > 0 ? "search.place" : "search.none";
    setText(byId("search-count"), searching ? text(key, values) : "");
    byId("search-next").hidden = byId("search-previous").hidden = count === 0;
  }

  #search() {
    const wanted = byId("search").value;
    if (this.#replaced?.wanted !== wanted) this.#replaced = null;
    this.#found = this.#transcript?.search(wanted) ?? [];
    this.#foundAt = this.#found.length > 0 ? 0 : -1;
    this.#show();
  }

  #goTo(step) {
    const count = this.#found.length;
    if (count === 0) return;
    this.#replaced = null;
    this.#foundAt = (this.#foundAt + step + count) % count;
    this.#show();
  }

  #show() {
    this.#transcriptView.markFound(this.#found, this.#foundAt);
    this.render();
  }

  #replaceAll(wanted, replacement) {
    this.#replaced = { wanted, count: this.#transcript.replaceAll(wanted, replacement) };
    say(text("replace.done", { count: number(this.#replaced.count) }));
    this.render();
  }
}
