/** The list of transcripts stored in this browser. */

import { byId, say, setText } from "./dom.js";
import { clock, dateAndTime, onLanguageChange, text } from "./i18n.js";

/** How long a deletion can be undone. */
const UNDO_MS = 12_000;

export class HistoryView {
  entries = [];
  #history;
  #onOpen;
  #openId = null;
  #removed = null;
  #undoTimer = null;

  /** `onOpen(entry, contents)` is called when an entry is opened. */
  constructor(history, onOpen) {
    this.#history = history;
    this.#onOpen = onOpen;
    byId("history-clear").addEventListener("click", () => this.#clear());
    byId("history-restore").addEventListener("click", () => this.#restore());
    onLanguageChange(() => this.#render());
  }

  async refresh() {
    this.entries = await this.#history.list();
    this.#render();
  }

  /** Mark what is open. */
  show(openId) {
    if (openId === this.#openId) return;
    this.#openId = openId;
    this.#render();
  }

  async #clear() {
    if (!confirm(text("history.confirm_clear"))) return;
    await this.#history.clear();
    say(text("history.cleared"));
    await this.refresh();
  }

  async #remove(entry) {
    this.#removed = await this.#history.remove(entry.id);
    clearTimeout(this.#undoTimer);
    this.#undoTimer = setTimeout(() => {
      this.#removed = null;
      this.#render();
    }, UNDO_MS);
    say(text("history.deleted", { name: entry.name }));
    await this.refresh();
    byId("history-restore").focus();
  }

  async #restore() {
    const removed = this.#removed;
    this.#removed = null;
    if (removed) await this.#history.restore(removed);
    await this.refresh();
    byId("history-heading").focus();
  }

  async #open(entry) {
    const contents = await this.#history.contentsOf(entry.id);
    if (contents) this.#onOpen(entry, contents);
    else await this.refresh(); // It was deleted in another tab.
  }

  #render() {
    byId("history").hidden = this.entries.length === 0 && !this.#removed;
    byId("history-undo").hidden = !this.#removed;
    setText(byId("history-undo-text"), this.#removed ? text("history.deleted", { name: this.#removed.entry.name }) : "");
    byId("history-list").replaceChildren(...this.entries.map((entry) => this.#item(entry)));
  }

  #item(entry) {
    const item = byId("history-item").content.firstElementChild.cloneNode(true);
    const part = (name) => item.querySelector(`[data-part="${name}"]`);
    setText(part("open"), entry.name);
    part("open").addEventListener("click", () => this.#open(entry));
    item.classList.toggle("open", entry.id === this.#openId);
    part("open").toggleAttribute("aria-current", entry.id === this.#openId);
    setText(part("detail"), `${clock(entry.durationS)} · ${dateAndTime(entry.savedAt)}`);
    setText(part("delete"), "×");
    part("delete").setAttribute("aria-label", text("queue.of", { action: text("history.delete"), name: entry.name }));
    part("delete").title = text("history.delete");
    part("delete").addEventListener("click", () => this.#remove(entry));
    return item;
  }
}
