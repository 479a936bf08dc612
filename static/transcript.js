/** A transcript: words with times and probabilities, in sentences; edits reach every format. */

/** Below this probability a word is worth a second look. */
const UNCERTAIN_BELOW = 0.5;
/** A pause this long begins a new paragraph of plain text. */
const PARAGRAPH_PAUSE_S = 1.5;
/** So does the first sentence after this many characters. */
const PARAGRAPH_CHARACTERS = 500;

export class Transcript {
  /** `{text, start, end, probability, edited}` each; seconds, and `probability` null if unknown. */
  words;
  /** `{first, end, startS, endS}` each: words `[first, end)`. Sentences tile the words. */
  sentences;
  durationS;
  /** Called after each edit. */
  onEdit = () => {};
  #answer;

  /** Read a `verbose_json` answer; it may be one that `toJson` gave. */
  constructor(answer) {
    // The tokens' log-probabilities are the words' already, and the most of it by far.
    const { logprobs, ...rest } = answer;
    this.#answer = rest;
    this.durationS = answer.duration;
    this.words = (answer.words ?? []).map(readWord);
    this.sentences = sentencesOf(answer.segments ?? [], this.words);
  }

  get language() {
    return this.#answer.language;
  }

  /** `{code, message, start, end}` each: what the server says of how the recording was heard. */
  get warnings() {
    return this.#answer.warnings ?? [];
  }

  get isEdited() {
    return this.words.some((word) => word.edited);
  }

  get uncertainCount() {
    return this.words.filter(isUncertain).length;
  }

  /** Put `text` in a word's place; it may be several words, or none. */
  edit(index, text) {
    const word = this.words[index];
    const clean = text.trim().replace(/\s+/g, " ");
    if (clean === word.text) return;
    Object.assign(word, { text: clean, edited: true });
    this.onEdit();
  }

  wordsOf({ first, end }) {
    return this.words.slice(first, end);
  }

  textOf(sentence) {
    return joined(this.wordsOf(sentence));
  }

  /** Find which sentence a word belongs to. */
  sentenceOf(index) {
    return lastWhere(this.sentences, (sentence) => sentence.first <= index);
  }

  /** Find the word being spoken at a moment, or the last one before; -1 before the first. */
  wordAt(seconds) {
    return lastWhere(this.words, (word) => word.start <= seconds);
  }

  /** Give the next uncertain word after `index`, from the start again after the last; else -1. */
  uncertainAfter(index) {
    const next = this.words.findIndex((word, place) => place > index && isUncertain(word));
    return next === -1 ? this.words.findIndex(isUncertain) : next;
  }

  /** Find `wanted`, whatever its case; give `{first, end}` of the words of each place. */
  search(wanted) {
    const needle = folded(wanted.trim());
    return needle === "" ? [] : this.sentences.flatMap((sentence) => this.#placesIn(sentence, needle));
  }

  /** Write it as paragraphs. */
  toText() {
    const paragraphs = [];
    let lastEndS = -Infinity;
    for (const sentence of this.sentences) {
      const text = this.textOf(sentence);
      const last = paragraphs.length - 1;
      const paused = sentence.startS - lastEndS >= PARAGRAPH_PAUSE_S;
      if (text === "") continue;
      if (last < 0 || paused || paragraphs[last].length >= PARAGRAPH_CHARACTERS) paragraphs.push(text);
      else paragraphs[last] += ` ${text}`;
      lastEndS = sentence.endS;
    }
    return paragraphs.map((paragraph) => `${paragraph}\n`).join("\n");
  }

  /** Write it as `verbose_json`; what was edited says so, as its probabilities are no longer its own. */
  toJson() {
    if (!this.isEdited) return this.#answer;
    return {
      ...this.#answer,
      text: joined(this.words),
      words: this.words.map((word, index) => ({
        ...this.#answer.words[index],
        word: word.text,
        ...(word.edited && { edited: true }),
      })),
      segments: this.sentences.map((sentence, index) => ({
        ...this.#answer.segments[index],
        text: ` ${this.textOf(sentence)}`,
        ...(this.wordsOf(sentence).some((word) => word.edited) && { edited: true }),
      })),
    };
  }

  #placesIn(sentence, needle) {
    const words = this.wordsOf(sentence);
    const text = folded(joined(words));
    const places = [];
    for (let at = text.indexOf(needle); at !== -1; at = text.indexOf(needle, at + needle.length)) {
      const first = wordIndexAt(words, at);
      const last = wordIndexAt(words, at + needle.length - 1);
      places.push({ first: sentence.first + first, end: sentence.first + last + 1 });
    }
    return places;
  }
}

/** Tell whether a word is worth a second look; one that a person has written is not. */
export function isUncertain({ probability, edited }) {
  return !edited && probability !== null && probability < UNCERTAIN_BELOW;
}

function readWord({ word, start, end, logprob, edited }) {
  const probability = typeof logprob === "number" ? Math.exp(logprob) : null;
  return { text: word, start, end, probability, edited: edited === true };
}

/** Share the words out to the segments; both are in order, and a segment holds whole words. */
function sentencesOf(segments, words) {
  let next = 0;
  return segments.map(({ start, end }, index) => {
    const first = next;
    const following = segments[index + 1]?.start ?? Infinity;
    // At least one: two sentences may begin at the same moment.
    do next += 1;
    while (next < words.length && words[next].start < following);
    next = Math.min(next, words.length);
    return { first, end: next, startS: start, endS: end };
  });
}

function joined(words) {
  return words.map((word) => word.text).filter(Boolean).join(" ");
}

/** Lower-case letter by letter, so that every offset stays what it is. */
function folded(text) {
  return Array.from({ length: text.length }, (_, index) => {
    const lower = text[index].toLowerCase();
    return lower.length === 1 ? lower : text[index];
  }).join("");
}

/** Find the word that holds a character of the joined text. */
function wordIndexAt(words, offset) {
  let end = -1;
  return words.findIndex((word) => {
    if (word.text !== "") end += 1 + word.text.length;
    return offset <= end;
  });
}

/** Find the last item of a sorted list for which `holds` is true; -1 if there is none. */
function lastWhere(items, holds) {
  let [low, high] = [0, items.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(items[middle])) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}
