/** The words of a running job, before they have times. */

import { byId, element } from "./dom.js";

/** A paragraph ends with the first sentence after so many characters, so that it can be scrolled. */
const PARAGRAPH_CHARACTERS = 600;
/** Within this distance from the end, in pixels, the view follows new words. */
const AT_END = 40;

export class LiveView {
  #box = byId("live");
  #paragraph = null;
  #length = 0;

  /** Show the deltas received so far. */
  show(deltas) {
    this.#box.replaceChildren();
    this.#begin();
    for (const delta of deltas) this.#write(delta);
    this.#box.hidden = deltas.length === 0;
    this.#box.scrollTop = this.#box.scrollHeight;
  }

  append(delta) {
    const follows = this.#box.scrollHeight - this.#box.scrollTop - this.#box.clientHeight < AT_END;
    this.#write(delta);
    this.#box.hidden = false;
    if (follows) this.#box.scrollTop = this.#box.scrollHeight;
  }

  hide() {
    this.#box.hidden = true;
    this.#box.replaceChildren();
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
