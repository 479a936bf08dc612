/**
 * The transcript on the page: paragraphs of sentences with times, words that can be played and marked.
 *
 * Every sentence is in the page as text, for the browser's search and for screen readers, and laid
 * out, so that jumps have a target. Only those near the window have an element for each word: 12 hours
 * are 100,000 of them.
 *
 * Keyboard: one stop for Tab. Up and Down go from sentence to sentence, Left and Right from word to
 * word, Enter plays from there, F2 edits.
 */

import { byId, debounced, element } from "./dom.js";
import { clock, number, text } from "./i18n.js";
import { SentenceEditor } from "./sentence-editor.js";
import { isUncertain } from "./transcript.js";

/** Distance from the window within which sentences get elements for words. */
const NEAR = "800px 0px";
/** How long scrolling must pause before that. */
const REST_MS = 80;
/** How long the target of a jump stays marked. */
const TARGET_MS = 2_000;
/** Colours of speakers in the style sheet; further speakers share them. */
const VOICES = 8;

export class TranscriptView {
  #list = byId("sentences");
  #transcript = null;
  #items = [];
  #spoken = -1;
  #found = [];
  #current = null;
  #stop = null;
  #follows = true;
  #targetTimer = null;
  #near = new Set();
  #expandNear = debounced(() => this.#near.forEach((item) => this.#expand(item)), REST_MS);
  #observer;
  #onPlay;
  #onFollow;
  #editor;

