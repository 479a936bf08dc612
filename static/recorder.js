/** A recording from the microphone, with a picture of its level. */

import { prepareCanvas } from "./canvas.js";
import { alertWith, byId, say, setText } from "./dom.js";
import { clock, onLanguageChange, text } from "./i18n.js";
import { LiveWords } from "./live-words.js";

/** What browsers can record, best first; none of them keeps the sound uncompressed. */
const TYPES = [
  { type: "audio/webm;codecs=opus", extension: "webm" },
  { type: "audio/mp4", extension: "m4a" },
  { type: "audio/ogg;codecs=opus", extension: "ogg" },
];
/** Levels a second, each a bar of the picture. */
const LEVELS_PER_SECOND = 20;
const BAR_WIDTH = 3;
const BAR_GAP = 2;
/** Quieter than this is drawn as silence: a quiet room. */
const FLOOR_DB = -55;

export class Recorder {
  #acts;
  #session = null;
  #problem = null;

  /**
   * A recording is `{id, name, turns}`, the turns as of `LiveWords`.
   *
   * `acts` are `{requestOf(), onWords(recording), onPart(recording, part, index), onEnd(recording, file)}`:
   * what a transcription is asked with; new words; each second of sound, as it is recorded; and the
   * end, with `file` null if the recording was discarded.
   */
  constructor(acts) {
    this.#acts = acts;
    byId("record").addEventListener("click", () => this.#start());
    byId("record-stop").addEventListener("click", () => this.#session?.finish());
    byId("record-pause").addEventListener("click", () => {
      this.#session?.togglePause();
      this.#render();
    });
    byId("record-discard").addEventListener("click", () => this.#discard());
    byId("record-dismiss").addEventListener("click", () => this.#show({ problem: null }));
    onLanguageChange(() => this.#render());
  }

  /** The recording that is being made, or `null`. */
  get current() {
    return this.#session;
  }

  async #start() {
    if (this.#session) return;
    try {
      const stream = await openMicrophone();
      this.#session = new Session(stream, this.#acts.requestOf(), {
        ...this.#acts,
        onTick: () => this.#render(),
        onEnd: (recording, file) => this.#ended(recording, file),
      });
      say(text("recorder.started"));
      this.#show({ problem: null });
      byId("record-stop").focus();
    } catch (error) {
      const problem = problemOf(error);
      alertWith(text(problem));
      this.#show({ problem });
    }
  }

  #discard() {
    const recording = this.#session;
    this.#session = null;
    recording?.discard();
    this.#render();
    if (recording) this.#acts.onEnd(recording, null);
    byId("record").focus();
  }

  #ended(recording, file) {
    this.#session = null;
    this.#render();
    this.#acts.onEnd(recording, file);
  }

  #show({ problem }) {
    this.#problem = problem;
    this.#render();
  }

