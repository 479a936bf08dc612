/** The queue of recordings, each with its progress and actions. */

import { byId, setText } from "./dom.js";
import { clock, fileSize, number, onLanguageChange, pageLanguage, percentage, text, timesRealTime } from "./i18n.js";

/** An upload without progress for so long may have lost its network. */
const STALLED_S = 15;
/** With fewer recordings, no summary is shown. */
const WORTH_OVERALL = 2;

export class QueueView {
  #items = new Map();
  #queue;
  #acts;
  #openId = null;
  /** Number and seconds of this batch's finished jobs, which are no longer listed. */
  #batch = { count: 0, doneS: 0, startedAt: null, ids: new Set() };

  /** `acts` are `{open(job), cancel(job), retry(job), remove(job), save(job), mend(problem)}`. */
  constructor(queue, acts) {
    this.#queue = queue;
    this.#acts = acts;
    byId("queue-cancel-all").addEventListener("click", () => {
      for (const job of [...this.#queue.jobs].reverse()) if (!job.isOver) acts.cancel(job);
    });
    byId("queue-clear").addEventListener("click", () => {
      for (const job of this.#queue.jobs) if (job.phase === "failed" || job.phase === "cancelled") acts.remove(job);
    });
    onLanguageChange(() => this.render(this.#openId));
  }

  /** Render the queue; `openId` is the open document's id. */
  render(openId = null) {
    this.#openId = openId;
    const jobs = this.#queue.jobs.filter((job) => job.phase !== "done" || job.isUnkept);
    const over = jobs.filter((job) => job.isOver);
    this.#forgetRemoved(jobs);
    for (const job of jobs) this.#itemOf(job).render(job.id === openId);
    byId("queue-section").hidden = jobs.length === 0;
    byId("queue-cancel-all").hidden = jobs.length - over.length < WORTH_OVERALL;
    byId("queue-clear").hidden = over.length < WORTH_OVERALL || over.some((job) => job.isUnkept);
    setText(byId("queue-heading"), text(jobs.length > over.length ? "queue.heading" : "queue.over"));
    this.#renderOverall();
  }

  #renderOverall() {
    const { jobs } = this.#queue;
    if (!this.#queue.isWorking) this.#batch = { ids: new Set(jobs.map(({ id }) => id)), startedAt: null };
    const batch = jobs.filter(({ id }) => !this.#batch.ids.has(id));
    byId("queue-overall").hidden = batch.length < WORTH_OVERALL;
    if (batch.length < WORTH_OVERALL) return;
    const over = batch.filter((job) => job.isOver);
    const totals = batch.map((job) => job.transcript?.durationS ?? job.totalS ?? 0);
    const doneS = batch.reduce((sum, job, index) => sum + (job.isOver ? totals[index] : Math.min(job.doneS, totals[index])), 0);
    const totalS = totals.reduce((sum, seconds) => sum + seconds, 0);
    if (doneS > 0) this.#batch.startedAt ??= performance.now();
    const share = totalS > 0 ? doneS / totalS : over.length / batch.length;
    const words = [text("queue.overall", { done: number(over.length), count: number(batch.length) })];
    const leftS = remainingS(share, this.#batch.startedAt);
    if (leftS !== null) words.push(text("queue.remaining", { time: clock(leftS) }));
    setText(byId("queue-overall-text"), words.join(" · "));
    byId("queue-overall-bar").value = Math.min(1, share);
  }

  #itemOf(job) {
    if (!this.#items.has(job)) {
      const item = new QueueItem(job, this.#acts);
      this.#items.set(job, item);
      byId("queue").append(item.root);
    }
    return this.#items.get(job);
  }

  #forgetRemoved(jobs) {
    for (const [job, item] of this.#items) {
      if (jobs.includes(job)) continue;
      item.root.remove();
      this.#items.delete(job);
    }
  }
}

/** Return how long the rest will take at the pace so far, or `null` while that is a guess. */
function remainingS(share, startedAt) {
  if (startedAt === null || share < 0.02 || share >= 1) return null;
  return (((performance.now() - startedAt) / 1000) * (1 - share)) / share;
}

class QueueItem {
  root;
  #job;
  #parts = {};

  constructor(job, acts) {
    this.#job = job;
    this.root = byId("queue-item").content.firstElementChild.cloneNode(true);
    for (const part of this.root.querySelectorAll("[data-part]")) this.#parts[part.dataset.part] = part;
    const { bar, open, stop, retry, save, mend } = this.#parts;
    open.id = `job-${job.id}`;
    setText(open, job.name);
    bar.setAttribute("aria-labelledby", open.id);
    open.addEventListener("click", () => acts.open(job));
    retry.addEventListener("click", () => acts.retry(job));
    save.addEventListener("click", () => acts.save(job));
    mend.addEventListener("click", () => acts.mend(job.problem ?? job.hindrance));
    stop.addEventListener("click", () => (job.isOver ? acts.remove(job) : acts.cancel(job)));
  }

  render(isOpen) {
    const job = this.#job;
    const { state, detail, bar, open, stop, retry, save, mend } = this.#parts;
    const problem = job.problem ?? job.hindrance;
    this.root.dataset.phase = job.phase;
    this.root.classList.toggle("open", isOpen);
    // Without words there is nothing to open.
    open.disabled = !job.hasWords && !job.isRunning && !job.transcript;
    open.toggleAttribute("aria-current", isOpen);
    setText(state, stateOf(job));
    setText(detail, detailOf(job));
    renderBar(bar, job);
    retry.hidden = !(job.canBeSent && (job.phase === "cancelled" || job.problem?.canBeRetried));
    save.hidden = !(job.isRecorded && job.isOver && job.file);
    mend.hidden = !(problem?.isAboutKey || problem?.isAboutLanguage);
    this.#label(retry, "queue.retry");
    this.#label(save, "player.save");
    this.#label(mend, problem?.isAboutLanguage ? "queue.mend_language" : "queue.mend_key");
    this.#label(stop, job.isOver ? "queue.remove" : "queue.cancel");
    this.#renderProblem(problem);
  }

  /** For screen readers, the names of these buttons include the recording. */
  #label(button, key) {
    setText(button, text(key));
    button.setAttribute("aria-label", text("queue.of", { action: text(key), name: this.#job.name }));
  }

  #renderProblem(problem) {
    const { trouble, advice, server, wait } = this.#parts;
    trouble.hidden = problem === null;
    if (!problem) return;
    const values = { name: this.#job.name, ...problem.values };
    const isPassing = this.#job.problem === null;
    setText(advice, isPassing ? text("state.again") : text(`error.${problem.kind}.advice`, values));
    const message = problem.messageFor(pageLanguage());
    server.hidden = !message;
    setText(server, message ? text("error.server_says", { message }) : "");
    wait.hidden = problem.retryAt === null;
    setText(wait, waitOf(problem));
  }
}

/** Return the one line that says how far a job is; the tab's title shows it too. */
export function stateOf(job) {
  const problem = job.problem ?? job.hindrance;
  if (problem) return text(`error.${problem.kind}.title`, { name: job.name, ...problem.values });
  if (job.phase === "done") return text("state.unkept");
  if (job.phase === "uploading" && job.url) return text("state.fetching");
  if (job.phase === "uploading") return text("state.uploading", { percent: percentage(job.sent) });
  if (job.phase === "queued" && job.queuePosition !== null) {
    return text("state.queued_at", { place: number(job.queuePosition) });
  }
  if (job.phase === "transcribing") {
    return job.totalS ? text("state.transcribing", { percent: percentage(shareDone(job)) }) : text("state.transcribing_on");
  }
  return text(`state.${job.phase}`);
}

function detailOf(job) {
  const size = job.url ? "" : fileSize(job.size);
  if (job.phase === "uploading" && !job.url) {
    const stalled = (performance.now() - job.sentAt) / 1000 > STALLED_S;
    return stalled ? text("detail.stalled") : text("detail.uploading", { sent: fileSize(job.sent * job.size), total: size });
  }
  if (job.phase === "transcribing" && job.doneS > 0) {
    const speed = timesRealTime(job.doneS, job.transcribingS);
    const left = job.totalS ? remainingS(shareDone(job), job.transcribingAt) : null;
    const values = { elapsed: clock(job.elapsedS), done: clock(job.doneS), total: clock(job.totalS ?? 0), speed, left: clock(left ?? 0) };
    if (left !== null) return text("detail.transcribing_left", values);
    return text(job.totalS ? "detail.transcribing" : "detail.transcribing_on", values);
  }
  if (job.isRunning) return text("detail.elapsed", { elapsed: clock(job.elapsedS) });
  return size;
}

function renderBar(bar, job) {
  bar.hidden = !job.isRunning;
  const share = { uploading: job.url ? undefined : job.sent, transcribing: job.totalS ? shareDone(job) : undefined }[job.phase];
  // Without a value, the progress bar is indeterminate.
  if (share === undefined) bar.removeAttribute("value");
  else bar.value = share;
}

/** Limit progress to 100 %, as declared durations may be too short. */
function shareDone({ doneS, totalS }) {
  return Math.min(1, doneS / totalS);
}

/** Count down to the retry. The button stays enabled for an earlier one. */
function waitOf({ retryAt }) {
  if (retryAt === null) return "";
  const seconds = Math.ceil((retryAt - performance.now()) / 1000);
  return seconds > 0 ? text("error.wait", { seconds: number(seconds) }) : text("error.wait_over");
}
