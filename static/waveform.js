/**
 * The waveform with the sentences below it, and a slider for seeking.
 *
 * A long recording is drawn twice: as a whole, and zoomed in around the current time.
 */

import { prepareCanvas } from "./canvas.js";
import { byId } from "./dom.js";
import { clock, text } from "./i18n.js";
import { Peaks } from "./peaks.js";

/** Pixels per second when zoomed in, so that a sentence's first words can be read. */
const CLOSE_SCALE = 28;
/** A recording longer than the zoomed view by this factor is also drawn as a whole. */
const WORTH_TWO = 1.5;
/** Position of the playhead, as a share of the zoomed view, at which it scrolls. */
const PLAYHEAD_AT = 0.3;
const BAR_WIDTH = 2;
const BAR_GAP = 1;
/** Height of the sentences below the waveform, in pixels. */
const LABEL_HEIGHT = 24;
const RIBBON_HEIGHT = 4;
/** A narrower sentence would show no more than a letter. */
const NARROWEST_LABEL = 72;

const STEPS_S = { ArrowLeft: -5, ArrowDown: -5, ArrowRight: 5, ArrowUp: 5, PageDown: -30, PageUp: 30 };

export class Waveform {
  #slider = byId("waveform");
  #whole = byId("waveform-whole");
  #close = byId("waveform-close");
  #peaks = new Peaks();
  #transcript = null;
  #durationS = 0;
  #seconds = 0;
  #scheduled = false;
  #onSeek;

  /** `onSeek(seconds)` is called when the user seeks. */
  constructor(onSeek) {
    this.#onSeek = onSeek;
    this.#listen();
  }

  /** Show a recording; peaks and sentences may arrive later. */
  show({ peaks, transcript, durationS, seconds }) {
    this.#peaks = peaks;
    this.#transcript = transcript;
    this.#durationS = durationS;
    this.#slider.hidden = !(durationS > 0 && (peaks.perSecond > 0 || transcript));
    this.#slider.setAttribute("aria-valuemax", Math.round(durationS));
    this.moveTo(seconds);
  }

  hide() {
    this.#slider.hidden = true;
  }

  /** Set the position of the playhead. */
  moveTo(seconds) {
    this.#seconds = seconds;
    this.#slider.setAttribute("aria-valuenow", Math.round(seconds));
    const moment = { at: clock(seconds), of: clock(this.#durationS) };
    this.#slider.setAttribute("aria-valuetext", text("waveform.moment", moment));
    this.redraw();
  }

  /** Schedule one redraw before the next frame. */
  redraw() {
    if (this.#scheduled || this.#slider.hidden) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      this.#draw();
    });
  }

  #listen() {
    new ResizeObserver(() => this.redraw()).observe(this.#slider);
    new MutationObserver(() => this.redraw()).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    for (const canvas of [this.#whole, this.#close]) {
      canvas.addEventListener("pointerdown", (event) => this.#drag(canvas, event));
      canvas.addEventListener("pointermove", (event) => {
        if (canvas.hasPointerCapture(event.pointerId)) this.#seekTo(canvas, event);
      });
    }
    this.#slider.addEventListener("keydown", (event) => this.#step(event));
  }

  #drag(canvas, event) {
    canvas.setPointerCapture(event.pointerId);
    this.#seekTo(canvas, event);
  }

  #seekTo(canvas, event) {
    const { left, width } = canvas.getBoundingClientRect();
    const { fromS, toS } = this.#rangeOf(canvas);
    const share = Math.min(1, Math.max(0, (event.clientX - left) / width));
    this.#onSeek(fromS + share * (toS - fromS));
  }

  #step(event) {
    const ends = { Home: 0, End: this.#durationS };
    const target = event.key in STEPS_S ? this.#seconds + STEPS_S[event.key] : ends[event.key];
    if (target === undefined) return;
    event.preventDefault();
    this.#onSeek(Math.min(Math.max(0, target), this.#durationS));
  }

  /** Seconds shown in the zoomed view. */
  get #closeS() {
    return this.#slider.clientWidth / CLOSE_SCALE;
  }