  #render() {
    byId("recorder").hidden = !this.#session;
    byId("record").disabled = this.#session !== null;
    byId("record-problem").hidden = !this.#problem;
    setText(byId("record-problem-text"), this.#problem ? text(this.#problem) : "");
    if (!this.#session) return;
    setText(byId("record-time"), clock(this.#session.seconds));
    setText(byId("record-pause"), text(this.#session.isPaused ? "recorder.resume" : "recorder.pause"));
    byId("recorder").classList.toggle("paused", this.#session.isPaused);
    byId("record-level").setAttribute("aria-valuenow", Math.round(this.#session.levels.at(-1) * 100));
    drawLevels(byId("record-picture"), this.#session.levels);
  }
}

/** One recording, from the open microphone to the file. */
class Session {
  id = `recorded-${Date.now()}`;
  name;
  /** Loudness from 0 to 1, oldest first. */
  levels = [0];
  /** Whether the browser has no room for its parts. */
  isUnkept = false;
  #stream;
  #recorder;
  #analyser;
  #words;
  #context = new AudioContext();
  #parts = [];
  #startedAt = performance.now();
  #pausedAt = null;
  #isDiscarded = false;
  #timer;

  constructor(stream, request, { onWords, onPart, onTick, onEnd }) {
    const { type, extension = "webm" } = TYPES.find((known) => MediaRecorder.isTypeSupported(known.type)) ?? {};
    const moment = new Date().toLocaleString("sv").replaceAll(":", ".");
    this.name = `${text("recorder.file_name", { moment })}.${extension}`;
    this.#stream = stream;
    this.#analyser = this.#context.createAnalyser();
    const source = this.#context.createMediaStreamSource(stream);
    source.connect(this.#analyser);
    this.#words = new LiveWords(this.#context, source, request, () => onWords(this));
    this.#recorder = new MediaRecorder(stream, type ? { mimeType: type } : {});
    this.#recorder.addEventListener("dataavailable", ({ data }) => this.#keep(data, onPart));
    this.#recorder.addEventListener("stop", () => {
      this.#release();
      if (!this.#isDiscarded) onEnd(this, new File(this.#parts, this.name, { type: this.#recorder.mimeType }));
    });
    // A part each second: a microphone that is pulled out loses nothing that was said before.
    this.#recorder.start(1000);
    this.#timer = setInterval(() => {
      if (!this.isPaused) this.levels.push(this.#level());
      onTick();
    }, 1000 / LEVELS_PER_SECOND);
  }

  get turns() {
    return this.#words.turns;
  }

  get seconds() {
    return ((this.#pausedAt ?? performance.now()) - this.#startedAt) / 1000;
  }

  get isPaused() {
    return this.#pausedAt !== null;
  }

  togglePause() {
    if (this.#recorder.state === "recording") {
      this.#recorder.pause();
      this.#pausedAt = performance.now();
    } else if (this.#recorder.state === "paused") {
      this.#recorder.resume();
      this.#startedAt += performance.now() - this.#pausedAt;
      this.#pausedAt = null;
    }
    this.#words.isPaused = this.isPaused;
  }

  finish() {
    if (this.#recorder.state !== "inactive") this.#recorder.stop();
  }

  discard() {
    this.#isDiscarded = true;
    this.finish();
  }

  #keep(part, onPart) {
    if (this.#isDiscarded || part.size === 0) return;
    this.#parts.push(part);
    onPart(this, part, this.#parts.length - 1);
  }

  #level() {
    const samples = new Float32Array(this.#analyser.fftSize);
    this.#analyser.getFloatTimeDomainData(samples);
    const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
    const decibels = 10 * Math.log10(power + 1e-12);
    return Math.min(1, Math.max(0, 1 - decibels / FLOOR_DB));
  }

  #release() {
    clearInterval(this.#timer);
    this.#words.close();
    for (const track of this.#stream.getTracks()) track.stop();
    this.#context.close();
  }
}

function openMicrophone() {
  // Browsers hide the microphone from pages that came over plain http from another machine.
  if (!navigator.mediaDevices?.getUserMedia) throw new DOMException("", "SecurityError");
  return navigator.mediaDevices.getUserMedia({ audio: true });
}

/** Give the key of the words for a microphone that does not open. */
function problemOf(error) {
  if (error.name === "SecurityError") return "recorder.insecure";
  if (error.name === "NotFoundError") return "recorder.missing";
  if (error.name === "NotAllowedError") return "recorder.denied";
  console.error(error);
  return "recorder.failed";
}

/** Draw the latest levels, the newest at the right. */
function drawLevels(canvas, levels) {
  const { width, height, context } = prepareCanvas(canvas);
  context.fillStyle = getComputedStyle(canvas).color;
  const step = BAR_WIDTH + BAR_GAP;
  const count = Math.floor(width / step);
  for (let age = 1; age <= count; age += 1) {
    const bar = Math.max(2, (levels.at(-age) ?? 0) * height);
    context.fillRect(width - age * step, (height - bar) / 2, BAR_WIDTH, bar);
  }
}
