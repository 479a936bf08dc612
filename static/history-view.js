/** The list of transcripts stored in this browser. */

import { byId, say, setText } from "./dom.js";
import { clock, dateAndTime, onLanguageChange, text } from "./i18n.js";

/** How long a deletion can be undone. */
const UNDO_MS = 12_000;

export class HistoryView {
  entries = [];
  #history;
  #acts;
  #openId = null;
  #removed = null;
  #undoTimer = null;

  /**
   * `acts` are `{open(entry, contents), download(entry, contents), gone(ids)}`; the last is called with the
   * entries that are deleted, here or in another tab.
   */
  constructor(history, acts) {
    this.#history = history;
    this.#acts = acts;
    byId("history-clear").addEventListener("click", () => this.#clear());
    byId("history-restore").addEventListener("click", () => this.#restore());
    onLanguageChange(() => this.#render());
  }

  async refresh() {
    const before = this.entries;
    this.entries = await this.#history.list();
    this.#render();
    const ids = new Set(this.entries.map(({ id }) => id));
    const gone = before.filter(({ id }) => !ids.has(id));
    if (gone.length > 0) this.#acts.gone(gone.map(({ id }) => id));
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

  /** Call `act` with an entry and its contents. */
  async #with(entry, act) {
    const contents = await this.#history.contentsOf(entry.id);
    if (contents) act(entry, contents);
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
    part("open").addEventListener("click", () => this.#with(entry, this.#acts.open));
    item.classList.toggle("open", entry.id === this.#openId);
    part("open").toggleAttribute("aria-current", entry.id === this.#openId);
    setText(part("detail"), `${clock(entry.durationS)} · ${dateAndTime(entry.savedAt)}`);
    const button = (name, sign, act) => {
      setText(part(name), sign);
      part(name).setAttribute("aria-label", text("queue.of", { action: text(`history.${name}`), name: entry.name }));
      part(name).title = text(`history.${name}`);
      part(name).addEventListener("click", act);
    };
    button("download", "↓", () => this.#with(entry, this.#acts.download));
    button("delete", "×", () => this.#remove(entry));
    return item;
  }
}
