/** Runs beside the page, in the thread of the sound: passes on what the microphone hears. */

const PIECES_PER_SECOND = 10;

class Microphone extends AudioWorkletProcessor {
  #piece = new Int16Array(Math.round(sampleRate / PIECES_PER_SECOND));
  #length = 0;

  process([[channel]]) {
    for (const sample of channel ?? []) {
      this.#piece[this.#length] = Math.max(-1, Math.min(1, sample)) * 32767;
      this.#length += 1;
      if (this.#length === this.#piece.length) this.#pass();
    }
    return true;
  }

  #pass() {
    this.port.postMessage(this.#piece);
    this.#length = 0;
  }
}

registerProcessor("microphone", Microphone);
