/**
 * The page: a recording goes in, a transcript comes out.
 *
 * This file builds the parts and connects them; each part is a module that owns its piece of the
 * page. Words from a server, a file name or a transcript reach the page through `textContent` alone.
 * All addresses are relative to the page, so that it works behind a path prefix.
 */

import { DocumentView } from "./document-view.js";
import { alertWith, byId, debounced, say } from "./dom.js";
import { History } from "./history.js";
import { HistoryView } from "./history-view.js";
import { chooseLanguage, onLanguageChange, pageLanguage, preferredLanguage, text, useLanguage } from "./i18n.js";
import { listenForFiles } from "./intake.js";
import { ModelStatus } from "./model-status.js";
import { Peaks } from "./peaks.js";
import { Queue } from "./queue.js";
import { QueueView, stateOf } from "./queue-view.js";
import { Recorder } from "./recorder.js";
import { Settings } from "./settings.js";
import { Transcript } from "./transcript.js";

const SAVE_DELAY_MS = 800;

class Page {
  #settings = new Settings(() => {
    this.#document.settingsChanged();
    this.#model.refresh();
  });
  #document = new DocumentView(this.#settings);
  #history = new History();
  #historyView = new HistoryView(this.#history, (entry, contents) => this.#openStored(entry, contents));
  #model = new ModelStatus({
    isWaking: () => this.#queue.current !== null,
    modelOf: (health) => this.#settings.modelOf(health),
    onHealth: (health) => this.#settings.learn(health),
  });
  #queue = new Queue({
    prepare: () => ({ request: this.#settings.request, limits: this.#model.health?.limits ?? null }),
    onChange: (job, event) => this.#jobChanged(job, event),
  });
  #queueView = new QueueView(this.#queue, {
    open: (job) => this.#openJob(job),
    cancel: (job) => this.#queue.cancel(job),
    retry: (job) => this.#queue.retry(job),
    remove: (job) => this.#remove(job),
    mend: (problem) => (problem.isAboutLanguage ? byId("spoken").focus() : this.#settings.open("api-key")),
  });
  #recorder = new Recorder((file) => this.#take([file], { areRecorded: true }));
  /** Phase that was told of each job last. */
  #told = new Map();
  #recorded = new WeakSet();
  /** Whether the next recording that passes its checks takes the place of what is open. */
  #opensNext = false;

  start() {
    listenForFiles((files) => this.#take(files));
    onLanguageChange(() => this.#render());
    setInterval(() => this.#tick(), 1000);
    window.addEventListener("beforeunload", (event) => {
      if (this.#queue.isBusy || this.#recorder.isRecording) event.preventDefault();
    });
    this.#model.refresh();
    this.#onStore(() => this.#historyView.refresh());
    this.#render();
  }

  #take(files, { areRecorded = false } = {}) {
    if (files.length === 0) return;
    if (areRecorded) for (const file of files) this.#recorded.add(file);
    if (!this.#queue.isBusy) this.#opensNext = true;
    this.#queue.add(files);
  }

  #remove(job) {
    this.#queue.remove(job);
    if (this.#document.openId === job.id) this.#document.open(null);
    byId("choose").focus();
    this.#render();
  }

  // ---- What is open ----

  #openJob(job) {
    this.#document.open(this.#documentOf(job));
    this.#render();
  }

  /** Whether what is open is a recording of which no word has come. */
  get #nothingToRead() {
    const opened = this.#queue.jobs.find((job) => job.id === this.#document.openId);
    return this.#document.openId === null || (opened && !opened.transcript && opened.deltas.length === 0);
  }

  #documentOf(job) {
    return {
      id: job.id,
      name: job.file.name,
      file: job.file,
      isRecorded: this.#recorded.has(job.file),
      isRunning: job.isRunning,
      deltas: job.deltas,
      peaks: job.peaks,
      durationS: () => job.transcript?.durationS ?? job.totalS ?? job.peaks.seconds,
      transcript: job.transcript,
      facts: job.transcript && { elapsedS: job.elapsedS, transcribingS: job.transcribingS || job.elapsedS },
      onEdit: debounced(() => this.#keep(job), SAVE_DELAY_MS),
    };
  }

  #openStored(entry, { answer, peaks }) {
    const transcript = new Transcript(answer);
    const kept = Peaks.from(peaks);
    this.#document.open({
      id: entry.id,
      name: entry.name,
      file: null,
      isRecorded: false,
      isRunning: false,
      deltas: [],
      peaks: kept,
      durationS: () => transcript.durationS,
      transcript,
      facts: null,
      onEdit: debounced(() => this.#store(entry, transcript, kept), SAVE_DELAY_MS),
    });
    this.#render();
    this.#document.focus();
  }

  // ---- What jobs tell ----

  #jobChanged(job, event) {
    const isNews = this.#told.get(job) !== job.phase;
    if (isNews && job.phase === "uploading" && (this.#opensNext || this.#nothingToRead)) {
      this.#opensNext = false;
      this.#openJob(job);
    }
    if (this.#document.openId === job.id) this.#document.advance(this.#documentOf(job), event);
    if (isNews) {
      this.#told.set(job, job.phase);
      this.#tell(job);
    }
    this.#render();
  }

  /** Act on a job's new phase, and have it read out. */
  #tell(job) {
    if (job.phase === "done") this.#finished(job);
    if (job.phase === "failed") alertWith(problemWords(job));
    if (["uploading", "loading", "transcribing", "cancelled"].includes(job.phase)) {
      say(text(`announce.${job.phase}`, { name: job.file.name }));
    }
    // A request may have loaded the model, or shown that the server is gone.
    if (job.phase !== "waiting") this.#model.refresh();
  }

  #finished(job) {
    say(text("announce.done", { name: job.file.name }));
    this.#keep(job);
    if (this.#document.openId !== job.id) return;
    const stranded = byId("queue-section").contains(document.activeElement);
    this.#document.open(this.#documentOf(job));
    if (stranded) this.#document.focus();
  }

  // ---- What stays ----

  #keep(job) {
    const entry = { id: job.id, name: job.file.name, savedAt: Date.now(), durationS: job.transcript.durationS };
    this.#store(entry, job.transcript, job.peaks);
  }

  #store(entry, transcript, peaks) {
    this.#onStore(async () => {
      await this.#history.put(entry, { answer: transcript.toJson(), peaks: peaks.toStore() });
      await this.#historyView.refresh();
    });
  }

  /** Do what needs the browser's storage; where that is refused, the page says so and goes on. */
  async #onStore(act) {
    try {
      await act();
    } catch (error) {
      console.warn(error);
      byId("history-refused").hidden = false;
    }
  }

  // ---- Rendering ----

  #render() {
    this.#queueView.render(this.#document.openId);
    this.#document.render();
    byId("page").classList.toggle("working", this.#document.openId !== null || this.#queue.jobs.length > 0);
    // People look at other tabs meanwhile.
    const { current } = this.#queue;
    document.title = current ? `${stateOf(current)} · Parakeet` : text("page.title");
  }

  /** Advance what counts seconds. */
  #tick() {
    if (this.#queue.jobs.some((job) => job.isRunning || job.problem)) this.#queueView.render(this.#document.openId);
  }
}

function problemWords({ file, problem }) {
  const values = { name: file.name, ...problem.values };
  const words = ["title", "advice"].map((part) => text(`error.${problem.kind}.${part}`, values));
  return [...words, problem.serverMessage ?? ""].join(" ");
}

function listenForLanguage() {
  const select = byId("page-language");
  select.value = pageLanguage();
  select.addEventListener("change", async () => {
    try {
      await chooseLanguage(select.value);
    } catch (error) {
      console.error(error); // The page stays in the language it has.
      select.value = pageLanguage();
    }
  });
}

async function start() {
  try {
    await useLanguage(preferredLanguage());
  } catch (error) {
    console.error(error);
    byId("startup-failure").hidden = false;
    return;
  }
  listenForLanguage();
  new Page().start();
  byId("page").hidden = false;
  byId("controls").hidden = false;
}

start();
