/** The open recording: its sound, its words as they come, and at the end the transcript. */

import { byId, debounced, element, say, setText } from "./dom.js";
import { copy, download, FORMAT_NAMES, saveFile, write } from "./downloads.js";
import { clock, number, onLanguageChange, text, timesRealTime } from "./i18n.js";
import { LiveView } from "./live-view.js";
import { Player } from "./player.js";
import { TranscriptView } from "./transcript-view.js";
import { Waveform } from "./waveform.js";

const SEARCH_DELAY_MS = 150;
/** Edits come in bursts; captions are written once they pause. */
const CAPTIONS_DELAY_MS = 400;
const COPY_FEEDBACK_MS = 2_000;

/**
 * What is open is `{id, name, file, isRecorded, isRunning, deltas, peaks, durationS(), transcript, facts, onEdit()}`.
 *
 * `file` is null for a transcript from the history, `transcript` while it is being made. `facts`,
 * `{elapsedS, transcribingS}`, tells how quickly that went, where it is known.
 */
export class DocumentView {
  #open = null;
  #settings;
  #found = [];
  #foundAt = -1;
  #copyLabel = "result.copy";
  #player;
  #waveform;
  #transcriptView;
  #live = new LiveView();
  #writeCaptions = debounced(() => this.#showCaptions(), CAPTIONS_DELAY_MS);
  #uncertainAt = -1;
  #durationS = 0;

