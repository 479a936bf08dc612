/** Editor of a sentence: its words, splitting, joining, and the speaker. */

import { byId, element } from "./dom.js";
import { text } from "./i18n.js";

export class SentenceEditor {
  #edit = null;
  #onBegin;
  #onEnd;

  /** `onBegin()` is called as an edit begins; `onEnd(index, {focus, next})` after it. */
  constructor({ onBegin, onEnd }) {
    this.#onBegin = onBegin;
    this.#onEnd = onEnd;
  }

  get isOpen() {
    return this.#edit !== null;
  }

  /** Open the sentence at `at`, with the word at `place` selected; -1 puts the caret at the end. */
  open(item, transcript, at, place) {
    const words = transcript.wordsOf(transcript.sentences[at]).map((word) => word.text);
    const field = element("textarea", { className: "sentence-field", rows: 1, value: words.join(" "), spellcheck: true });
    field.setAttribute("aria-label", text("edit.sentence"));
    const shown = item.querySelector(".words");
    const acts = this.#acts(transcript, at);
    const box = element("div", { className: "editor" }, field, acts);
    this.#edit = { item, transcript, at, field, box, shown, before: field.value };
    item.classList.add("being-edited");
    shown.hidden = true;
    shown.after(box);
    field.addEventListener("input", () => grow(field));
    field.addEventListener("keydown", (event) => this.#key(event));
    box.addEventListener("focusout", ({ relatedTarget }) => {
      // A click on an element without focus also blurs the field, but does not leave the page.
      if (!box.contains(relatedTarget) && document.hasFocus()) this.close();
    });
    this.#onBegin();
    grow(field);
    field.focus();
    const start = place < 0 ? field.value.length : words.slice(0, place).join(" ").length + (place > 0 ? 1 : 0);
    field.setSelectionRange(start, start + (place < 0 ? 0 : words[place].length));
  }

  /** Save the typed text. */
  close(how = {}) {
    if (!this.#edit) return;
    const { transcript, at, field } = this.#end();
    transcript.editSentence(at, field.value);
    this.#onEnd(at, { focus: false, ...how });
  }

  /** Rename a speaker everywhere. */
  renameSpeaker(label, transcript) {
    const was = label.textContent;
    const field = element("input", { className: "speaker-field", value: was });
    field.setAttribute("aria-label", text("speaker.rename", { name: was }));
    let isOpen = true;
    const close = (name) => {
      if (!isOpen) return;
      isOpen = false;
      field.replaceWith(label);
      transcript.renameSpeaker(was, name);
    };
    field.addEventListener("blur", () => close(field.value));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === "Escape") {
        event.preventDefault();
        close(event.key === "Enter" ? field.value : was);
      }
    });
    label.replaceWith(field);
    field.focus();
    field.select();
  }

  /** Remove the field; return its state. */
  #end() {
    const edit = this.#edit;
    this.#edit = null;
    edit.item.classList.remove("being-edited");
    edit.box.remove();
    edit.shown.hidden = false;
    return edit;
  }

  #acts(transcript, at) {
    const button = (key, act, disabled = false) => {
      const made = element("button", { type: "button", textContent: text(key), disabled });
      made.addEventListener("click", act);
      return made;
    };
    const speaker = element("input", { className: "speaker-field", value: transcript.sentences[at].speaker ?? "", placeholder: text("speaker.label") });
    speaker.setAttribute("aria-label", text("speaker.label"));
    speaker.setAttribute("list", "speaker-names");
    this.#offerNames(transcript);
    speaker.addEventListener("change", () => {
      const { at: place } = this.#edit ?? { at };
      this.close();
      transcript.setSpeaker(place, speaker.value);
    });
    return element(
      "div",
      { className: "editor-acts" },
      button("edit.done", () => this.close({ focus: true })),
      button("edit.split", () => this.#split()),
      button("edit.join", () => this.#joinNext(), at + 1 >= transcript.sentences.length),
      speaker,
    );
  }

  #offerNames(transcript) {
    byId("speaker-names").replaceChildren(...transcript.speakers.map((value) => element("option", { value })));
  }

  #key(event) {
    const { field } = this.#edit;
    const isCommand = event.ctrlKey || event.metaKey;
    const act = {
      Enter: () => (isCommand || event.shiftKey ? this.#split() : this.close({ focus: true })),
      Escape: () => this.#giveUp(),
      Backspace: () => this.#joinPrevious(),
      Delete: () => this.#joinNext(),
    }[event.key];
    const atStart = field.selectionStart === 0 && field.selectionEnd === 0;
    const atEnd = field.selectionStart === field.value.length;
    if (!act || event.isComposing) return;
    if (event.key === "Backspace" && (!atStart || this.#edit.at === 0)) return;
    if (event.key === "Delete" && !atEnd) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  }

  #giveUp() {
    const { at } = this.#end();
    this.#onEnd(at, { focus: true });
  }

  #split() {
    const { field, transcript } = this.#edit;
    const caret = field.selectionStart;
    const [before, after] = [field.value.slice(0, caret), field.value.slice(caret)];
    if (!before.trim() || !after.trim()) return;
    const { at } = this.#end();
    transcript.split(at, before, after);
    this.#onEnd(at, { focus: false, next: at + 1 });
  }

  #joinNext() {
    const { field, transcript } = this.#edit;
    const { at } = this.#end();
    transcript.joinNext(at, field.value);
    this.#onEnd(at, { focus: false, next: at });
  }

  #joinPrevious() {
    const { field, transcript } = this.#edit;
    const { at } = this.#end();
    if (field.value.trim()) {
      transcript.editSentence(at, field.value);
      transcript.joinNext(at - 1);
    } else transcript.editSentence(at, "");
    this.#onEnd(at - 1, { focus: false, next: at - 1 });
  }
}

function grow(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}
