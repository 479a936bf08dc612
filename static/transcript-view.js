/**
 * The transcript on the page: sentences with times, words that can be played, marked and edited.
 *
 * Every sentence is in the page as text, for the browser's own search and for screen readers. Only
 * those near the window have an element for each word: 12 hours are 100,000 of them.
 *
 * Keyboard: one stop for Tab. Up and Down go from sentence to sentence, Left and Right from word to
 * word, Enter plays from there, F2 edits.
 */

import { byId, debounced, element, prefersStillness } from "./dom.js";
import { clock, number, text } from "./i18n.js";
import { isUncertain } from "./transcript.js";

/** How far outside the window sentences get their words. */
const NEAR = "800px 0px";
/** How long the scrolling must rest for that: what flies by is never read word by word. */
const REST_MS = 80;
/** How long the page leaves a person alone who has scrolled, before it follows the sound again. */
const LEAVE_ALONE_MS = 4_000;

export class TranscriptView {
  #list = byId("sentences");
  #transcript = null;
  #items = [];
  #spoken = -1;
  #found = [];
  #current = null;
  #stop = null;
  #scrolledAt = -Infinity;
  #near = new Set();
  #expandNear = debounced(() => this.#near.forEach((item) => this.#expand(item)), REST_MS);
  #observer;
  #onPlay;
  #onEditing;

  /**
   * `onPlay(seconds)` is called to play from a moment, `onEditing()` when an edit begins.
   */
  constructor({ onPlay, onEditing }) {
    this.#onPlay = onPlay;
    this.#onEditing = onEditing;
    this.#observer = new IntersectionObserver((entries) => this.#cross(entries), { rootMargin: NEAR });
    this.#list.addEventListener("click", (event) => this.#click(event));
    this.#list.addEventListener("dblclick", (event) => this.#editAt(event.target));
    this.#list.addEventListener("keydown", (event) => this.#key(event));
    for (const name of ["wheel", "touchmove"]) {
      window.addEventListener(name, () => { this.#scrolledAt = performance.now(); }, { passive: true });
    }
  }

  get isEditing() {
    return byId("edit").getAttribute("aria-pressed") === "true";
  }

  /** Whether a person is at the words or at the search, and so would lose their place. */
  get #isInUse() {
    return [this.#list, byId("tools")].some((part) => part.contains(document.activeElement));
  }

  show(transcript, languageCode) {
    this.#observer.disconnect();
    this.#near.clear();
    this.#transcript = transcript;
    this.#spoken = -1;
    this.#found = [];
    this.#current = null;
    this.#list.lang = languageCode;
    this.#items = transcript.sentences.map((sentence, index) => this.#item(sentence, index));
    this.#list.replaceChildren(...this.#items);
    this.#stop = null;
    if (this.#items.length > 0) this.#stopAt(this.#items[0].firstChild);
    for (const item of this.#items) this.#observer.observe(item);
  }

  /** Mark the word that is being spoken, and keep it in view. */
  markSpoken(index) {
    if (index === this.#spoken) return;
    this.#wordElement(this.#spoken)?.classList.remove("speaking");
    this.#spoken = index;
    const word = this.#wordElement(index);
    word?.classList.add("speaking");
    const item = this.#itemOf(index);
    const left = performance.now() - this.#scrolledAt > LEAVE_ALONE_MS;
    if (item && left && !this.#isInUse) bringIntoView(item, "nearest");
  }

  /** Mark places, `{first, end}` each, and go to the one at `current`. */
  markFound(places, current) {
    const touched = new Set([...this.#sentencesOf(this.#found), ...this.#sentencesOf(places)]);
    this.#found = places;
    this.#current = places[current] ?? null;
    for (const index of touched) this.#rewrite(index);
    if (!this.#current) return;
    const item = this.#itemOf(this.#current.first);
    this.#expand(item);
    jumpTo(item, "center");
  }

  /** Go to a word and put the keyboard there. */
  goTo(index) {
    this.#expand(this.#itemOf(index));
    this.#focus(this.#wordElement(index), "center");
  }

  // ---- Sentences and their words ----

  #item(sentence, index) {
    const time = element("button", { type: "button", className: "time", tabIndex: -1, textContent: clock(sentence.startS) });
    time.setAttribute("aria-label", text("transcript.play_from", { time: clock(sentence.startS) }));
    const words = element("p", { className: "words", dir: "auto", textContent: this.#transcript.textOf(sentence) });
    const item = element("li", {}, time, words);
    item.dataset.index = index;
    return item;
  }

  #cross(entries) {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) this.#near.add(target);
      else this.#near.delete(target);
      if (!isIntersecting && !target.contains(document.activeElement)) this.#collapse(target);
    }
    this.#expandNear();
  }

  #expand(item) {
    if (item.dataset.expanded) return;
    item.dataset.expanded = "true";
    this.#writeWords(item);
  }

  #collapse(item) {
    if (!item.dataset.expanded) return;
    delete item.dataset.expanded;
    item.lastChild.textContent = this.#transcript.textOf(this.#sentence(item));
    this.#keepStop(item);
  }

  /** Write a sentence again after its words or their marks have changed; far ones have no marks. */
  #rewrite(index) {
    if (this.#items[index].dataset.expanded) this.#writeWords(this.#items[index]);
  }

  #writeWords(item) {
    const sentence = this.#sentence(item);
    const nodes = this.#transcript.wordsOf(sentence).flatMap((word, offset) => {
      const made = this.#word(word, sentence.first + offset);
      return offset === 0 ? [made] : [" ", made];
    });
    item.lastChild.replaceChildren(...nodes);
    this.#keepStop(item);
  }

  #word(word, index) {
    const made = element("span", { className: "word", textContent: word.text });
    made.dataset.word = index;
    made.classList.toggle("uncertain", isUncertain(word));
    made.classList.toggle("edited", word.edited);
    made.classList.toggle("speaking", index === this.#spoken);
    made.classList.toggle("found", this.#found.some(({ first, end }) => first <= index && index < end));
    made.classList.toggle("current", this.#current !== null && this.#current.first <= index && index < this.#current.end);
    if (isUncertain(word)) made.title = uncertainty(word);
    return made;
  }

  #sentence(item) {
    return this.#transcript.sentences[item.dataset.index];
  }

  #itemOf(index) {
    return index < 0 ? null : this.#items[this.#transcript.sentenceOf(index)];
  }

  #wordElement(index) {
    return this.#itemOf(index)?.querySelector(`[data-word="${index}"]`) ?? null;
  }

  #sentencesOf(places) {
    return places.map(({ first }) => this.#transcript.sentenceOf(first));
  }

  // ---- Mouse and keyboard ----

  #click({ target }) {
    const word = target.closest("[data-word]");
    if (word && this.isEditing) this.#edit(word);
    else if (word) this.#play(word);
    else if (target.closest(".time")) this.#onPlay(this.#sentence(target.closest("li")).startS);
  }

  #play(word) {
    this.#onPlay(this.#transcript.words[word.dataset.word].start);
  }

