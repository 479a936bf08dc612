/** Recordings on their way: checked at once, sent one after the other, and followed on the server. */

import { canBeRead, checkRequest } from "./checks.js";
import { Peaks } from "./peaks.js";
import { Problem, problemOfEvent } from "./problems.js";
import { deleteJob, jobEvents, jobResult, submitJob, transcribe } from "./server.js";
import { Transcript } from "./transcript.js";

let jobCount = 0;

/** Checks that run at a time: each lets the browser look into a file. */
const CHECKS = 4;
/** How often the server is asked about what it works on, and about what waits there. */
const FOLLOW_MS = 400;
const WAITING_MS = 1_500;
/** Jobs on the server that are asked about; it works on them in their order. */
const MAX_FOLLOWED = 3;
/** Between two tries of what a server cannot do for now, where it does not say how long. */
const RETRY_MS = 3_000;

/**
 * One recording and how far it is.
 *
 * `phase` goes `checking`, `waiting`, `uploading`, then the server's `queued`, `loading` and
 * `transcribing`, and ends in `done`, `failed` or `cancelled`; from the last two it can start again.
 */
export class Job {
  /** Its transcript's in the history as well. */
  id;
  /** `null` after a reload where the browser had no room for it. */
  file;
  name;
  size;
  isRecorded = false;
  phase = "checking";
  /** Its name on the server, once it is there. */
  serverId = null;
  /** Share of the upload that has left, 0 to 1. */
  sent = 0;
  /** When more of it left for the last time, as `performance.now()` gives it. */
  sentAt = 0;
  /** Its place among the jobs that wait on the server, or `null`. */
  queuePosition = null;
  /** Seconds of the recording that are words already, and in all; `null` where nobody knows. */
  doneS = 0;
  totalS = null;
  /** `performance.now()` at its start, at the first sign of transcription, and at its end. */
  startedAt = null;
  transcribingAt = null;
  endedAt = null;
  /** The words so far, in pieces as they came. */
  deltas = [];
  peaks = new Peaks();
  problem = null;
  /** What keeps it from going on for the moment; it is tried again by itself. */
  hindrance = null;
  transcript = null;
  answer = null;
  controller = new AbortController();
  cursor = { run: "", after: 0 };

  constructor({ id, file, name, size, serverId = null, isRecorded = false }) {
    this.id = id ?? `${Date.now()}-${(jobCount += 1)}`;
    Object.assign(this, { file, name, size, serverId, isRecorded });
  }

  /** Whether it is being sent or is on the server. */
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

  /** What is kept to go on after a reload. */
  get record() {
    const { id, name, size, serverId, isRecorded } = this;
    return { id, name, size, serverId, isRecorded };
  }

  get text() {
    return this.deltas.join("").trim();
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

  /** Take an event of a stream or of a job. */
  take(event) {
    if (event.type === "transcript.text.delta") this.deltas.push(event.delta);
    if (event.type === "transcript.peaks") this.peaks.add(event);
    if (event.type !== "transcript.progress") return;
    this.phase = event.state;
    this.queuePosition = event.queue_position ?? null;
    this.advanceTo(event.done_s ?? 0, event.total_s);
    // Loading the model is not transcribing: speed is counted from its end.
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

/** Takes recordings from the file to the transcript. */
export class Queue {
  jobs = [];
  #prepare;
  #onChange;
  #onKeep;
  #checking = 0;
  #isSending = false;

  /**
   * `prepare()` gives `{request, limits, isModelLoading, acceptsJobs}` as they are at that moment,
   * so that a key entered meanwhile counts. `onChange(job, event)` is called after each change of a
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

  /** Whether leaving the page now would lose something: what is on the server is safe. */
  get isBusy() {
    return this.jobs.some((job) => !job.isOver && !job.serverId);
  }

  get isWorking() {
    return this.jobs.some((job) => !job.isOver);
  }

  /** Take files; give their jobs. */
  add(files, { areRecorded = false } = {}) {
    const added = files.map((file) => new Job({ file, name: file.name, size: file.size, isRecorded: areRecorded }));
    this.jobs.push(...added);
    for (const job of added) this.#onChange(job);
    this.#check();
    return added;
  }

  /** Go on with what an earlier page has left, `Job.record` and the file, or `null`, each. */
  resume(records) {
    for (const record of records) {
      const job = new Job(record);
      this.jobs.push(job);
      job.startedAt = performance.now();
      if (job.serverId) {
        job.phase = "queued";
        this.#follow(job);
      } else if (!job.file) job.end("failed", new Problem("file_not_kept"));
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

  /** Send the next one: two uploads at once would only make the first words come later. */
  async #send() {
    // In the order in which they were chosen.
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
    const whole = { file: job.file, ...request };
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

  /** Have it transcribed while the connection lasts, where a server takes no jobs. */
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

  /** Hold the queue until the server may take the recording; those behind it would fare no better. */
  async #waitAndTryAgain(job, problem) {
    Object.assign(job, { phase: "waiting", hindrance: problem });
    this.#onChange(job);
    const waitMs = problem.retryAt === null ? RETRY_MS : Math.max(500, problem.retryAt - performance.now());
    await Promise.race([sleep(waitMs), aborted(job.controller.signal)]);
  }

  /** Ask about a job on the server until it has ended, whatever the connection does meanwhile. */
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
      // The server was started anew, and the job with it.
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

/** Give `error` as a `Problem`; a fault in this page itself goes to the console too. */
async function explained(error, job) {
  if (!(error instanceof Problem)) {
    console.error(error);
    return new Problem("unexpected_answer");
  }
  // A file that changes during its upload looks like a lost connection; trying again would not help.
  const changed = error.kind === "network" && !job.serverId && job.file && !(await canBeRead(job.file));
  return changed ? new Problem("unreadable_file") : error;
}

function sleep(ms) {
  return new Promise((resolve) => { setTimeout(resolve, ms); });
}

function aborted(signal) {
  return new Promise((resolve) => { signal.addEventListener("abort", resolve, { once: true }); });
}
