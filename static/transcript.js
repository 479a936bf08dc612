/**
 * A transcript: words with times and probabilities, in sentences; edits are in every export.
 *
 * Each change is an event `{key, type, ...}`: `edit` replaces sentences by others, `undo` and `redo`
 * move through the edits. The same events in the order of their keys give the same transcript, so
 * their log is stored, and sent to other tabs.
 */

import { SentenceChain } from "./sentence-chain.js";

/** Words below this probability are marked as uncertain. */
const UNCERTAIN_BELOW = 0.5;
/** A pause this long begins a new paragraph of plain text. */
const PARAGRAPH_PAUSE_S = 1.5;
/** So does the first sentence after this many characters. */
const PARAGRAPH_CHARACTERS = 500;

let eventCount = 0;
const TAB = Math.random().toString(36).slice(2, 8);

export class Transcript {
  durationS;
  /** Called with the event of each edit made here. */
  onEdit = () => {};
  /** Called after each change, with `isStructural`: whether sentences came or went; if not, which ones changed. */
  onChange = () => {};
  #answer;
  #chain;
  /** `{words, sentences}`, or `null` after a change, until they are used. */
  #tiled = null;
  #done = [];
  #undone = [];
  #lastKey = "";
  #ordered = { words: null, order: [] };

  /** Build from a `verbose_json` response, and apply `events` to it. */
  constructor(answer, events = []) {
    // The words already have the log-probabilities of the tokens, which are most of the data.
    const { logprobs, ...rest } = answer;
    this.#answer = rest;
    this.durationS = answer.duration;
    const words = (answer.words ?? []).map(readWord);
    this.#chain = new SentenceChain(sentencesOf(answer.segments ?? [], words));
    for (const event of [...events].sort((left, right) => (left.key < right.key ? -1 : 1))) this.#apply(event);
  }

  /** `{text, start, end, probability, edited, source}` each; seconds, and `probability` null if unknown. */
  get words() {
    return this.#tiles().words;
  }

  /** `{uid, first, end, startS, endS, speaker, source}` each: words `[first, end)`. Sentences tile the words. */
  get sentences() {
    return this.#tiles().sentences;
  }

  get language() {
    return this.#answer.language;
  }

  /** The server's warnings, `{code, message, start, end}` each. */
  get warnings() {
    return this.#answer.warnings ?? [];
  }

  get isEdited() {
    return this.#done.length > 0;
  }

  get uncertainCount() {
    return this.words.filter(isUncertain).length;
  }

  get canUndo() {
    return this.#done.length > 0;
  }

  get canRedo() {
    return this.#undone.length > 0;
  }

  /** The names of the speakers, in the order in which they first speak. */
  get speakers() {
    return [...new Set(this.sentences.map(({ speaker }) => speaker).filter(Boolean))];
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

  /** Find the word at a time, or the last one before; -1 before the first. */
  wordAt(seconds) {
    const order = this.#byStart();
    const place = lastWhere(order, (index) => this.words[index].start <= seconds);
    return place < 0 ? -1 : order[place];
  }

  /** The indices of the words by their start: sentences of two speakers may overlap. */
  #byStart() {
    if (this.#ordered.words !== this.words) {
      const order = this.words.map((_, index) => index);
      order.sort((left, right) => this.words[left].start - this.words[right].start);
      this.#ordered = { words: this.words, order };
    }
    return this.#ordered.order;
  }

  /** Return the next uncertain word after `index`, from the start again after the last; else -1. */
  uncertainAfter(index) {
    const next = this.words.findIndex((word, place) => place > index && isUncertain(word));
    return next === -1 ? this.words.findIndex(isUncertain) : next;
  }