  /**
   * `onPlay(seconds)` is called to play from a moment, `onEditing()` when an edit begins, `onFollow()`
   * when the user has scrolled away from the current word.
   */
  constructor({ onPlay, onEditing, onFollow }) {
    this.#onPlay = onPlay;
    this.#onFollow = onFollow;
    this.#editor = new SentenceEditor({ onBegin: onEditing, onEnd: (at, how) => this.#edited(at, how) });
    this.#observer = new IntersectionObserver((entries) => this.#cross(entries), { rootMargin: NEAR });
    this.#list.addEventListener("click", (event) => this.#click(event));
    this.#list.addEventListener("dblclick", (event) => this.#editAt(event.target));
    this.#list.addEventListener("keydown", (event) => this.#key(event));
    for (const name of ["wheel", "touchmove"]) {
      window.addEventListener(name, () => this.#scrolled(), { passive: true });
    }
    window.addEventListener("keydown", ({ key, target }) => {
      if (["PageUp", "PageDown"].includes(key) && !target.closest?.("[role=slider]")) this.#scrolled();
    });
  }

  get isEditing() {
    return byId("edit").getAttribute("aria-pressed") === "true";
  }

  get follows() {
    return this.#follows;
  }

  set follows(wanted) {
    this.#follows = wanted;
    if (wanted && this.#spoken >= 0) jumpTo(this.#itemOf(this.#spoken), "center");
  }

  #scrolled() {
    if (!this.#follows || this.#spoken < 0) return;
    this.#follows = false;
    this.#onFollow();
  }

  /** Finish an edit that is open, as when the page is left. */
  commit() {
    this.#editor.close();
  }

  show(transcript, languageCode) {
    this.#observer.disconnect();
    this.#near.clear();
    this.#transcript = transcript;
    this.#spoken = -1;
    this.#found = [];
    this.#current = null;
    this.#list.lang = languageCode;
    this.#write();
    this.#follows = true;
  }

  /** Update the sentences that an edit has changed. */
  changed({ isStructural, changed }) {
    this.#spoken = -1;
    if (isStructural) {
      this.keepPlace(() => this.#write());
    } else {
      for (const at of changed) this.#items[at].querySelector(".words").textContent = this.#transcript.textOf(this.#transcript.sentences[at]);
      // The indices of all following words may have changed.
      for (const item of this.#items) if (item.dataset.expanded) this.#writeWords(item);
    }
  }

  #write() {
    const { sentences } = this.#transcript;
    this.#observer.disconnect();
    this.#near.clear();
    this.#items = sentences.map((sentence, index) => this.#item(sentence, index));
    const paragraphs = this.#transcript.paragraphs().map((group) => this.#paragraph(group));
    this.#list.replaceChildren(...paragraphs);
    this.#writeHoles();
    this.#stop = null;
    if (this.#items.length > 0) this.#stopAt(this.#items[0].querySelector(".time"));
    // Observe paragraphs: observing every sentence of ten hours would slow down scrolling.
    for (const paragraph of paragraphs) this.#observer.observe(paragraph);
  }

  /** Mark speech without words between the sentences. */
  #writeHoles() {
    for (const { code, start, end } of this.#transcript.warnings) {
      if (code !== "speech_without_words" || start === null) continue;
      const words = text("warning.hole", { time: clock(start), end: clock(end ?? start) });
      const hole = element("button", { type: "button", className: "hole", textContent: words });
      hole.addEventListener("click", () => this.#onPlay(start));
      const next = this.#transcript.sentences.findIndex((sentence) => sentence.startS >= start);
      if (next >= 0) this.#items[next].before(hole);
      else this.#items.at(-1)?.after(hole);
    }
  }

  /** Keep the sentence in the middle of the window at its position. */
  keepPlace(act) {
    const middle = innerHeight / 2;
    const at = this.#items.findIndex((item) => item.getBoundingClientRect().bottom > middle);
    const before = this.#items[at]?.getBoundingClientRect().top;
    act();
    const item = this.#items[Math.min(at, this.#items.length - 1)];
    if (item) window.scrollBy({ top: item.getBoundingClientRect().top - before, behavior: "instant" });
  }

  /** Mark the word being played, and keep it in view. */
  markSpoken(index) {
    if (index === this.#spoken) return;
    this.#wordElement(this.#spoken)?.classList.remove("speaking");
    this.#spoken = index;
    const word = this.#wordElement(index);
    word?.classList.add("speaking");
    const item = this.#itemOf(index);
    if (item && this.#follows && !this.#editor.isOpen && !this.#current) keepInView(item);
  }

  /** Scroll to the time that was sought, and mark it. */
  showMoment(index) {
    this.#current = null;
    const item = this.#itemOf(Math.max(0, index));
    if (!item) return;
    jumpTo(item, "center");
    this.#target(item);
  }

  /** Mark the target sentence of a jump. */
  #target(item) {
    clearTimeout(this.#targetTimer);
    for (const marked of this.#list.querySelectorAll(".target")) marked.classList.remove("target");
    item.classList.add("target");
    this.#targetTimer = setTimeout(() => item.classList.remove("target"), TARGET_MS);
  }

  /** Mark matches, `{first, end}` each, and go to the one at `current`. */
  markFound(places, current) {
    const touched = new Set([...this.#sentencesOf(this.#found), ...this.#sentencesOf(places)]);
    this.#found = places;
    this.#current = places[current] ?? null;
    for (const index of touched) this.#rewrite(index);
    if (!this.#current) return;
    const item = this.#itemOf(this.#current.first);
    this.#expand(item);
    jumpTo(item, "center");
    this.#target(item);
  }

  /** Scroll to a word and focus it. */
  goTo(index) {
    const item = this.#itemOf(index);
    this.#expand(item);
    this.#focus(this.#wordElement(index), "center");
    this.#target(item);
    // With the mouse, the focus draws no ring.
    for (const marked of this.#list.querySelectorAll(".here")) marked.classList.remove("here");
    this.#wordElement(index).classList.add("here");
  }

  // ---- Sentences and their words ----

  #item(sentence, index) {
    const time = element("button", { type: "button", className: "time", tabIndex: -1, textContent: clock(sentence.startS) });
    time.setAttribute("aria-label", text("transcript.play_from", { time: clock(sentence.startS) }));
    const words = element("span", { className: "words", textContent: this.#transcript.textOf(sentence) });
    // A space, for the text view and for copied text.
    const item = element("div", { className: "sentence" }, time, words, " ");
    item.dataset.index = index;
    return item;
  }

  #paragraph(group) {
    const { speaker } = this.#transcript.sentences[group[0]];
    const before = this.#transcript.sentences[group[0] - 1]?.speaker ?? null;
    const items = group.map((index) => this.#items[index]);
    const paragraph = element("li", { className: "paragraph", dir: "auto" }, ...items);
    if (speaker) paragraph.dataset.voice = this.#transcript.speakers.indexOf(speaker) % VOICES;
    if (!speaker || speaker === before) return paragraph;
    const label = element("button", { type: "button", className: "speaker", textContent: speaker });
    label.setAttribute("aria-label", text("speaker.rename", { name: speaker }));
    paragraph.prepend(label);
    return paragraph;
  }

  #cross(entries) {
    for (const { target, isIntersecting } of entries) {
      for (const item of target.querySelectorAll(".sentence")) {
        if (isIntersecting) this.#near.add(item);
        else this.#near.delete(item);
        if (!isIntersecting && !item.contains(document.activeElement)) this.#collapse(item);
      }
    }
    this.#expandNear();
  }

  #expand(item) {
    if (item.dataset.expanded || item.classList.contains("being-edited")) return;
    item.dataset.expanded = "true";
    this.#writeWords(item);
  }

  #collapse(item) {
    if (!item.dataset.expanded) return;
    delete item.dataset.expanded;
    item.querySelector(".words").textContent = this.#transcript.textOf(this.#sentence(item));
    this.#keepStop(item);
  }

  /** Render a sentence again after its words or marks have changed. */
  #rewrite(index) {
    if (this.#items[index].dataset.expanded) this.#writeWords(this.#items[index]);
  }

  #writeWords(item) {
    const sentence = this.#sentence(item);
    const nodes = this.#transcript.wordsOf(sentence).flatMap((word, offset) => {
      const made = this.#word(word, sentence.first + offset);
      return offset === 0 ? [made] : [" ", made];
    });
    item.querySelector(".words").replaceChildren(...nodes);
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
    const item = target.closest(".sentence");
    if (target.closest(".speaker")) this.#editor.renameSpeaker(target, this.#transcript);
    else if (target.closest(".time")) this.#onPlay(this.#sentence(item).startS);
    else if (item && this.isEditing) this.#edit(item, word);
    else if (word) this.#play(word);
  }

  #play(word) {
    this.#onPlay(this.#transcript.words[word.dataset.word].start);
  }

  #key(event) {
    if (event.target.closest("input, textarea") || !event.target.closest(".sentence")) return;
    const act = {
      ArrowDown: () => this.#focusSentence(event.target, 1),
      ArrowUp: () => this.#focusSentence(event.target, -1),
      ArrowRight: () => this.#focusWord(event.target, 1),
      ArrowLeft: () => this.#focusWord(event.target, -1),
      Home: () => this.#focus(this.#items[0].querySelector(".time")),
      End: () => this.#focus(this.#items.at(-1).querySelector(".time")),
      F2: () => this.#editAt(event.target),
      ...(event.target.dataset.word && {
        Enter: () => (this.isEditing ? this.#editAt(event.target) : this.#play(event.target)),
        " ": () => this.#play(event.target),
      }),
    }[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  }

  #focusSentence(from, step) {
    const item = this.#items[Number(from.closest(".sentence").dataset.index) + step];
    if (item) this.#focus(item.querySelector(".time"));
  }

  #focusWord(from, step) {
    const item = from.closest(".sentence");
    this.#expand(item);
    const stops = [item.querySelector(".time"), ...item.querySelectorAll("[data-word]")];
    const next = stops[stops.indexOf(from) + step];
    if (next) this.#focus(next);
  }

  #focus(target, block = "nearest") {
    this.#stopAt(target);
    target.focus({ preventScroll: true });
    jumpTo(target.closest(".sentence"), block);
  }

  /** Restore the tab stop after its word was rendered again. */
  #keepStop(item) {
    if (this.#stop && !this.#stop.isConnected) this.#stopAt(item.querySelector(".time"));
  }

  /** Make `target` the transcript's only tab stop; a word is a button while it is that. */
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
    const item = target.closest(".sentence");
    if (item && !target.closest("textarea, input")) this.#edit(item, target.closest("[data-word]"));
  }

  /** Open a sentence for editing, with one of its words selected. */
  #edit(item, word = null) {
    this.#editor.close();
    const at = Number(item.dataset.index);
    // Another tab's edit may have removed it.
    if (!item.isConnected) return;
    const place = word ? Number(word.dataset.word) - this.#sentence(item).first : -1;
    this.#editor.open(item, this.#transcript, at, place);
    keepInView(item);
  }

  /** Go on after an edit: `how` is `{focus: bool, next: index or null}`. */
  #edited(at, { focus, next = null }) {
    const item = this.#items[Math.min(next ?? at, this.#items.length - 1)];
    if (!item) return;
    const written = this.#items[Math.min(at, this.#items.length - 1)];
    if (written.querySelector(".words").childElementCount === 0) {
      delete written.dataset.expanded;
      this.#expand(written);
    }
    if (next !== null) this.#edit(item);
    else if (focus) this.#focus(item.querySelector("[data-word]") ?? item.querySelector(".time"));
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

/** Scroll there at once, without animation. */
function jumpTo(item, block) {
  item.scrollIntoView({ block, behavior: "instant" });
}

/** Follow playback: scroll only when a sentence is about to leave the window. */
function keepInView(item) {
  const { top, bottom } = item.getBoundingClientRect();
  const above = byId("tools").getBoundingClientRect().bottom;
  const below = byId("bar").getBoundingClientRect().top;
  if (top < above || bottom > below) jumpTo(item, "center");
}
