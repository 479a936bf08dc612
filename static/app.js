/**
 * The page: transcribes recordings and shows transcripts.
 *
 * This file builds the parts and connects them; each part is a module that owns its section of the
 * page. Text from a server, a file name or a transcript is inserted with `textContent` only.
 * All addresses are relative to the page, so that it works behind a path prefix.
 */

import { DocumentView } from "./document-view.js";
import { alertWith, byId, element, say, setText } from "./dom.js";
import { download, downloadZip, saveFile } from "./downloads.js";
import { ExportView } from "./export-view.js";
import { History } from "./history.js";
import { HistoryView } from "./history-view.js";
import { chooseLanguage, onLanguageChange, pageLanguage, preferredLanguage, text, useLanguage } from "./i18n.js";
import { listenForFiles, listenForUrls } from "./intake.js";
import { ModelStatus } from "./model-status.js";
import { openedEntry, openedJob, openedRecording } from "./opened-document.js";
import { Peaks } from "./peaks.js";
import { Queue } from "./queue.js";
import { QueueView, stateOf } from "./queue-view.js";
import { Recorder } from "./recorder.js";
import { deleteJob } from "./server.js";
import { Settings } from "./settings.js";
import { readStored, store } from "./stored.js";
import { Transcript } from "./transcript.js";

const SHORTCUTS = ["space", "steps", "words", "edit", "undo", "uncertain", "search", "mend", "help"];
/** When the work of a closed tab is continued in this one. */
const TAKE_OVER_MS = 4_000;
/** Wide enough for the list beside the text. */
const WIDE = matchMedia("(min-width: 64rem)");