  /** Find `wanted`, whatever its case; give `{first, end}` of the words of each place. */
  search(wanted) {
    const needle = folded(wanted.trim());
    return needle === "" ? [] : this.sentences.flatMap((sentence) => this.#placesIn(sentence, needle));
  }

  /** Group the sentences as paragraphs; return the indices of each one's. */
  paragraphs() {
    const groups = [];
    let length = 0;
    this.sentences.forEach((sentence, index) => {
      const before = this.sentences[index - 1];
      const begins =
        !before ||
        sentence.startS - before.endS >= PARAGRAPH_PAUSE_S ||
        length >= PARAGRAPH_CHARACTERS ||
        (sentence.speaker ?? null) !== (before.speaker ?? null);
      if (begins) groups.push([]);
      groups.at(-1).push(index);
      length = (begins ? 0 : length) + this.textOf(sentence).length + 1;
    });
    return groups;
  }

  /** Render it as paragraphs. */
  toText() {
    const paragraphs = this.paragraphs().map((group) => group.map((index) => this.textOf(this.sentences[index])).join(" "));
    return paragraphs.map((paragraph) => `${paragraph}\n`).join("\n");
  }

  /** Render it as `verbose_json`; edited words are marked, as their probabilities do not apply. */
  toJson() {
    if (!this.isEdited) return this.#answer;
    return {
      ...this.#answer,
      text: joined(this.words),
      words: this.sentences.flatMap((sentence) =>
        this.wordsOf(sentence).map((word) => ({
          ...(word.source === null ? {} : this.#answer.words[word.source]),
          word: word.text,
          start: word.start,
          end: word.end,
          ...(sentence.speaker && { speaker: sentence.speaker }),
          ...(word.edited && { edited: true }),
        })),
      ),
      segments: this.sentences.map((sentence, index) => ({
        ...this.#answer.segments[sentence.source],
        id: index,
        start: sentence.startS,
        end: sentence.endS,
        text: ` ${this.textOf(sentence)}`,
        ...(sentence.speaker && { speaker: sentence.speaker }),
        ...(this.wordsOf(sentence).some((word) => word.edited) && { edited: true }),
      })),
    };
  }

  // ---- Edits ----

  /** Replace a word by `text`, which may be several words, or none. */
  editWord(index, text) {
    const at = this.sentenceOf(index);
    const sentence = this.sentences[at];
    const words = this.wordsOf(sentence);
    const place = index - sentence.first;
    const written = retimed([words[place]], text);
    this.#replace([{ at, count: 1, sentences: [{ ...sentence, words: words.toSpliced(place, 1, ...written) }] }]);
  }

  /** Replace a sentence by `text`; unchanged words keep their times, the others share the time between. */
  editSentence(at, text) {
    const sentence = this.sentences[at];
    const words = retimed(this.wordsOf(sentence), text);
    this.#replace([{ at, count: 1, sentences: words.length > 0 ? [{ ...sentence, words }] : [] }]);
  }

  /** Replace a sentence by two, `before` and `after`. */
  split(at, before, after) {
    const sentence = this.sentences[at];
    const words = retimed(this.wordsOf(sentence), `${before} ${after}`);
    const cut = tokensOf(before).length;
    if (cut === 0 || cut === words.length) return;
    this.#replace([
      {
        at,
        count: 1,
        sentences: [
          { ...sentence, words: words.slice(0, cut) },
          { ...sentence, uid: newUid(), words: words.slice(cut) },
        ],
      },
    ]);
  }

  /** Join a sentence with the next; it keeps the first one's speaker. */
  joinNext(at, text = null) {
    const [first, second] = this.sentences.slice(at, at + 2);
    if (!second) return;
    const words = text === null ? this.wordsOf(first) : retimed(this.wordsOf(first), text);
    this.#replace([{ at, count: 2, sentences: [{ ...first, words: [...words, ...this.wordsOf(second)] }] }]);
  }

  /** Set the speaker, from a sentence to the next change of speaker. */
  setSpeaker(at, speaker) {
    const was = this.sentences[at].speaker ?? null;
    let end = at;
    while (end < this.sentences.length && (this.sentences[end].speaker ?? null) === was) end += 1;
    const name = cleaned(speaker) || null;
    if (name !== was) this.#replace(this.#spoken(at, end, name));
  }

  renameSpeaker(was, speaker) {
    const name = cleaned(speaker) || null;
    const parts = this.sentences.flatMap((sentence, at) => (sentence.speaker === was ? this.#spoken(at, at + 1, name) : []));
    if (name !== was) this.#replace(parts);
  }

  /** Replace each place where `wanted` is, whatever its case; return how many there were. */
  replaceAll(wanted, replacement) {
    const needle = folded(wanted.trim());
    if (needle === "") return 0;
    let count = 0;
    const parts = this.sentences.flatMap((sentence, at) => {
      const was = this.textOf(sentence);
      const places = placesOf(folded(was), needle);
      if (places.length === 0) return [];
      count += places.length;
      let text = "";
      let end = 0;
      for (const place of places) {
        text += was.slice(end, place) + replacement;
        end = place + needle.length;
      }
      const words = retimed(this.wordsOf(sentence), text + was.slice(end));
      return [{ at, count: 1, sentences: words.length > 0 ? [{ ...sentence, words }] : [] }];
    });
    this.#replace(parts);
    return count;
  }

  undo() {
    if (this.canUndo) this.#make({ type: "undo" });
  }

  redo() {
    if (this.canRedo) this.#make({ type: "redo" });
  }

  /** Apply an event of another tab; return whether it was in order. If not, all must be read again. */
  take(event) {
    if (event.key <= this.#lastKey) return false;
    this.#tell(this.#apply(event));
    return true;
  }

  #spoken(first, end, speaker) {
    const sentences = this.sentences.slice(first, end).map((sentence) => ({ ...sentence, speaker, words: this.wordsOf(sentence) }));
    return [{ at: first, count: end - first, sentences }];
  }

  #replace(parts) {
    const changed = parts.filter(({ at, count, sentences }) => !this.#isSame(at, count, sentences));
    if (changed.length === 0) return;
    this.#make({
      type: "edit",
      parts: changed.map(({ at, count, sentences }) => ({
        uids: this.sentences.slice(at, at + count).map(({ uid }) => uid),
        after: this.sentences[at - 1]?.uid ?? null,
        sentences: sentences.map(({ uid, speaker, source, words }) => ({ uid, speaker: speaker ?? null, source, words })),
      })),
    });
  }

