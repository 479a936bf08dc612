/** The list of transcripts that this browser keeps. */

import { byId, say, setText } from "./dom.js";
import { clock, dateAndTime, onLanguageChange, text } from "./i18n.js";

export class HistoryView {
  #history;
  #entries = [];
  #onOpen;

  /** `onOpen(entry, contents)` is called with what a person opens. */
  constructor(history, onOpen) {
    this.#history = history;
    this.#onOpen = onOpen;
    byId("history-clear").addEventListener("click", () => this.#clear());
    onLanguageChange(() => this.#render());
  }

  async refresh() {
    this.#entries = await this.#history.list();
    this.#render();
  }

  async #clear() {
    if (!confirm(text("history.confirm_clear"))) return;
    await this.#history.clear();
    say(text("history.cleared"));
    await this.refresh();
  }

  async #remove(entry) {
    await this.#history.remove(entry.id);
    say(text("history.deleted", { name: entry.name }));
    await this.refresh();
    byId("history-heading").focus();
  }

  async #open(entry) {
    const contents = await this.#history.contentsOf(entry.id);
    if (contents) this.#onOpen(entry, contents);
    else await this.refresh(); // It was deleted in another tab.
  }

  #render() {
    byId("history").hidden = this.#entries.length === 0;
    byId("history-list").replaceChildren(...this.#entries.map((entry) => this.#item(entry)));
  }

  #item(entry) {
    const item = byId("history-item").content.firstElementChild.cloneNode(true);
    const part = (name) => item.querySelector(`[data-part="${name}"]`);
    setText(part("open"), entry.name);
    part("open").addEventListener("click", () => this.#open(entry));
    setText(part("detail"), `${clock(entry.durationS)} · ${dateAndTime(entry.savedAt)}`);
    setText(part("delete"), text("history.delete"));
    part("delete").setAttribute("aria-label", text("queue.of", { action: text("history.delete"), name: entry.name }));
    part("delete").addEventListener("click", () => this.#remove(entry));
    return item;
  }
}
