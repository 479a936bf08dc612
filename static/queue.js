/** The queue of recordings: checked at once, uploaded one by one, then followed on the server. */

import { canBeRead, checkRequest } from "./checks.js";
import { Peaks } from "./peaks.js";
import { Problem, problemOfEvent } from "./problems.js";
import { deleteJob, jobEvents, jobResult, submitJob, transcribe } from "./server.js";
import { Transcript } from "./transcript.js";

let jobCount = 0;

/** Concurrent checks; in each, the browser opens a file. */
const CHECKS = 4;
/** Polling intervals of running and of waiting jobs. */
const FOLLOW_MS = 400;
const WAITING_MS = 1_500;
/** Number of jobs that are polled; the server processes them in order. */
const MAX_FOLLOWED = 3;
/** Delay before a retry if the server sends no Retry-After. */
const RETRY_MS = 3_000;

/**
 * One recording and its progress.
 *
 * `phase` goes `checking`, `waiting`, `uploading`, then the server's `queued`, `loading` and
 * `transcribing`, and ends in `done`, `failed` or `cancelled`; the last two can be restarted.
 */
export class Job {
  /** Also the id of its transcript in the history. */
  id;
  /** `null` after a reload if the browser had no space for it, and for a URL. */
  file;
  /** Address from which the server fetches the recording, or `null`. */
  url;
  name;
  size;
  /** Whether it was recorded here, so that there is no other copy; and whether a crash ended that. */
  isRecorded = false;
  isCut = false;
  /** What was understood while it was recorded, `{startS, text}` each. */
  turns = [];
  phase = "checking";
  /** Id of its job on the server, once uploaded. */
  serverId = null;
  /** Uploaded share, 0 to 1. */
  sent = 0;
  /** Time of the last upload progress, by `performance.now()`. */
  sentAt = 0;
  /** Its position in the server's queue, or `null`. */
  queuePosition = null;
  /** Transcribed seconds of the recording, and its duration; `null` if unknown. */
  doneS = 0;
  totalS = null;
  /** `performance.now()` at its start, at the first sign of transcription, and at its end. */
  startedAt = null;
  transcribingAt = null;
  endedAt = null;
  /** The deltas received so far. */
  deltas = [];
  peaks = new Peaks();
  problem = null;
  /** The temporary problem that delays it; it is retried automatically. */
  hindrance = null;
  transcript = null;
  answer = null;
  /** Whether the browser could not store its transcript. */
  isUnkept = false;
  controller = new AbortController();
  cursor = { run: "", after: 0 };

  constructor({ id, file = null, url = null, name, size, serverId = null, isRecorded = false, isCut = false, turns = [] }) {
    this.id = id ?? `${Date.now()}-${(jobCount += 1)}`;
    Object.assign(this, { file, url, name, size, serverId, isRecorded, isCut, turns });
  }

  /** Whether it is being uploaded or is on the server. */
  get isRunning() {
    return ["uploading", "queued", "loading", "transcribing"].includes(this.phase);
  }

  get isOver() {
    return ["done", "failed", "cancelled"].includes(this.phase);
  }

  get elapsedS() {
    return this.startedAt === null ? 0 : ((this.endedAt ?? performance.now()) - this.startedAt) / 1000;
  }

  /** Seconds since the server began to transcribe. */
  get transcribingS() {
    return this.transcribingAt === null ? 0 : ((this.endedAt ?? performance.now()) - this.transcribingAt) / 1000;
  }

  /** State to store, for continuing after a reload. */
  get record() {
    const { id, url, name, size, serverId, isRecorded, isCut, turns } = this;
    return { id, url, name, size, serverId, isRecorded, isCut, turns };
  }

  /** Whether there is still something to send. */
  get canBeSent() {
    return this.file !== null || this.url !== null;
  }

  /** Whether there are words to show before the transcript. */
  get hasWords() {
    return this.deltas.length > 0 || this.turns.some((turn) => turn.text.trim() !== "");
  }

