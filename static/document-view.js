/** The open recording: its audio, its words as they arrive, and finally the transcript. */

import { byId, debounced, element, say, setText } from "./dom.js";
import { copy, download, saveFile, stem, write } from "./downloads.js";
import { clock, number, onLanguageChange, text, timesRealTime } from "./i18n.js";
import { LiveView } from "./live-view.js";
import { Player } from "./player.js";
import { SearchView } from "./search-view.js";
import { TranscriptView } from "./transcript-view.js";
import { Waveform } from "./waveform.js";

/** Debounce: captions are rendered once editing pauses. */
const CAPTIONS_DELAY_MS = 400;
const COPY_FEEDBACK_MS = 2_000;
/** Step of the keys for back and forward. */
const STEP_S = 5;

export class DocumentView {
  #open = null;
  #settings;
  #copyLabel = "result.copy";
  #player;
  /** The file in the player. */
  #playable = null;
  #waveform;
  #transcriptView;
  #search;
  #live = new LiveView();
  #writeCaptions = debounced(() => this.#showCaptions(), CAPTIONS_DELAY_MS);
  #uncertainAt = -1;
  #durationS = 0;
  #exporting;

  constructor(settings, exporting) {
    this.#settings = settings;
    this.#exporting = exporting;
    this.#player = new Player((seconds) => this.#moved(seconds));
    this.#waveform = new Waveform((seconds) => this.#goTo(seconds));
    this.#transcriptView = new TranscriptView({
      onPlay: (seconds) => this.#playFrom(seconds),
      onEditing: () => this.#player.pause(),
      onFollow: () => this.#renderFollow(),
    });
    this.#search = new SearchView(this.#transcriptView);
    this.#listen();
    onLanguageChange(() => this.render());
  }

  get transcript() {
    return this.#open?.transcript ?? null;
  }

  /** Finish an edit that is open. */
  commit() {
    // Fields for names take what was typed as they lose the focus.
    if (document.activeElement?.matches(".title-field, .speaker-field")) document.activeElement.blur();
    this.#transcriptView.commit();
  }

  /** What is open, or `null`. */
  get opened() {
    return this.#open;
  }

  get openId() {
    return this.#open?.id ?? null;
  }

  /** Show what `opened-document.js` has made; `null` shows nothing. */
  open(opened) {
    this.commit();
    const file = opened?.file ?? null;
    this.#open = opened;
    this.#uncertainAt = -1;
    this.#search.begin(opened?.transcript ?? null);
    if (file === null || file !== this.#playable) this.#player.load(file);
    this.#playable = file;
    this.#live.hide();
    if (opened?.transcript) this.#showTranscript();
    else if (opened) this.#showWords();
    this.#showSound();
    this.render();
    this.#renderFollow();
  }

  /** Show the changes by an event of the running job, or of the microphone. */
  advance(opened, event) {
    this.#open = opened;
    if (opened.turns.length > 0) this.#live.showTurns(opened.turns);
    else if (event?.type === "restart") this.#live.show([]);
    else if (event?.type === "transcript.text.delta") this.#live.append(event.delta);
    if (event?.type === "transcript.peaks" || opened.durationS() !== this.#durationS) this.#showSound();
  }

  #showWords() {
    const { turns, deltas } = this.#open;
    if (turns.length > 0) this.#live.showTurns(turns);
    else this.#live.show(deltas);
  }

  /** Apply changed settings: line breaks of captions, order of formats. */
  settingsChanged() {
    this.#writeCaptions();
    this.render();
  }

  /** Scroll to the beginning of the document and focus it. */
  focus() {
    byId("document").scrollIntoView({ block: "start", behavior: "instant" });
    byId("document-title").focus({ preventScroll: true });
  }

  render() {
    const opened = this.#open;
    const transcript = opened?.transcript ?? null;
    const isEmpty = transcript !== null && transcript.words.length === 0;
    const hasWords = opened !== null && (transcript !== null || wordsSoFar(opened) !== "");
    const isPartial = hasWords && !transcript && opened.isOver;
    // Words that arrived before a failure stay visible.
    const isShown = opened !== null && (transcript !== null || !opened.isOver || isPartial);
    byId("document").hidden = !isShown;
    // Without audio or text, the player would be an empty box.
    byId("bar").hidden = !isShown || opened.isRecording || !(hasWords || opened.peaks.perSecond > 0);
    byId("result-head").hidden = !opened;
    byId("tools").hidden = !transcript || isEmpty;
    byId("sentences").hidden = !transcript || isEmpty;
    byId("result-empty").hidden = !isEmpty;
    byId("partial").hidden = !isPartial;
    byId("live-wait").hidden = !opened || hasWords || opened.isOver;
    setText(byId("live-wait"), text(opened?.isRecording ? "live.speak" : "live.wait"));
    byId("reattach").hidden = !opened || this.#player.isLoaded;
    for (const id of ["copy", "download-first", "export-open"]) byId(id).hidden = !transcript || isEmpty;
    byId("follow").hidden = !transcript || isEmpty || !this.#player.isLoaded;
    byId("save-recording").hidden = !opened?.file;
    byId("rename").hidden = !transcript;
    if (!opened) return;
    setText(byId("document-title"), opened.name);
    setText(byId("document-detail"), transcript ? this.#detail() : "");
    setText(byId("copy"), text(this.#copyLabel));
    setText(byId("download-first"), text("result.download", { format: this.#settings.format.toUpperCase() }));
    byId("undo").disabled = !transcript?.canUndo;
    byId("redo").disabled = !transcript?.canRedo;
    byId("replace").hidden = byId("edit-hint").hidden = !this.#transcriptView.isEditing;
    this.#renderWarnings();
    this.#renderUncertain();
    this.#search.render();
    this.#waveform.redraw();
  }

  #renderFollow() {
    byId("follow").setAttribute("aria-pressed", String(this.#transcriptView.follows));
  }

  #detail() {
    const { transcript, facts } = this.#open;
    const parts = [clock(transcript.durationS), text("result.words", { count: number(transcript.words.length) })];
    if (facts && transcript.words.length > 0) {
      const speed = timesRealTime(transcript.durationS, facts.transcribingS);
      const elapsed = facts.elapsedS < 10 ? text("unit.seconds", { seconds: number(facts.elapsedS, { maximumFractionDigits: 1 }) }) : clock(facts.elapsedS);
      parts.push(text("result.speed", { elapsed, speed }));
    }
    return parts.join(" · ");
  }

  #renderWarnings() {
    const warnings = this.#open.transcript?.warnings ?? [];
    const lines = warnings.map((warning) => {
      const words = warningWords(warning);
      if (warning.start === null) return element("li", { textContent: words });
      const go = element("button", { type: "button", className: "link", textContent: words });
      go.addEventListener("click", () => this.#goTo(warning.start));
      return element("li", {}, go);
    });
    byId("document-warnings").replaceChildren(...lines);
    byId("document-warnings").hidden = lines.length === 0;
  }

  #renderUncertain() {
    const count = this.#open.transcript?.uncertainCount ?? 0;
    byId("uncertain").hidden = count === 0;
    setText(byId("uncertain"), text("result.uncertain", { count: number(count) }));
  }

  // ---- Audio ----

  #showSound() {
    if (!this.#open) {
      this.#waveform.hide();
      return;
    }
    const { peaks, transcript } = this.#open;
    this.#durationS = this.#open.durationS();
    this.#player.setDuration(this.#durationS);
    this.#waveform.show({ peaks, transcript, durationS: this.#durationS, seconds: this.#player.seconds });
  }

  #moved(seconds) {
    this.#waveform.moveTo(seconds);
    if (this.#open?.transcript) this.#transcriptView.markSpoken(this.#open.transcript.wordAt(seconds));
  }

  #seek(seconds) {
    if (this.#player.isLoaded) this.#player.seek(seconds);
    else this.#moved(seconds);
  }

  /** Move to a time, in the audio and in the text. */
  #goTo(seconds) {
    this.#seek(seconds);
    const transcript = this.#open?.transcript;
    if (transcript?.words.length) this.#transcriptView.showMoment(transcript.wordAt(seconds + 0.001));
  }

  #step(seconds) {
    this.#goTo(Math.min(Math.max(0, this.#player.seconds + seconds), this.#durationS));
  }

  #playFrom(seconds) {
    if (this.#player.isLoaded) this.#player.playFrom(seconds);
    else this.#moved(seconds);
  }

  #showCaptions() {
    const transcript = this.#open?.transcript;
    if (!transcript) return;
    const vtt = write(transcript, "vtt", { captions: this.#settings.captions });
    this.#player.setCaptions(vtt, this.#settings.codeOf(transcript.language));
  }

  // ---- Transcript ----

  #showTranscript() {
    const { transcript, onEdit } = this.#open;
    this.#transcriptView.show(transcript, this.#settings.codeOf(transcript.language));
    transcript.onEdit = onEdit;
    transcript.onChange = (change) => {
      this.#transcriptView.changed(change);
      this.#writeCaptions();
      this.#search.forget();
      this.render();
      this.#showSound();
    };
    this.#showCaptions();
  }

  #listen() {
    byId("download-first").addEventListener("click", () => this.#download(this.#settings.format));
    byId("export-open").addEventListener("click", () => this.#exporting.open(stem(this.#open.name), (format) => this.#download(format)));
    byId("copy").addEventListener("click", () => this.#copy());
    byId("partial-copy").addEventListener("click", () => this.#copy());
    byId("partial-download").addEventListener("click", () => {
      const type = "text/plain;charset=utf-8";
      saveFile(new Blob([`${this.#text()}\n`], { type }), `${stem(this.#open.name)}.${text("partial.suffix")}.txt`);
    });
    byId("undo").addEventListener("click", () => this.#open.transcript.undo());
    byId("redo").addEventListener("click", () => this.#open.transcript.redo());
    byId("reading").addEventListener("click", () => this.#toggle("reading"));
    byId("follow").addEventListener("click", () => {
      this.#transcriptView.follows = !this.#transcriptView.follows;
      this.#renderFollow();
    });
    byId("back").addEventListener("click", () => this.#step(-STEP_S));
    byId("forward").addEventListener("click", () => this.#step(STEP_S));
    byId("rename").addEventListener("click", () => this.#rename());
    byId("edit").addEventListener("click", () => this.#toggleEditing());
    byId("uncertain").addEventListener("click", () => this.#nextUncertain());
    byId("save-recording").addEventListener("click", () => saveFile(this.#open.file, this.#open.file.name));
    byId("attach").addEventListener("click", () => byId("attach-file").click());
    byId("attach-file").addEventListener("change", ({ target }) => {
      if (target.files.length > 0) this.open({ ...this.#open, file: target.files[0] });
      target.value = "";
    });
    window.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Keyboard shortcuts of the whole page. */
  #key(event) {
    const { target, key } = event;
    if (!this.#open || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    if (target.closest?.("input:not([type=checkbox]), textarea, select")) return;
    const act = event.ctrlKey || event.metaKey ? this.#commandOf(event) : event.altKey ? null : this.#plainKeyOf(key, target);
    if (!act) return;
    event.preventDefault();
    act();
  }

  #commandOf({ key, shiftKey }) {
    const transcript = this.#open.transcript;
    if (!transcript) return null;
    const letter = key.toLowerCase();
    if (letter === "z") return () => (shiftKey ? transcript.redo() : transcript.undo());
    return letter === "y" ? () => transcript.redo() : null;
  }

  /** Space plays and pauses unless the focused element uses it; letters only outside of fields. */
  #plainKeyOf(key, target) {
    if (key === " ") return target.closest?.("button, video, a, [role=button]") ? null : () => this.#player.toggle();
    if (!byId("single-keys").checked) return null;
    return {
      j: () => this.#step(-STEP_S),
      k: () => this.#player.toggle(),
      l: () => this.#step(STEP_S),
      e: () => this.#open.transcript && this.#toggleEditing(),
      n: () => this.#open.transcript?.uncertainCount && this.#nextUncertain(),
      "/": () => byId("search").focus(),
      "?": () => byId("shortcuts-open").click(),
    }[key.toLowerCase()];
  }

  #download(format) {
    const { transcript, name } = this.#open;
    download(transcript, format, { recordingName: name, options: this.#exporting.options });
    say(text("announce.downloaded", { format: format.toUpperCase() }));
  }

  /** Return the words as text: all of them, or those that there are. */
  #text() {
    const { transcript } = this.#open;
    return transcript ? write(transcript, "txt", this.#exporting.options) : wordsSoFar(this.#open);
  }

  async #copy() {
    const copied = await copy(this.#text());
    this.#copyLabel = copied ? "result.copied" : "result.copy_failed";
    say(text(this.#copyLabel));
    setText(byId("partial-copy"), text(this.#copyLabel));
    this.render();
    setTimeout(() => {
      this.#copyLabel = "result.copy";
      setText(byId("partial-copy"), text(this.#copyLabel));
      this.render();
    }, COPY_FEEDBACK_MS);
  }

  /** Edit the title. */
  #rename() {
    const { name, onRename } = this.#open;
    const title = byId("document-title");
    const field = element("input", { className: "title-field", value: name });
    field.setAttribute("aria-label", text("result.rename"));
    let isOpen = true;
    const close = (value) => {
      if (!isOpen) return;
      isOpen = false;
      field.remove();
      title.hidden = false;
      if (value.trim() && value.trim() !== name) {
        this.#open = { ...this.#open, name: value.trim() };
        onRename(value.trim());
      }
      this.render();
      byId("rename").focus();
    };
    field.addEventListener("blur", () => close(field.value));
    field.addEventListener("keydown", ({ key }) => {
      if (key === "Enter") close(field.value);
      if (key === "Escape") close(name);
    });
    title.hidden = true;
    title.before(field);
    field.focus();
    field.select();
  }

  #toggle(name) {
    const on = byId(name).getAttribute("aria-pressed") !== "true";
    byId(name).setAttribute("aria-pressed", String(on));
    this.#transcriptView.keepPlace(() => byId("document").classList.toggle(name, on));
  }

  #toggleEditing() {
    this.commit();
    const editing = !this.#transcriptView.isEditing;
    byId("edit").setAttribute("aria-pressed", String(editing));
    byId("document").classList.toggle("editing", editing);
    this.render();
  }

  #nextUncertain() {
    this.#uncertainAt = this.#open.transcript.uncertainAfter(this.#uncertainAt);
    this.#transcriptView.goTo(this.#uncertainAt);
  }
}

/** For unknown problems, show the server's message. */
function warningWords({ code, message, start, end }) {
  const values = { time: start === null ? "" : clock(start), end: end === null ? "" : clock(end) };
  const known = text(`warning.${code}`, values);
  return known === `warning.${code}` ? text("warning.unknown", { message }) : known;
}

/** Return the words that came before the transcript. */
function wordsSoFar({ turns, deltas }) {
  const spoken = turns.map((turn) => turn.text.trim()).filter(Boolean);
  return spoken.length > 0 ? spoken.join("\n") : deltas.join("").trim();
}