  #isSame(at, count, sentences) {
    if (count !== 1 || sentences.length !== 1) return false;
    const was = this.sentences[at];
    const words = this.wordsOf(was);
    return (
      (was.speaker ?? null) === (sentences[0].speaker ?? null) &&
      words.length === sentences[0].words.length &&
      words.every((word, index) => word.text === sentences[0].words[index].text)
    );
  }

  #make(what) {
    // After all known keys, even if another tab's clock is ahead.
    const last = Number(this.#lastKey.slice(0, 15));
    const now = String(Math.max(Date.now(), last + 1)).padStart(15, "0");
    const event = { ...what, key: `${now}.${TAB}.${(eventCount += 1)}` };
    const change = this.#apply(event);
    this.onEdit(event);
    this.#tell(change);
  }

  #apply(event) {
    if (event.key > this.#lastKey) this.#lastKey = event.key;
    if (event.type === "edit") {
      this.#undone = [];
      const change = this.#applyParts(event.parts);
      this.#done.push({ parts: event.parts, inverse: change.inverse });
      return change;
    }
    const [from, to] = event.type === "undo" ? [this.#done, this.#undone] : [this.#undone, this.#done];
    const step = from.pop();
    if (!step) return { isStructural: false, changed: new Set() };
    const change = this.#applyParts(event.type === "undo" ? step.inverse : step.parts);
    to.push(event.type === "undo" ? step : { ...step, inverse: change.inverse });
    return change;
  }

  #tell({ isStructural, changed }) {
    const places = [];
    if (!isStructural) this.sentences.forEach(({ uid }, at) => changed.has(uid) && places.push(at));
    this.onChange({ isStructural, changed: places });
  }

  /** Replace sentences; return what undoes it, and the uids of what has changed. */
  #applyParts(parts) {
    const inverse = [];
    const changed = new Set();
    let isStructural = false;
    for (const { uids, after, sentences } of parts) {
      const was = this.#chain.replace(uids, after, sentences.map(timed));
      // Another tab has removed these sentences at the same time.
      if (was === null) continue;
      inverse.push({ uids: sentences.map(({ uid }) => uid), after, sentences: was });
      isStructural ||= uids.length !== 1 || sentences.length !== 1 || (was[0].speaker ?? null) !== (sentences[0].speaker ?? null);
      for (const { uid } of sentences) changed.add(uid);
    }
    this.#tiled = null;
    return { inverse: inverse.reverse(), isStructural, changed };
  }

  #tiles() {
    if (this.#tiled === null) {
      const [words, sentences] = [[], []];
      for (const { uid, startS, endS, speaker, source, words: own } of this.#chain) {
        const first = words.length;
        for (const word of own) words.push(word);
        sentences.push({ uid, first, end: words.length, startS, endS, speaker, source });
      }
      this.#tiled = { words, sentences };
    }
    return this.#tiled;
  }

  #placesIn(sentence, needle) {
    const words = this.wordsOf(sentence);
    return placesOf(folded(joined(words)), needle).map((at) => {
      const first = wordIndexAt(words, at);
      const last = wordIndexAt(words, at + needle.length - 1);
      return { first: sentence.first + first, end: sentence.first + last + 1 };
    });
  }
}

/** Tell whether a word is uncertain; an edited one is not. */
export function isUncertain({ probability, edited }) {
  return !edited && probability !== null && probability < UNCERTAIN_BELOW;
}

function readWord({ word, start, end, logprob, edited }, source) {
  const probability = typeof logprob === "number" ? Math.exp(logprob) : null;
  return { text: word, start, end, probability, edited: edited === true, source };
}

/** A sentence of an event, with its times and words of its own. */
function timed({ uid, speaker, source, words }) {
  return { uid, speaker, source, startS: words[0].start, endS: words.at(-1).end, words: words.map((word) => ({ ...word })) };
}