  constructor(settings) {
    this.#settings = settings;
    this.#player = new Player((seconds) => this.#moved(seconds));
    this.#waveform = new Waveform((seconds) => this.#seek(seconds));
    this.#transcriptView = new TranscriptView({
      onPlay: (seconds) => this.#playFrom(seconds),
      onEditing: () => this.#player.pause(),
    });
    this.#listen();
    onLanguageChange(() => this.render());
  }

  get openId() {
    return this.#open?.id ?? null;
  }

  /** Show `opened`; `null` shows nothing. */
  open(opened) {
    const samePlayer = this.#open?.file && this.#open.file === opened?.file;
    this.#open = opened;
    this.#clearSearch();
    if (!samePlayer) this.#player.load(opened?.file ?? null);
    this.#live.hide();
    if (opened?.transcript) this.#showTranscript();
    else if (opened) this.#live.show(opened.deltas);
    this.#showSound();
    this.render();
  }

  /** Take what a running job's event has changed in what is open. */
  advance(opened, event) {
    this.#open = opened;
    if (event?.type === "transcript.text.delta") this.#live.append(event.delta);
    if (event?.type === "transcript.peaks" || opened.durationS() !== this.#durationS) this.#showSound();
  }

  /** Follow a change of the settings: captions may break elsewhere, another format come first. */
  settingsChanged() {
    this.#writeCaptions();
    this.render();
  }

  focus() {
    byId("document-title").focus();
  }

  render() {
    const opened = this.#open;
    const transcript = opened?.transcript ?? null;
    const isEmpty = transcript !== null && transcript.words.length === 0;
    // A recording that failed keeps on the page what words had come.
    byId("document").hidden = !opened || !(transcript || opened.isRunning || opened.deltas.length > 0);
    byId("result-head").hidden = !transcript;
    byId("tools").hidden = !transcript || isEmpty;
    byId("sentences").hidden = !transcript || isEmpty;
    byId("result-empty").hidden = !isEmpty;
    byId("reattach").hidden = !opened || this.#player.isLoaded;
    byId("save-recording").hidden = !opened?.isRecorded;
    if (!opened) return;
    setText(byId("document-title"), opened.name);
    setText(byId("document-detail"), transcript ? this.#detail() : "");
    setText(byId("copy"), text(this.#copyLabel));
    this.#renderWarnings();
    this.#renderUncertain();
    this.#renderFound();
    this.#renderDownloads();
    this.#waveform.redraw();
  }

  #detail() {
    const { transcript, facts } = this.#open;
    const parts = [clock(transcript.durationS), text("result.words", { count: number(transcript.words.length) })];
    if (facts) {
      const speed = timesRealTime(transcript.durationS, facts.transcribingS);
      parts.push(text("result.speed", { elapsed: clock(facts.elapsedS), speed }));
    }
    return parts.join(" · ");
  }

  #renderWarnings() {
    const warnings = this.#open.transcript?.warnings ?? [];
    const lines = warnings.map(({ code, message, start }) => {
      const known = text(`warning.${code}`, { time: start === null ? "" : clock(start) });
      // One that this page does not know is told as the server does.
      return element("li", { textContent: known === `warning.${code}` ? message : known });
    });
    byId("document-warnings").replaceChildren(...lines);
    byId("document-warnings").hidden = lines.length === 0;
  }

  #renderUncertain() {
    const count = this.#open.transcript?.uncertainCount ?? 0;
    byId("uncertain").hidden = count === 0;
    setText(byId("uncertain"), text("result.uncertain", { count: number(count) }));
  }

  /** Put the preferred format first, for the keyboard as for the eye. */
  #renderDownloads() {
    for (const name of FORMAT_NAMES) {
      const button = byId(`download-${name}`);
      const preferred = name === this.#settings.format;
      const label = text("result.download", { format: name.toUpperCase() });
      button.classList.toggle("primary", preferred);
      button.setAttribute("aria-label", label);
      setText(button, preferred ? label : name.toUpperCase());
      if (preferred && byId("downloads").firstElementChild !== button) byId("downloads").prepend(button);
    }
  }

  // ---- Sound ----

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

  #playFrom(seconds) {
    if (this.#player.isLoaded) this.#player.playFrom(seconds);
    else this.#moved(seconds);
  }

  #showCaptions() {
    const transcript = this.#open?.transcript;
    if (!transcript) return;
    const vtt = write(transcript, "vtt", this.#settings.captions);
    this.#player.setCaptions(vtt, this.#settings.codeOf(transcript.language));
  }

  // ---- Transcript ----

  #showTranscript() {
    const { transcript, onEdit } = this.#open;
    this.#transcriptView.show(transcript, this.#settings.codeOf(transcript.language));
    transcript.onEdit = () => {
      this.#writeCaptions();
      onEdit();
      this.render();
    };
    this.#showCaptions();
  }

  #listen() {
    for (const name of FORMAT_NAMES) byId(`download-${name}`).addEventListener("click", () => this.#download(name));
    byId("copy").addEventListener("click", () => this.#copy());
    byId("edit").addEventListener("click", () => this.#toggleEditing());
    byId("uncertain").addEventListener("click", () => this.#nextUncertain());
    byId("save-recording").addEventListener("click", () => saveFile(this.#open.file, this.#open.file.name));
    byId("attach").addEventListener("click", () => byId("attach-file").click());
    byId("attach-file").addEventListener("change", ({ target }) => {
      if (target.files.length > 0) this.open({ ...this.#open, file: target.files[0] });
      target.value = "";
    });
    byId("search").addEventListener("input", debounced(() => this.#search(), SEARCH_DELAY_MS));
    byId("search").addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      this.#goToFound(event.shiftKey ? -1 : 1);
    });
    byId("search-next").addEventListener("click", () => this.#goToFound(1));
    byId("search-previous").addEventListener("click", () => this.#goToFound(-1));
    byId("document").addEventListener("keydown", (event) => this.#key(event));
  }

  /** Space plays and pauses wherever it has no other meaning. */
  #key(event) {
    if (event.key !== " " || event.target.closest("button, input, select, video, [role=button]")) return;
    event.preventDefault();
    this.#player.toggle();
  }

  #download(format) {
    const { transcript, name } = this.#open;
    download(transcript, format, { recordingName: name, subtitleOptions: this.#settings.captions });
    say(text("announce.downloaded", { format: format.toUpperCase() }));
  }

  async #copy() {
    const copied = await copy(this.#open.transcript.toText());
    this.#copyLabel = copied ? "result.copied" : "result.copy_failed";
    say(text(this.#copyLabel));
    this.render();
    setTimeout(() => {
      this.#copyLabel = "result.copy";
      this.render();
    }, COPY_FEEDBACK_MS);
  }

  #toggleEditing() {
    const editing = !this.#transcriptView.isEditing;
    byId("edit").setAttribute("aria-pressed", String(editing));
    byId("document").classList.toggle("editing", editing);
  }

  #nextUncertain() {
    this.#uncertainAt = this.#open.transcript.uncertainAfter(this.#uncertainAt);
    this.#transcriptView.goTo(this.#uncertainAt);
  }

  // ---- Search ----

  #clearSearch() {
    byId("search").value = "";
    this.#found = [];
    this.#foundAt = -1;
    this.#uncertainAt = -1;
  }

  #search() {
    this.#found = this.#open?.transcript?.search(byId("search").value) ?? [];
    this.#foundAt = this.#found.length > 0 ? 0 : -1;
    this.#showFound();
  }

  #goToFound(step) {
    const count = this.#found.length;
    if (count === 0) return;
    this.#foundAt = (this.#foundAt + step + count) % count;
    this.#showFound();
  }

  #showFound() {
    this.#transcriptView.markFound(this.#found, this.#foundAt);
    this.#renderFound();
  }

  #renderFound() {
    const searching = byId("search").value.trim() !== "";
    const count = this.#found.length;
    const values = { place: number(this.#foundAt + 1), count: number(count) };
    setText(byId("search-count"), searching ? text(count > 0 ? "search.place" : "search.none", values) : "");
    byId("search-next").hidden = byId("search-previous").hidden = count === 0;
  }
}
