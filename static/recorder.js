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
  #onRecording;
  #requestOf;
  #session = null;
  #problem = null;

  /** `onRecording(file)` gets what was recorded; `requestOf()` tells what a transcription is asked with. */
  constructor(onRecording, requestOf) {
    this.#onRecording = onRecording;
    this.#requestOf = requestOf;
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

  get isRecording() {
    return this.#session !== null;
  }

  async #start() {
    if (this.#session) return;
    try {
      const stream = await openMicrophone();
      this.#session = new Session(stream, this.#requestOf(), {
        onTick: () => this.#render(),
        onEnd: (file) => this.#ended(file),
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
    this.#session?.discard();
    this.#session = null;
    this.#render();
    byId("record").focus();
  }

  #ended(file) {
    this.#session = null;
    this.#render();
    this.#onRecording(file);
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
  /** Loudness from 0 to 1, oldest first. */
  levels = [0];
  #stream;
  #recorder;
  #analyser;
  #words;
  #context = new AudioContext();
  #parts = [];
  #startedAt = performance.now();
  #pausedAt = null;
  #timer;

  constructor(stream, request, { onTick, onEnd }) {
    const { type, extension } = TYPES.find((known) => MediaRecorder.isTypeSupported(known.type)) ?? {};
    this.#stream = stream;
    this.#analyser = this.#context.createAnalyser();
    const source = this.#context.createMediaStreamSource(stream);
    source.connect(this.#analyser);
    this.#words = new LiveWords(this.#context, source, request);
    this.#recorder = new MediaRecorder(stream, type ? { mimeType: type } : {});
    this.#recorder.addEventListener("dataavailable", ({ data }) => this.#parts.push(data));
    this.#recorder.addEventListener("stop", () => {
      this.#release();
      if (this.#parts.length > 0) onEnd(this.#file(extension ?? "webm"));
    });
    // A part each second: a microphone that is pulled out loses nothing that was said before.
    this.#recorder.start(1000);
    this.#timer = setInterval(() => {
      if (!this.isPaused) this.levels.push(this.#level());
      onTick();
    }, 1000 / LEVELS_PER_SECOND);
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
    this.#recorder.addEventListener("dataavailable", () => { this.#parts = []; });
    this.finish();
  }

  #level() {
    const samples = new Float32Array(this.#analyser.fftSize);
    this.#analyser.getFloatTimeDomainData(samples);
    const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
    const decibels = 10 * Math.log10(power + 1e-12);
    return Math.min(1, Math.max(0, 1 - decibels / FLOOR_DB));
  }

  #file(extension) {
    const moment = new Date().toLocaleString("sv").replaceAll(":", ".");
    const name = `${text("recorder.file_name", { moment })}.${extension}`;
    return new File(this.#parts, name, { type: this.#recorder.mimeType });
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