function newUid() {
  return crypto.randomUUID?.() ?? Math.random().toString(36).slice(2);
}

function cleaned(text) {
  return text.trim().replace(/\s+/g, " ");
}

function tokensOf(text) {
  return text.split(/\s+/).filter(Boolean);
}

function placesOf(text, needle) {
  const places = [];
  for (let at = text.indexOf(needle); at !== -1; at = text.indexOf(needle, at + needle.length)) places.push(at);
  return places;
}

/**
 * Return the words of `text`, with the times of `words` in whose place they stand.
 *
 * Words that stay keep their time and probability; those between two of them share the time between.
 */
function retimed(words, text) {
  const tokens = tokensOf(text);
  const result = [];
  let [oldAt, newAt] = [0, 0];
  for (const [oldMatch, newMatch] of [...matches(words, tokens), [words.length, tokens.length]]) {
    result.push(...fill(words, oldAt, oldMatch, tokens.slice(newAt, newMatch)));
    if (oldMatch < words.length) result.push(words[oldMatch]);
    [oldAt, newAt] = [oldMatch + 1, newMatch + 1];
  }
  return result;
}

/** Place new words into the time of `words[from, to)`. */
function fill(words, from, to, tokens) {
  if (tokens.length === 0) return [];
  if (tokens.length === to - from) {
    return tokens.map((text, offset) => ({ ...words[from + offset], text, edited: true }));
  }
  const startS = from < to ? words[from].start : words[from - 1]?.end ?? words[from]?.start ?? 0;
  const endS = Math.max(startS, from < to ? words[to - 1].end : words[to]?.start ?? words[from - 1]?.end ?? startS);
  const total = tokens.reduce((sum, token) => sum + token.length, 0);
  let passed = 0;
  return tokens.map((text) => {
    const start = startS + ((endS - startS) * passed) / total;
    passed += text.length;
    const end = startS + ((endS - startS) * passed) / total;
    return { text, start: rounded(start), end: rounded(end), probability: null, edited: true, source: null };
  });
}

function rounded(seconds) {
  return Math.round(seconds * 1000) / 1000;
}

/** Pair the words that stay, `[old, new]` each: the longest common subsequence. */
function matches(words, tokens) {
  let head = 0;
  while (head < words.length && head < tokens.length && words[head].text === tokens[head]) head += 1;
  let tail = 0;
  while (tail < Math.min(words.length, tokens.length) - head && words.at(-1 - tail).text === tokens.at(-1 - tail)) tail += 1;
  const pairs = Array.from({ length: head }, (_, index) => [index, index]);
  const [rows, columns] = [words.length - head - tail, tokens.length - head - tail];
  // Lengths of the longest common subsequences of the rests; very long texts are not compared.
  if (rows * columns <= 1_000_000) {
    const lengths = Array.from({ length: rows + 1 }, () => new Uint16Array(columns + 1));
    for (let row = rows - 1; row >= 0; row -= 1) {
      for (let column = columns - 1; column >= 0; column -= 1) {
        lengths[row][column] =
          words[head + row].text === tokens[head + column]
            ? lengths[row + 1][column + 1] + 1
            : Math.max(lengths[row + 1][column], lengths[row][column + 1]);
      }
    }
    for (let [row, column] = [0, 0]; row < rows && column < columns; ) {
      if (words[head + row].text === tokens[head + column]) pairs.push([head + row++, head + column++]);
      else if (lengths[row + 1][column] >= lengths[row][column + 1]) row += 1;
      else column += 1;
    }
  }
  for (let left = tail; left > 0; left -= 1) pairs.push([words.length - left, tokens.length - left]);
  return pairs;
}

/** Assign the words to the segments; both are in order, and a segment holds whole words. */
function sentencesOf(segments, words) {
  let next = 0;
  return segments.map(({ start, end, text, speaker }, index) => {
    const first = next;
    const following = segments[index + 1]?.start ?? Infinity;
    let length = -1;
    // At least one, as two sentences may start at the same time. Those of two speakers may overlap:
    // then their texts tell the words.
    do {
      length += 1 + words[next]?.text.length;
      next += 1;
    } while (next < words.length && (speaker ? length < text.trim().length : words[next].start < following));
    next = Math.min(next, words.length);
    return { uid: String(index), startS: start, endS: end, speaker: speaker ?? null, source: index, words: words.slice(first, next) };
  });
}

function joined(words) {
  return words.map((word) => word.text).filter(Boolean).join(" ");
}

/** Lower-case letter by letter, so that offsets do not change. */
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