class Page {
  #settings = new Settings(() => {
    this.#document.settingsChanged();
    this.#model.refresh();
    this.#retryWithKey();
  });
  #exporting = new ExportView(this.#settings);
  #document = new DocumentView(this.#settings, this.#exporting);
  #history = new History();
  #historyView = new HistoryView(this.#history, {
    open: (entry, contents) => this.#openStored(entry, contents),
    download: (entry, contents) => this.#downloadStored(entry, contents),
    gone: (ids) => this.#entriesGone(ids),
  });
  #model = new ModelStatus({
    isWaking: () => this.#queue.current !== null,
    modelOf: (health) => this.#settings.modelOf(health),
    onHealth: (health) => this.#settings.learn(health),
  });
  #queue = new Queue({
    prepare: () => this.#prepared(),
    onChange: (job, event) => this.#jobChanged(job, event),
    onKeep: (job) => this.#keepWork(job),
  });
  #queueView = new QueueView(this.#queue, {
    open: (job) => {
      this.#openJob(job);
      this.#document.focus();
    },
    cancel: (job) => this.#queue.cancel(job),
    retry: (job) => this.#queue.retry(job),
    remove: (job) => this.#remove(job),
    save: (job) => saveFile(job.file, job.name),
    mend: (problem) => (problem.isAboutLanguage ? byId("spoken").focus() : this.#settings.open("api-key")),
  });
  #recorder = new Recorder({
    requestOf: () => this.#settings.request,
    onWords: (recording) => this.#heard(recording),
    onPart: (recording, part, index) => this.#keepPart(recording, part, index),
    onEnd: (recording, file) => this.#recorded(recording, file),
  });
  /** The recording whose words are, or were, open; and what was open before it. */
  #heardId = null;
  #openBefore = null;
  /** Last announced phase of each job. */
  #told = new Map();
  /** Whether the next recording that passes its checks takes the place of what is open. */
  #opensNext = false;

  start() {
    listenForFiles((files) => this.#take(files));
    listenForUrls((url) => this.#takeUrl(url));
    onLanguageChange(() => this.#render());
    setInterval(() => this.#tick(), 1000);
    window.addEventListener("beforeunload", (event) => {
      if (this.#queue.isBusy || this.#recorder.current) event.preventDefault();
    });
    // Phones may kill a hidden page without a further event.
    window.addEventListener("pagehide", () => {
      this.#document.commit();
      this.#history.leave();
    });
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.#document.commit();
    });
    this.#history.listen({
      onEdit: (id, event) => this.#editedElsewhere(id, event),
      onList: () => this.#onStore(() => this.#historyView.refresh()),
      // Unless the tab is only being reloaded.
      onLeave: () => setTimeout(() => this.#onStore(() => this.#resume()), TAKE_OVER_MS),
      owned: () => [...this.#queue.jobs.filter((job) => !job.isOver).map(({ id }) => id), this.#recorder.current?.id].filter(Boolean),
    });
    byId("try-sample").addEventListener("click", () => this.#trySample());
    byId("record-show").addEventListener("click", () => {
      this.#document.open(openedRecording(this.#recorder.current));
      this.#render();
    });
    for (const id of ["export-all", "export-refused"]) byId(id).addEventListener("click", () => this.#exportAll());
    byId("shortcuts-open").addEventListener("click", () => this.#showShortcuts());
    byId("single-keys").checked = readStored("single-keys", true);
    byId("single-keys").addEventListener("change", () => store("single-keys", byId("single-keys").checked));
    this.#listenForSide();
    // The queue and the end of the text leave space for the player, whatever its height.
    new ResizeObserver(() => {
      document.documentElement.style.setProperty("--bar-height", `${byId("bar").offsetHeight}px`);
    }).observe(byId("bar"));
    this.#model.refresh();
    this.#onStore(async () => {
      await this.#historyView.refresh();
      await this.#resume();
    });
    this.#render();
  }

  #prepared() {
    const { health } = this.#model;
    return {
      request: this.#settings.request,
      limits: health?.limits ?? null,
      isModelLoading: health ? this.#settings.modelOf(health).state === "loading" : false,
      acceptsJobs: !health?.jobs?.error && health?.limits?.max_queued_jobs !== 0,
    };
  }

  #take(files, recording = null) {
    if (files.length === 0) return;
    if (!this.#queue.isWorking) this.#opensNext = true;
    const jobs = this.#queue.add(files, recording);
    for (const job of jobs) this.#onStore(() => this.#keepSound(job, recording));
  }

  #takeUrl(url) {
    if (!this.#queue.isWorking) this.#opensNext = true;
    this.#queue.addUrl(url);
  }

  // ---- The microphone ----

  /** Show the words of a recording while it is made: the document in which its transcript will stand. */
  #heard(recording) {
    const opened = openedRecording(recording);
    if (this.#heardId !== recording.id) {
      this.#heardId = recording.id;
      this.#openBefore = this.#document.opened;
      this.#document.open(opened);
    } else if (this.#document.openId === recording.id) this.#document.advance(opened);
    this.#render();
  }

  /** Transcribe a recording; `file` is null if it was discarded. */
  #recorded(recording, file) {
    const isOpen = this.#document.openId === recording.id;
    if (file) this.#take([file], recording);
    else {
      this.#onStore(() => this.#history.removeWork(recording.id));
      if (isOpen) this.#document.open(this.#openBefore);
    }
    this.#openBefore = null;
    this.#render();
  }

  async #trySample() {
    const reply = await fetch("static/sample.ogg");
    if (reply.ok) this.#take([new File([await reply.blob()], text("sample.name"), { type: "audio/ogg" })]);
  }

  #remove(job) {
    this.#queue.remove(job);
    if (this.#document.openId === job.id) this.#document.open(null);
    this.#onStore(() => this.#history.removeWork(job.id));
    byId("choose").focus();
    this.#render();
  }

  /** Retry the jobs that failed for lack of an API key. */
  #retryWithKey() {
    for (const job of this.#queue.jobs) if (job.problem?.isAboutKey && this.#settings.request.apiKey) this.#queue.retry(job);
  }

  // ---- The open document ----

  #openJob(job) {
    this.#document.open(this.#documentOf(job));
    this.#render();
  }

  /** Whether the open document is a failed recording without words. */
  get #nothingToRead() {
    const opened = this.#queue.jobs.find((job) => job.id === this.#document.openId);
    return this.#document.openId === null || (opened?.isOver && !opened.transcript && !opened.hasWords);
  }

  #documentOf(job) {
    return openedJob(job, this.#actionsOn(job));
  }

  #actionsOn(named) {
    return { onEdit: (event) => this.#keepEdit(named.id, event), onRename: (name) => this.#rename(named, name) };
  }

  async #openStored(entry, { answer, peaks, edits }) {
    const job = this.#queue.jobs.find(({ id }) => id === entry.id);
    const transcript = new Transcript(answer, edits);
    const kept = Peaks.from(peaks);
    const file = job?.file ?? (await this.#history.soundOf(entry.id, entry.name)) ?? null;
    this.#document.open(openedEntry(entry, { file, peaks: kept, transcript }, this.#actionsOn(entry)));
    this.#render();
    this.#document.focus();
  }

  #downloadStored({ name }, { answer, edits }) {
    const { format } = this.#settings;
    download(new Transcript(answer, edits), format, { recordingName: name, options: this.#exporting.options });
    say(text("announce.downloaded", { format: format.toUpperCase() }));
  }

  /** Close what was deleted, as its edits could not be stored; store what had no room before. */
  #entriesGone(ids) {
    if (ids.includes(this.#document.openId)) this.#document.open(null);
    for (const job of this.#queue.unkept) this.#keep(job);
    this.#render();
  }

  #rename(named, name) {
    named.name = name;
    this.#onStore(async () => {
      await this.#history.rename(named.id, name);
      await this.#historyView.refresh();
    });
  }

  /** Apply another tab's edit to the open document. */
  #editedElsewhere(id, event) {
    if (this.#document.openId !== id || !this.#document.transcript) return;
    if (this.#document.transcript.take(event)) return;
    // Both tabs edited at the same time: the log determines the order.
    this.#onStore(async () => {
      const contents = await this.#history.contentsOf(id);
      const entry = this.#historyView.entries.find((known) => known.id === id);
      if (contents && entry) await this.#openStored(entry, contents);
    });
  }

  // ---- Events of jobs ----

  #jobChanged(job, event) {
    const isNews = this.#told.get(job) !== job.phase;
    if (isNews && job.isRunning && (this.#opensNext || (this.#nothingToRead && job.phase !== "queued"))) {
      this.#opensNext = false;
      this.#openJob(job);
    }
    if (this.#document.openId === job.id && !job.transcript) this.#document.advance(this.#documentOf(job), event);
    if (isNews) {
      this.#told.set(job, job.phase);
      this.#tell(job);
    }
    this.#render();
  }

  /** Handle a job's new phase, and announce it to screen readers. */
  #tell(job) {
    if (job.phase === "done") this.#finished(job);
    if (job.phase === "failed") alertWith(problemWords(job));
    if (["uploading", "loading", "transcribing", "cancelled"].includes(job.phase)) {
      say(text(`announce.${job.phase}`, { name: job.name }));
    }
    // A request may have loaded the model, or shown that the server is down.
    if (!["waiting", "checking"].includes(job.phase)) this.#model.refresh();
  }

  #finished(job) {
    say(text("announce.done", { name: job.name }));
    this.#keep(job);
    if (this.#document.openId !== job.id) return;
    const stranded = byId("queue-section").contains(document.activeElement);
    this.#document.open(this.#documentOf(job));
    if (stranded) this.#document.focus();
  }

  // ---- Storage ----

  /** Store a transcript; then delete its job on the server. */
  #keep(job) {
    const entry = { id: job.id, name: job.name, savedAt: Date.now(), durationS: job.transcript.durationS };
    this.#onStore(async () => {
      try {
        await this.#history.put(entry, { answer: job.answer, peaks: job.peaks.toStore() });
      } catch (error) {
        job.isUnkept = true;
        throw error;
      }
      Object.assign(job, { answer: null, isUnkept: false });
      byId("history-refused").hidden = true;
      if (job.serverId) deleteJob(job.serverId, this.#settings.request.apiKey);
      await this.#historyView.refresh();
      this.#render();
    });
  }

  #keepEdit(id, event) {
    this.#onStore(() => this.#history.putEdit(id, event));
  }

  /** Store what a recording in progress needs to continue after a reload. */
  #keepWork(job) {
    const isGivenUp = job.phase === "cancelled" || (job.phase === "failed" && !job.isRecorded);
    this.#onStore(() => (isGivenUp ? this.#history.removeWork(job.id) : this.#history.putWork(job.record)));
  }

  async #keepSound(job, recording) {
    // The parts of a recording are stored as it is made.
    if (!recording || recording.isUnkept) await this.#history.putSound(job.id, job.file);
    // It was rejected in the meantime.
    if (job.phase === "failed" && !job.serverId) await this.#history.removeWork(job.id);
  }

  /** Store a second of a recording, so that a crash loses no more; without room, it is only in memory. */
  async #keepPart(recording, part, index) {
    if (recording.isUnkept) return;
    const { id, name, turns } = recording;
    try {
      await this.#history.putPart({ id, name, size: 0, isRecorded: true, isCut: true, turns }, part, index);
    } catch (error) {
      recording.isUnkept = true;
      console.warn(error);
      this.#onStore(() => this.#history.removeWork(id));
    }
  }

  /** Continue what an earlier page left, unless another tab works on it. */
  async #resume() {
    if ((await this.#history.work()).length === 0) return;
    const elsewhere = await this.#history.ownedElsewhere();
    const known = new Set([...this.#queue.jobs.map(({ id }) => id), this.#recorder.current?.id]);
    const left = (await this.#history.work()).filter(({ id }) => !known.has(id) && !elsewhere.has(id));
    const files = await Promise.all(left.map(({ id, name }) => this.#history.soundOf(id, name)));
    this.#queue.resume(left.map((record, index) => ({ ...record, size: files[index]?.size ?? record.size, file: files[index] ?? null })));
  }

  /** Run an action on the browser's storage; if that is refused, show a message and continue. */
  async #onStore(act) {
    try {
      await act();
    } catch (error) {
      console.warn(error);
      const key = error?.name === "QuotaExceededError" ? "history.full" : "history.refused";
      byId("history-refused-text").dataset.i18n = key;
      setText(byId("history-refused-text"), text(key));
      byId("history-refused").hidden = false;
      this.#render();
    }
  }

  #exportAll() {
    const { entries } = this.#historyView;
    const { unkept } = this.#queue;
    this.#exporting.openAll(entries.length + unkept.length, (formats) =>
      this.#onStore(async () => {
        const recordings = unkept.map(({ name, transcript }) => ({ name, transcript }));
        for (const { id, name } of entries) {
          const { answer, edits } = await this.#history.contentsOf(id);
          recordings.push({ name, transcript: new Transcript(answer, edits) });
        }
        const archiveName = `${text("export.archive")} ${new Date().toLocaleDateString("sv")}.zip`;
        await downloadZip(recordings, formats, { archiveName, options: this.#exporting.options });
        say(text("announce.downloaded", { format: "ZIP" }));
      }),
    );
  }

  // ---- Rendering ----

  #render() {
    const { openId } = this.#document;
    this.#queueView.render(openId);
    this.#historyView.show(openId);
    this.#document.render();
    document.documentElement.classList.toggle("working", openId !== null || this.#queue.isWorking);
    byId("side-toggle").hidden = openId === null && !this.#queue.isWorking;
    byId("export-refused").hidden = this.#historyView.entries.length + this.#queue.unkept.length === 0;
    const { current: recording } = this.#recorder;
    byId("record-show").hidden = !recording || recording.id !== this.#heardId || recording.id === openId;
    // In the tab's title, as the user may be in another tab.
    const { current } = this.#queue;
    document.title = current ? `${stateOf(current)} · Parakeet` : text("page.title");
  }

  #listenForSide() {
    const show = (open) => {
      document.documentElement.classList.toggle("side-closed", !open);
      byId("side-toggle").setAttribute("aria-expanded", String(open));
    };
    show(readStored(WIDE.matches ? "side" : "side-narrow", true));
    byId("side-toggle").addEventListener("click", () => {
      const open = byId("side-toggle").getAttribute("aria-expanded") !== "true";
      show(open);
      store(WIDE.matches ? "side" : "side-narrow", open);
    });
  }

  #showShortcuts() {
    const rows = SHORTCUTS.map((name) => {
      const [keys, words] = text(`shortcut.${name}`).split(" | ");
      return [element("dt", {}, element("kbd", { textContent: keys })), element("dd", { textContent: words })];
    });
    byId("shortcut-list").replaceChildren(...rows.flat());
    byId("shortcuts").showModal();
  }

  /** Update the displays that count seconds. */
  #tick() {
    if (this.#queue.jobs.some((job) => job.isRunning || job.problem || job.hindrance)) this.#queueView.render(this.#document.openId);
  }
}

function problemWords({ name, problem }) {
  const values = { name, ...problem.values };
  const words = ["title", "advice"].map((part) => text(`error.${problem.kind}.${part}`, values));
  return [...words, problem.messageFor(pageLanguage()) ?? ""].join(" ");
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