  begin() {
    Object.assign(this, {
      controller: new AbortController(),
      serverId: null,
      sent: 0,
      queuePosition: null,
      doneS: 0,
      startedAt: performance.now(),
      transcribingAt: null,
      endedAt: null,
      deltas: [],
      peaks: new Peaks(),
      problem: null,
      hindrance: null,
      cursor: { run: "", after: 0 },
    });
  }

  /** Apply an event of a stream or of a job. */
  take(event) {
    if (event.type === "transcript.text.delta") this.deltas.push(event.delta);
    if (event.type === "transcript.peaks") this.peaks.add(event);
    if (event.type !== "transcript.progress") return;
    this.phase = event.state;
    this.queuePosition = event.queue_position ?? null;
    this.advanceTo(event.done_s ?? 0, event.total_s);
    // Speed is measured from the end of the model's load.
    if (event.state === "loading") this.transcribingAt = performance.now();
    if (event.state === "transcribing") this.transcribingAt ??= performance.now();
  }

  advanceTo(doneS, totalS) {
    this.doneS = doneS;
    this.totalS = totalS ?? this.totalS;
  }

  end(phase, problem = null) {
    Object.assign(this, { phase, problem, hindrance: null, endedAt: performance.now() });
  }
}

/** Processes recordings from file to transcript. */
export class Queue {
  jobs = [];
  #prepare;
  #onChange;
  #onKeep;
  #checking = 0;
  #isSending = false;

  /**
   * `prepare()` gives `{request, limits, isModelLoading, acceptsJobs}` as they are at that moment,
   * so that a key entered meanwhile is used. `onChange(job, event)` is called after each change of a
   * job, `onKeep(job)` when what is needed after a reload has changed.
   */
  constructor({ prepare, onChange, onKeep }) {
    this.#prepare = prepare;
    this.#onChange = onChange;
    this.#onKeep = onKeep;
  }

  get current() {
    return this.jobs.find((job) => job.phase === "transcribing") ?? this.jobs.find((job) => job.isRunning) ?? null;
  }

  /** Whether closing the page now would lose data; jobs on the server are safe. */
  get isBusy() {
    return this.jobs.some((job) => job.isUnkept || (!job.isOver && !job.serverId));
  }

  /** Transcripts that only this page has. */
  get unkept() {
    return this.jobs.filter((job) => job.isUnkept);
  }

  get isWorking() {
    return this.jobs.some((job) => !job.isOver);
  }

  /** Take files, or that of one recording; return their jobs. */
  add(files, recording = null) {
    const { id, turns } = recording ?? {};
    const isRecorded = recording !== null;
    const added = files.map((file) => new Job({ id, file, name: file.name, size: file.size, isRecorded, turns }));
    this.jobs.push(...added);
    for (const job of added) this.#onChange(job);
    this.#check();
    return added;
  }

  /** Take the URL of a recording, which the server fetches. */
  addUrl(url) {
    const job = new Job({ url, name: nameOf(url), size: 0 });
    this.jobs.push(job);
    this.#onChange(job);
    this.#check();
  }

  /** Continue jobs of an earlier page: `Job.record` and the file, or `null`, each. */
  resume(records) {
    for (const record of records) {
      const job = new Job(record);
      this.jobs.push(job);
      job.startedAt = performance.now();
      if (job.serverId) {
        job.phase = "queued";
        this.#follow(job);
      } else if (!job.canBeSent) job.end("failed", new Problem("file_not_kept"));
      this.#onChange(job);
    }
    this.#check();
  }

