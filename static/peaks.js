/** Waveform peaks of a recording: one byte each, as the server sends them. */

/** Peaks below this level are not scaled up to full height. */
const WHISPER = 16;

export class Peaks {
  /** Peaks per second; 0 before the first event. */
  perSecond = 0;
  #values = new Uint8Array(1024);
  #count = 0;
  #most = 0;

  static from({ perSecond, values }) {
    const peaks = new Peaks();
    peaks.perSecond = perSecond;
    peaks.#values = values;
    peaks.#count = values.length;
    peaks.#most = values.reduce((most, value) => Math.max(most, value), 0);
    return peaks;
  }

  get seconds() {
    return this.perSecond ? this.#count / this.perSecond : 0;
  }

  /** Take a `transcript.peaks` event. */
  add({ start_s: startS, per_second: perSecond, values }) {
    this.perSecond = perSecond;
    const bytes = Uint8Array.from(atob(values), (character) => character.charCodeAt(0));
    const first = Math.round(startS * perSecond);
    this.#makeRoom(first + bytes.length);
    this.#values.set(bytes, first);
    for (const value of bytes) this.#most = Math.max(this.#most, value);
    this.#count = Math.max(this.#count, first + bytes.length);
  }

  /** Return the loudest within `[fromS, toS)`; 1 is the loudest of all, if that is more than a whisper. */
  loudest(fromS, toS) {
    // Zoomed in beyond the resolution of the peaks: interpolate.
    if ((toS - fromS) * this.perSecond < 1) return this.#between(((fromS + toS) / 2) * this.perSecond - 0.5);
    const first = Math.max(0, Math.floor(fromS * this.perSecond));
    const end = Math.min(this.#count, Math.max(first + 1, Math.ceil(toS * this.perSecond)));
    let most = 0;
    for (let index = first; index < end; index += 1) most = Math.max(most, this.#values[index]);
    return most / Math.max(this.#most, WHISPER);
  }

  #between(place) {
    const left = Math.max(0, Math.floor(place));
    const [before, after] = [left, left + 1].map((index) => (index < this.#count ? this.#values[index] : 0));
    const share = Math.min(1, Math.max(0, place - left));
    return (before * (1 - share) + after * share) / Math.max(this.#most, WHISPER);
  }

  /** Return what `Peaks.from` takes. */
  toStore() {
    return { perSecond: this.perSecond, values: this.#values.slice(0, this.#count) };
  }

  #makeRoom(count) {
    if (count <= this.#values.length) return;
    const larger = new Uint8Array(Math.max(count, 2 * this.#values.length));
    larger.set(this.#values);
    this.#values = larger;
  }
}