  #key(event) {
    if (event.target.tagName === "INPUT") return;
    const act = {
      ArrowDown: () => this.#focusSentence(event.target, 1),
      ArrowUp: () => this.#focusSentence(event.target, -1),
      ArrowRight: () => this.#focusWord(event.target, 1),
      ArrowLeft: () => this.#focusWord(event.target, -1),
      Home: () => this.#focus(this.#items[0].firstChild),
      End: () => this.#focus(this.#items.at(-1).firstChild),
      F2: () => this.#editAt(event.target),
      ...(event.target.dataset.word && {
        Enter: () => (this.isEditing ? this.#edit(event.target) : this.#play(event.target)),
        " ": () => this.#play(event.target),
      }),
    }[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  }

  #focusSentence(from, step) {
    const item = this.#items[Number(from.closest("li").dataset.index) + step];
    if (item) this.#focus(item.firstChild);
  }

  #focusWord(from, step) {
    const item = from.closest("li");
    this.#expand(item);
    const stops = [item.firstChild, ...item.querySelectorAll("[data-word]")];
    const next = stops[stops.indexOf(from) + step];
    if (next) this.#focus(next);
  }

  #focus(target, block = "nearest") {
    this.#stopAt(target);
    target.focus({ preventScroll: true });
    jumpTo(target.closest("li"), block);
  }

  /** Keep the transcript reachable by Tab after its stop was among the words written anew. */
  #keepStop(item) {
    if (this.#stop && !this.#stop.isConnected) this.#stopAt(item.firstChild);
  }

  /** Make `target` the transcript's one stop for Tab; a word is a button while it is that. */
  #stopAt(target) {
    if (this.#stop) leave(this.#stop);
    this.#stop = target;
    target.tabIndex = 0;
    const index = target.dataset.word;
    if (index === undefined) return;
    const word = this.#transcript.words[index];
    target.setAttribute("role", "button");
    if (isUncertain(word)) target.setAttribute("aria-label", `${word.text}, ${uncertainty(word)}`);
  }

  // ---- Editing ----

  #editAt(target) {
    const word = target.closest("[data-word]");
    if (word) this.#edit(word);
  }

  #edit(word) {
    const index = Number(word.dataset.word);
    const before = this.#transcript.words[index].text;
    const field = element("input", { className: "word-field", value: before, spellcheck: true });
    field.setAttribute("aria-label", text("transcript.edit_word", { word: before }));
    field.size = Math.max(4, before.length + 1);
    this.#onEditing();
    let open = true;
    const close = (value, refocus) => {
      if (!open) return;
      open = false;
      this.#transcript.edit(index, value);
      this.#rewrite(this.#transcript.sentenceOf(index));
      if (refocus) this.#focus(this.#wordElement(index));
    };
    field.addEventListener("blur", () => close(field.value, false));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter") close(field.value, true);
      if (event.key === "Escape") close(before, true);
      if (event.key === "Enter" || event.key === "Escape") event.preventDefault();
    });
    word.replaceWith(field);
    field.focus();
    field.select();
  }
}

function leave(target) {
  target.tabIndex = -1;
  target.removeAttribute("role");
  if (target.dataset.word !== undefined) target.removeAttribute("aria-label");
}

function uncertainty({ probability }) {
  return text("transcript.uncertain", { percent: number(probability, { style: "percent" }) });
}

/** Scroll as a person asks for it. */
function jumpTo(item, block) {
  // A scroll still under way would go on past an item that is in view at this moment.
  window.scrollBy({ top: 0, behavior: "instant" });
  bringIntoView(item, block);
}

function bringIntoView(item, block) {
  item.scrollIntoView({ block, behavior: prefersStillness() ? "auto" : "smooth" });
}