  cancel(job) {
    job.controller.abort();
    if (job.serverId) deleteJob(job.serverId, this.#prepare().request.apiKey);
    if (!job.isOver) job.end("cancelled");
    this.#onKeep(job);
    this.#onChange(job);
    this.#send();
  }

  retry(job) {
    job.begin();
    job.phase = "waiting";
    this.#onKeep(job);
    this.#onChange(job);
    this.#send();
  }

  remove(job) {
    if (!job.isOver) this.cancel(job);
    this.jobs = this.jobs.filter((kept) => kept !== job);
    this.#onChange(job);
  }

  async #check() {
    for (const job of this.jobs.filter((waiting) => waiting.phase === "checking" && !waiting.isChecked)) {
      if (this.#checking >= CHECKS) return;
      job.isChecked = true;
      this.#checking += 1;
      this.#checkOne(job).finally(() => {
        this.#checking -= 1;
        this.#check();
        this.#send();
      });
    }
  }

  async #checkOne(job) {
    try {
      const { request, limits } = this.#prepare();
      job.totalS = await checkRequest({ file: job.file, ...request }, limits);
      if (job.phase !== "checking") return;
      job.phase = "waiting";
      this.#onKeep(job);
    } catch (error) {
      if (job.phase === "checking") job.end("failed", await explained(error, job));
    }
    this.#onChange(job);
  }

  /** Upload the next one; two uploads at once would only delay the first words. */
  async #send() {
    // In the order of choice.
    const job = this.jobs.find(({ phase }) => phase === "waiting" || phase === "checking");
    if (job?.phase !== "waiting" || this.#isSending) return;
    this.#isSending = true;
    try {
      await this.#sendOne(job);
    } finally {
      this.#isSending = false;
    }
    this.#send();
  }

  async #sendOne(job) {
    const totalS = job.totalS;
    job.begin();
    job.totalS = totalS;
    const { signal } = job.controller;
    const { request, acceptsJobs } = this.#prepare();
    const whole = { file: job.file, url: job.url, ...request, ...(job.isCut && { allowsPartial: true }) };
    job.phase = "uploading";
    job.sentAt = performance.now();
    this.#onChange(job);
    const onSent = (share) => {
      Object.assign(job, { sent: share, sentAt: performance.now() });
      this.#onChange(job);
    };
    try {
      if (acceptsJobs) {
        job.serverId = await submitJob(whole, { signal, onSent });
        Object.assign(job, { sent: 1, phase: "queued" });
        this.#onKeep(job);
        this.#onChange(job);
        this.#follow(job);
      } else await this.#stream(job, whole, { signal, onSent });
    } catch (error) {
      if (signal.aborted) return;
      const problem = await explained(error, job);
      if (problem.kind === "jobs_unavailable") await this.#streamInstead(job, whole, { signal, onSent });
      else if (problem.isPassing && job.phase === "uploading") await this.#waitAndTryAgain(job, problem);
      else this.#fail(job, problem);
    }
  }

  async #streamInstead(job, whole, options) {
    try {
      await this.#stream(job, whole, options);
    } catch (error) {
      if (!options.signal.aborted) this.#fail(job, await explained(error, job));
    }
  }

  /** Transcribe as a stream, if the server accepts no jobs. */
  async #stream(job, whole, options) {
    const answer = await transcribe(whole, {
      ...options,
      onUploaded: () => {
        Object.assign(job, { sent: 1, phase: "queued" });
        this.#onChange(job);
      },
      onEvent: (event) => {
        job.take(event);
        this.#onChange(job, event);
      },
    });
    this.#succeed(job, answer);
  }

  /** Pause the queue until a retry may succeed; the following ones would fail as well. */
  async #waitAndTryAgain(job, problem) {
    Object.assign(job, { phase: "waiting", hindrance: problem });
    this.#onChange(job);
    const waitMs = problem.retryAt === null ? RETRY_MS : Math.max(500, problem.retryAt - performance.now());
    await Promise.race([sleep(waitMs), aborted(job.controller.signal)]);
  }

  /** Poll a job until it has ended, also after connection errors. */
  async #follow(job) {
    const { signal } = job.controller;
    while (!signal.aborted && !job.isOver) {
      if (this.#isNear(job)) await this.#ask(job, signal);
      if (signal.aborted || job.isOver) return;
      const isQuick = job.phase === "transcribing" || job.phase === "loading";
      await sleep(job.hindrance ? RETRY_MS : isQuick ? FOLLOW_MS : WAITING_MS / 3);
    }
  }

  /** Whether a job's turn comes soon. */
  #isNear(job) {
    const before = this.jobs.filter((other) => other.serverId && !other.isOver);
    return before.indexOf(job) < MAX_FOLLOWED;
  }

  async #ask(job, signal) {
    const { request, isModelLoading } = this.#prepare();
    try {
      const reply = await jobEvents(job.serverId, job.cursor, request.apiKey);
      if (signal.aborted) return;
      job.hindrance = null;
      this.#takeEvents(job, reply);
      await this.#takeStatus(job, reply, { apiKey: request.apiKey, isModelLoading });
    } catch (error) {
      if (signal.aborted) return;
      const problem = await explained(error, job);
      if (problem.kind === "not_found") this.#fail(job, new Problem("job_lost"));
      else if (problem.isPassing || problem.isAboutKey || problem.kind === "server_error" || problem.kind === "jobs_unavailable") {
        job.hindrance = problem;
        this.#onChange(job);
      } else this.#fail(job, problem);
    }
  }

  #takeEvents(job, { run, following, events }) {
    if (job.cursor.run && run !== job.cursor.run) {
      // The server restarted, and the job was started again.
      Object.assign(job, { deltas: [], peaks: new Peaks(), doneS: 0 });
      this.#onChange(job, { type: "restart" });
    }
    job.cursor = { run, after: following };
    for (const event of events) {
      job.take(event);
      this.#onChange(job, event);
    }
  }

  async #takeStatus(job, { job: state, queue_position: place }, { apiKey, isModelLoading }) {
    job.queuePosition = place;
    if (state.status === "succeeded") this.#succeed(job, await jobResult(job.serverId, apiKey));
    else if (state.status === "failed") this.#fail(job, problemOfEvent(state.error));
    else if (state.status === "cancelled") job.end("cancelled");
    else this.#take(job, state, isModelLoading);
    this.#onChange(job);
  }

  #take(job, { status, progress }, isModelLoading) {
    if (status === "queued") {
      job.phase = "queued";
      return;
    }
    const event = {
      type: "transcript.progress",
      state: progress.done_s === 0 && isModelLoading ? "loading" : "transcribing",
      done_s: progress.done_s,
      total_s: progress.total_s,
    };
    job.take(event);
  }

  #succeed(job, answer) {
    job.answer = answer;
    job.transcript = new Transcript(answer);
    job.end("done");
    this.#onChange(job);
  }

  #fail(job, problem) {
    job.end("failed", problem);
    this.#onKeep(job);
    this.#onChange(job);
  }
}

/** Return `error` as a `Problem`; a fault in this page itself goes to the console too. */
async function explained(error, job) {
  if (!(error instanceof Problem)) {
    console.error(error);
    return new Problem("unexpected_answer");
  }
  // A file that changes during its upload looks like a lost connection, but a retry would not help.
  const changed = error.kind === "network" && !job.serverId && job.file && !(await canBeRead(job.file));
  return changed ? new Problem("unreadable_file") : error;
}

/** Name a recording after the last part of its URL's path, or the host. */
function nameOf(url) {
  const { pathname, hostname } = new URL(url);
  const last = pathname.split("/").filter(Boolean).at(-1) ?? hostname;
  try {
    return decodeURIComponent(last);
  } catch {
    return last;
  }
}

function sleep(ms) {
  return new Promise((resolve) => { setTimeout(resolve, ms); });
}

function aborted(signal) {
  return new Promise((resolve) => { signal.addEventListener("abort", resolve, { once: true }); });
}
