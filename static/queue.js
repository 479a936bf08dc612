/** Recordings on their way: checked, sent, transcribed, one after the other. */

import { canBeRead, checkRequest } from "./checks.js";
import { Peaks } from "./peaks.js";
import { Problem } from "./problems.js";
import { transcribe } from "./server.js";
import { Transcript } from "./transcript.js";

let jobCount = 0;

/**
 * One recording and how far it is.
 *
 * `phase` goes `waiting`, `checking`, `uploading`, then the server's `queued`, `loading` and
 * `transcribing`, and ends in `done`, `failed` or `cancelled`; from the last two it can start again.
 */
export class Job {
  /** Its transcript's in the history as well: an edit there replaces what was kept before it. */
  id = `${Date.now()}-${(jobCount += 1)}`;
  file;
  phase = "waiting";
  /** Share of the upload that has left, 0 to 1. */
  sent = 0;
  /** When more of it left for the last time, as `performance.now()` gives it. */
  sentAt = 0;
  /** How many requests the server works on before this one, or `null`. */
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
  transcript = null;
  #controller = null;

  constructor(file) {
    this.file = file;
  }

  get isRunning() {
    return this.#controller !== null;
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

  /** Stop the work, on the server too; the file is kept. */
  cancel() {
    if (this.#controller) this.#controller.abort();
    else if (!this.isOver) this.phase = "cancelled";
  }

  /**
   * Take it from the file to the transcript; never rejects.
   *
   * `request` is `Settings.request`, `limits` the server's or `null`; `onChange(event)` is
   * called after each change, with the server's event where one caused it.
   */
  async run(request, limits, onChange) {
    this.#start();
    const { signal } = this.#controller;
    onChange();
    try {
      const whole = { file: this.file, ...request };
      this.totalS = await checkRequest(whole, limits);
      signal.throwIfAborted();
      this.phase = "uploading";
      this.sentAt = performance.now();
      onChange();
      const answer = await transcribe(whole, this.#watching(signal, onChange));
      this.transcript = new Transcript(answer);
      this.deltas = []; // The transcript has it all.
      this.phase = "done";
    } catch (error) {
      this.phase = signal.aborted ? "cancelled" : "failed";
      this.problem = signal.aborted ? null : await this.#explained(error);
    }
    this.#controller = null;
    this.endedAt = performance.now();
    onChange();
  }

  #start() {
    this.#controller = new AbortController();
    Object.assign(this, {
      phase: "checking",
      sent: 0,
      queuePosition: null,
      doneS: 0,
      totalS: null,
      startedAt: performance.now(),
      transcribingAt: null,
      endedAt: null,
      deltas: [],
      peaks: new Peaks(),
      problem: null,
    });
  }

  #watching(signal, onChange) {
    return {
      signal,
      onSent: (share) => {
        this.sent = share;
        this.sentAt = performance.now();
        onChange();
      },
      onUploaded: () => {
        Object.assign(this, { sent: 1, phase: "queued" });
        onChange();
      },
      onEvent: (event) => {
        this.#take(event);
        onChange(event);
      },
    };
  }

  #take(event) {
    if (event.type === "transcript.text.delta") this.deltas.push(event.delta);
    if (event.type === "transcript.peaks") this.peaks.add(event);
    if (event.type !== "transcript.progress") return;
    this.phase = event.state;
    this.queuePosition = event.queue_position ?? null;
    this.doneS = event.done_s ?? 0;
    this.totalS = event.total_s ?? this.totalS;
    // Loading the model is not transcribing: speed is counted from its end.
    if (event.state === "loading") this.transcribingAt = performance.now();
    if (event.state === "transcribing") this.transcribingAt ??= performance.now();
  }

  /** Give `error` as a `Problem`; a fault in this page itself goes to the console too. */
  async #explained(error) {
    if (!(error instanceof Problem)) {
      console.error(error);
      return new Problem("unexpected_answer");
    }
    // A file that changes during its upload looks like a lost connection; trying again would not help.
    const changed = error.kind === "network" && !(await canBeRead(this.file));
    return changed ? new Problem("unreadable_file") : error;
  }
}

/** Runs jobs one at a time: two uploads at once would only make the first words come later. */
export class Queue {
  jobs = [];
  #prepare;
  #onChange;

  /**
   * `prepare()` resolves to `{request, limits}` when a job begins, so that a key entered meanwhile
   * counts. `onChange(job, event)` is called after each change of a job.
   */
  constructor({ prepare, onChange }) {
    this.#prepare = prepare;
    this.#onChange = onChange;
  }

  get current() {
    return this.jobs.find((job) => job.isRunning) ?? null;
  }

  /** Whether something is under way or waits. */
  get isBusy() {
    return this.jobs.some((job) => !job.isOver);
  }

  /** Take files; give their jobs. */
  add(files) {
    const added = files.map((file) => new Job(file));
    this.jobs.push(...added);
    for (const job of added) this.#onChange(job);
    this.#advance();
    return added;
  }

  cancel(job) {
    job.cancel();
    this.#onChange(job);
  }

  retry(job) {
    job.phase = "waiting";
    this.#onChange(job);
    this.#advance();
  }

  remove(job) {
    job.cancel();
    this.jobs = this.jobs.filter((kept) => kept !== job);
    this.#onChange(job);
  }

  async #advance() {
    const next = this.jobs.find((job) => job.phase === "waiting");
    if (!next || this.current) return;
    const { request, limits } = this.#prepare();
    await next.run(request, limits, (event) => this.#onChange(next, event));
    this.#advance();
  }
}