  #rangeOf(canvas) {
    if (canvas === this.#whole) return { fromS: 0, toS: this.#durationS };
    const last = this.#durationS - this.#closeS;
    const fromS = Math.min(Math.max(0, this.#seconds - this.#closeS * PLAYHEAD_AT), last);
    return { fromS, toS: fromS + this.#closeS };
  }

  #draw() {
    this.#close.hidden = this.#durationS <= WORTH_TWO * this.#closeS;
    const colours = coloursOf(this.#slider);
    const single = this.#close.hidden;
    this.#drawOne(this.#whole, colours, { labelled: single, windowed: !single });
    if (!single) this.#drawOne(this.#close, colours, { labelled: true, windowed: false });
  }

  #drawOne(canvas, colours, { labelled, windowed }) {
    const { width, height, context } = prepareCanvas(canvas);
    const range = this.#rangeOf(canvas);
    const picture = { context, colours, width, range, xOf: (s) => ((s - range.fromS) / (range.toS - range.fromS)) * width };
    const footer = labelled ? LABEL_HEIGHT : RIBBON_HEIGHT;
    if (windowed) this.#drawWindow(picture, height);
    this.#drawSound(picture, height - footer - 4);
    if (this.#transcript) this.#drawSentences(picture, height - footer, footer, labelled);
    context.fillStyle = colours.text;
    context.fillRect(Math.min(width - 2, picture.xOf(this.#seconds)), 0, 2, height);
  }

  #drawSound({ context, colours, width, range }, height) {
    const step = BAR_WIDTH + BAR_GAP;
    const perBar = ((range.toS - range.fromS) / width) * step;
    for (let x = 0; x < width; x += step) {
      const fromS = range.fromS + (x / step) * perBar;
      const bar = Math.max(1, (this.#peaks.loudest(fromS, fromS + perBar)) * height);
      context.fillStyle = fromS < this.#seconds ? colours.accent : colours.quiet;
      context.fillRect(x, (height - bar) / 2, BAR_WIDTH, bar);
    }
  }

  #drawSentences(picture, top, height, labelled) {
    const spoken = this.#transcript.sentenceOf(this.#transcript.wordAt(this.#seconds));
    for (const { code, start, end } of this.#transcript.warnings) {
      if (code !== "speech_without_words" || end < picture.range.fromS || start > picture.range.toS) continue;
      const [left, right] = [Math.max(0, picture.xOf(start)), Math.min(picture.width, picture.xOf(end))];
      drawBox(picture, { left, top, width: Math.max(2, right - left), height }, picture.colours.warn);
    }
    this.#transcript.sentences.forEach((sentence, index) => {
      if (sentence.endS < picture.range.fromS || sentence.startS > picture.range.toS) return;
      const left = Math.max(0, picture.xOf(sentence.startS));
      const right = Math.min(picture.width, picture.xOf(sentence.endS));
      const box = { left, top, width: Math.max(1, right - left - 2), height };
      const isSpoken = index === spoken && this.#seconds > 0;
      drawBox(picture, box, isSpoken ? picture.colours.accent : picture.colours.tint);
      const ink = isSpoken ? picture.colours.onAccent : picture.colours.text;
      if (labelled && box.width >= NARROWEST_LABEL) drawLabel(picture, box, this.#transcript.textOf(sentence), ink);
    });
  }

  #drawWindow({ context, colours, xOf }, height) {
    const { fromS, toS } = this.#rangeOf(this.#close);
    context.fillStyle = colours.tint;
    context.fillRect(xOf(fromS), 0, Math.max(2, xOf(toS) - xOf(fromS)), height);
  }
}

function drawBox({ context }, { left, top, width, height }, colour) {
  context.fillStyle = colour;
  context.beginPath();
  context.roundRect(left, top, width, height, 3);
  context.fill();
}

function drawLabel({ context }, { left, top, width, height }, label, colour) {
  context.fillStyle = colour;
  context.font = `12px ${getComputedStyle(context.canvas).fontFamily}`;
  context.textBaseline = "middle";
  context.fillText(shortened(context, label, width - 12), left + 6, top + height / 2);
}

/** Return as much of a text as fits, by whole letters. */
function shortened(context, label, width) {
  if (context.measureText(label).width <= width) return label;
  // No letter is narrower than 2 pixels, so longer texts need not be measured.
  let shown = label.slice(0, Math.ceil(width / 2));
  while (shown && context.measureText(`${shown}…`).width > width) shown = shown.slice(0, -1);
  return `${shown.trimEnd()}…`;
}

function coloursOf(slider) {
  const style = getComputedStyle(slider);
  const colour = (name) => style.getPropertyValue(name).trim();
  return {
    accent: colour("--accent"),
    onAccent: colour("--on-accent"),
    quiet: colour("--wave"),
    text: colour("--text"),
    warn: colour("--warn-mark"),
    tint: colour("--accent-tint"),
  };
}
