/** The recordings on their way, each with how far it is and what can be done about it. */

import { byId, setText } from "./dom.js";
import { clock, fileSize, number, onLanguageChange, percentage, text, timesRealTime } from "./i18n.js";

/** An upload of which nothing leaves for so long has perhaps lost its network. */
const STALLED_S = 15;

export class QueueView {
  #items = new Map();
  #queue;
  #acts;

  /** `acts` are `{open(job), cancel(job), retry(job), remove(job), mend(problem)}`. */
  constructor(queue, acts) {
    this.#queue = queue;
    this.#acts = acts;
    onLanguageChange(() => this.render());
  }

  /** Make the page say what the queue is; `openId` is the open document's. */
  render(openId = null) {
    const { jobs } = this.#queue;
    this.#forgetRemoved(jobs);
    for (const job of jobs) this.#itemOf(job).render(job.id === openId);
    // The one finished recording is open below: a list of it would say the same again.
    byId("queue-section").hidden = jobs.length === 0 || (jobs.length === 1 && jobs[0].phase === "done" && jobs[0].id === openId);
    byId("queue-heading").hidden = jobs.length < 2;
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

class QueueItem {
  root;
  #job;
  #parts = {};

  constructor(job, acts) {
    this.#job = job;
    this.root = byId("queue-item").content.firstElementChild.cloneNode(true);
    for (const part of this.root.querySelectorAll("[data-part]")) this.#parts[part.dataset.part] = part;
    const { name, bar, open, stop, retry, mend } = this.#parts;
    name.id = `job-${job.id}`;
    setText(name, job.file.name);
    bar.setAttribute("aria-labelledby", name.id);
    open.addEventListener("click", () => acts.open(job));
    retry.addEventListener("click", () => acts.retry(job));
    mend.addEventListener("click", () => acts.mend(job.problem));
    stop.addEventListener("click", () => (job.isOver ? acts.remove(job) : acts.cancel(job)));
  }

  render(isOpen) {
    const job = this.#job;
    const { state, detail, bar, open, stop, retry, mend } = this.#parts;
    this.root.dataset.phase = job.phase;
    setText(state, stateOf(job));
    setText(detail, detailOf(job));
    renderBar(bar, job);
    open.hidden = job.phase !== "done" || isOpen;
    retry.hidden = !(job.phase === "cancelled" || job.problem?.canBeRetried);
    mend.hidden = !(job.problem?.isAboutKey || job.problem?.isAboutLanguage);
    this.#label(open, "queue.open");
    this.#label(retry, "queue.retry");
    this.#label(mend, job.problem?.isAboutLanguage ? "queue.mend_language" : "queue.mend_key");
    this.#label(stop, job.isOver ? "queue.remove" : "queue.cancel");
    this.#renderProblem(job.problem);
  }

  /** Several of these buttons are on the page: their names for screen readers say of what. */
  #label(button, key) {
    setText(button, text(key));
    button.setAttribute("aria-label", text("queue.of", { action: text(key), name: this.#job.file.name }));
  }

  #renderProblem(problem) {
    const { trouble, advice, server, wait } = this.#parts;
    trouble.hidden = problem === null;
    if (!problem) return;
    const values = { name: this.#job.file.name, ...problem.values };
    setText(advice, text(`error.${problem.kind}.advice`, values));
    server.hidden = !problem.serverMessage;
    setText(server, problem.serverMessage ? text("error.server_says", { message: problem.serverMessage }) : "");
    wait.hidden = problem.retryAt === null;
    setText(wait, waitOf(problem));
  }
}

/** Give the one line that says how far a job is; the tab's title shows it too. */
export function stateOf(job) {
  if (job.problem) return text(`error.${job.problem.kind}.title`, { name: job.file.name, ...job.problem.values });
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
  const size = fileSize(job.file.size);
  if (job.phase === "uploading") {
    const stalled = (performance.now() - job.sentAt) / 1000 > STALLED_S;
    return stalled ? text("detail.stalled") : text("detail.uploading", { sent: fileSize(job.sent * job.file.size), total: size });
  }
  if (job.phase === "transcribing" && job.doneS > 0) {
    const speed = timesRealTime(job.doneS, job.transcribingS);
    const values = { elapsed: clock(job.elapsedS), done: clock(job.doneS), total: clock(job.totalS ?? 0), speed };
    return text(job.totalS ? "detail.transcribing" : "detail.transcribing_on", values);
  }
  if (job.isRunning) return text("detail.elapsed", { elapsed: clock(job.elapsedS) });
  if (job.transcript) return text("detail.done", { elapsed: clock(job.elapsedS), size });
  return size;
}

function renderBar(bar, job) {
  bar.hidden = !job.isRunning;
  const share = { uploading: job.sent, transcribing: job.totalS ? shareDone(job) : undefined }[job.phase];
  // Without a value the bar says "working, no telling how long", which is the truth then.
  if (share === undefined) bar.removeAttribute("value");
  else bar.value = share;
}

/** Declared lengths are sometimes a little short: more than all of it is never done. */
function shareDone({ doneS, totalS }) {
  return Math.min(1, doneS / totalS);
}

/** Count down to what the server asked for. The button stays usable: the person may know better. */
function waitOf({ retryAt }) {
  if (retryAt === null) return "";
  const seconds = Math.ceil((retryAt - performance.now()) / 1000);
  return seconds > 0 ? text("error.wait", { seconds: number(seconds) }) : text("error.wait_over");
}
