/** The words of a running job, or of the microphone, before the transcript takes their place. */

import { byId, element, setText } from "./dom.js";
import { clock } from "./i18n.js";

/** A paragraph ends with the first sentence after so many characters, so that it can be scrolled. */
const PARAGRAPH_CHARACTERS = 600;
/** Within this distance from the end, in pixels, the view follows new words. */
const AT_END = 40;

export class LiveView {
  #box = byId("live");
  #paragraph = null;
  #length = 0;
  #rows = [];

  /** Show the deltas received so far. */
  show(deltas) {
    this.#clear();
    this.#begin();
    for (const delta of deltas) this.#write(delta);
    this.#box.hidden = deltas.length === 0;
    this.#box.scrollTop = this.#box.scrollHeight;
  }

  append(delta) {
    this.#following(() => this.#write(delta));
    this.#box.hidden = false;
  }

  /** Show the turns of a recording, `{startS, text}` each, as the transcript will show its sentences. */
  showTurns(turns) {
    const spoken = turns.filter(({ text }) => text.trim() !== "");
    if (this.#rows.length === 0) this.#clear();
    this.#box.hidden = spoken.length === 0;
    this.#following(() => spoken.forEach((turn, index) => this.#writeTurn(turn, index)));
  }

  hide() {
    this.#box.hidden = true;
    this.#clear();
  }

  /** Stay at the end if the view is there. */
  #following(act) {
    const follows = this.#box.scrollHeight - this.#box.scrollTop - this.#box.clientHeight < AT_END;
    act();
    if (follows) this.#box.scrollTop = this.#box.scrollHeight;
  }

  #clear() {
    this.#rows = [];
    this.#box.replaceChildren();
  }

  #writeTurn({ startS, text }, index) {
    if (!this.#rows[index]) {
      const row = [element("span", { className: "time" }), element("span", { className: "words" })];
      this.#rows.push(row);
      this.#box.append(element("p", { className: "turn", dir: "auto" }, ...row));
    }
    const [time, words] = this.#rows[index];
    setText(time, clock(startS));
    setText(words, text.trim());
  }

  #write(delta) {
    if (this.#length >= PARAGRAPH_CHARACTERS && /[.!?。！？]\s*$/.test(this.#paragraph.textContent)) this.#begin();
    this.#paragraph.append(delta);
    this.#length += delta.length;
  }

  #begin() {
    this.#paragraph = element("p", { dir: "auto" });
    this.#length = 0;
    this.#box.append(this.#paragraph);
  }
}
