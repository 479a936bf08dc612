/** Sentences in order, each with its own words. Replacing some takes as long in a transcript of ten hours as in a short one. */
export class SentenceChain {
  /** By uid; `{sentence, previous, next}` each. */
  #links = new Map();
  /** Comes before the first one. */
  #head = { sentence: null, previous: null, next: null };

  constructor(sentences) {
    this.#insert(this.#head, sentences);
  }

  *[Symbol.iterator]() {
    for (let link = this.#head.next; link; link = link.next) yield link.sentence;
  }

  /**
   * Replace the sentences `uids`, which must follow one another; without any, insert behind `after`.
   *
   * Return the sentences that were there, or `null` if they are there no longer; then nothing changes.
   */
  replace(uids, after, sentences) {
    const was = [];
    let link = this.#links.get(uids[0]);
    const before = uids.length > 0 ? link?.previous : this.#links.get(after) ?? this.#head;
    for (const uid of uids) {
      if (link?.sentence.uid !== uid) return null;
      was.push(link.sentence);
      link = link.next;
    }
    const next = uids.length > 0 ? link : before.next;
    before.next = next;
    if (next) next.previous = before;
    for (const uid of uids) this.#links.delete(uid);
    this.#insert(before, sentences);
    return was;
  }

  #insert(before, sentences) {
    for (const sentence of sentences) {
      const link = { sentence, previous: before, next: before.next };
      if (link.next) link.next.previous = link;
      before.next = link;
      this.#links.set(sentence.uid, link);
      before = link;
    }
  }
}
