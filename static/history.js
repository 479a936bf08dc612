/** What this browser keeps, in IndexedDB and nowhere else: transcripts, their edits, sound, and work under way. */

const DATABASE = "parakeet";
/** What a list shows, apart from what is large: listing must not load hours of words. */
const ENTRIES = "entries";
const CONTENTS = "contents";
const EDITS = "edits";
const SOUNDS = "sounds";
const WORK = "work";
const ALL = [ENTRIES, CONTENTS, EDITS, SOUNDS, WORK];
/** A recording is kept only where this many times its size is free: the system needs room as well. */
const ROOM = 3;
/** Edits also stand in localStorage until the database has them: a page that is closed finishes no transaction. */
const JOURNAL = "parakeet.edit.";

/**
 * Keeps an entry `{id, name, savedAt, durationS}` and its contents `{answer, peaks}`, as they came
 * from the server; edits apart, as the events that `Transcript` makes. `work` is what a recording
 * under way needs to go on after a reload.
 *
 * Every method rejects where the browser refuses to store, as some private modes do, or is full.
 */
export class History {
  #database = null;
  #channel = typeof BroadcastChannel === "undefined" ? null : new BroadcastChannel("parakeet");

  /** Call `onEdit(id, event)` for edits and `onList()` for other changes that another tab has made. */
  listen({ onEdit, onList }) {
    this.#channel?.addEventListener("message", ({ data }) => (data.event ? onEdit(data.id, data.event) : onList()));
  }

  /** List the entries, newest first. */
  async list() {
    const entries = await this.#run("readonly", [ENTRIES], (entries) => entries.getAll());
    return entries.sort((left, right) => right.savedAt - left.savedAt);
  }

  /** Give the contents of an entry, with its `edits`. */
  async contentsOf(id) {
    const contents = await this.#run("readonly", [CONTENTS], (contents) => contents.get(id));
    return contents && { ...contents, edits: await this.editsOf(id) };
  }

  async editsOf(id) {
    await this.#replayJournal();
    return this.#run("readonly", [EDITS], (edits) => edits.getAll(IDBKeyRange.bound([id], [id, []])));
  }

  soundOf(id) {
    return this.#run("readonly", [SOUNDS], (sounds) => sounds.get(id));
  }

  /** Keep a transcript, in the place of what has its id; it is no work under way any more. */
  async put(entry, contents) {
    await this.#run("readwrite", [ENTRIES, CONTENTS, WORK], (inEntries, inContents, inWork) => {
      inContents.put(contents, entry.id);
      inWork.delete(entry.id);
      return inEntries.put(entry);
    });
    this.#tellList();
  }

  /** Keep an edit. What it asks of the browser is asked before this returns. */
  putEdit(id, event) {
    const name = `${JOURNAL}${id} ${event.key}`;
    try {
      localStorage.setItem(name, JSON.stringify(event));
    } catch {
      // Full or forbidden: the database alone has it then.
    }
    this.#channel?.postMessage({ id, event });
    return this.#run("readwrite", [EDITS], (edits) => edits.put(event, [id, event.key])).then(() => localStorage.removeItem(name));
  }

  /** Keep a recording if there is room; tell whether there was. */
  async putSound(id, file) {
    const { quota = 0, usage = 0 } = (await navigator.storage?.estimate?.()) ?? {};
    if (quota - usage < ROOM * file.size) return false;
    await this.#run("readwrite", [SOUNDS], (sounds) => sounds.put(file, id));
    return true;
  }

  work() {
    return this.#run("readonly", [WORK], (work) => work.getAll());
  }

  putWork(record) {
    return this.#run("readwrite", [WORK], (work) => work.put(record));
  }

  /** Forget work under way, and its recording unless there is a transcript of it. */
  async removeWork(id) {
    const entry = await this.#run("readonly", [ENTRIES], (entries) => entries.get(id));
    await this.#run("readwrite", [WORK, SOUNDS], (work, sounds) => {
      if (!entry) sounds.delete(id);
      return work.delete(id);
    });
  }

  async rename(id, name) {
    const entry = await this.#run("readonly", [ENTRIES], (entries) => entries.get(id));
    if (!entry) return;
    await this.#run("readwrite", [ENTRIES], (entries) => entries.put({ ...entry, name }));
    this.#tellList();
  }

  /** Take an entry away; give what `restore` brings back. */
  async remove(id) {
    const [entry, contents, sound] = await Promise.all([
      this.#run("readonly", [ENTRIES], (entries) => entries.get(id)),
      this.contentsOf(id),
      this.soundOf(id),
    ]);
    await this.#run("readwrite", [ENTRIES, CONTENTS, EDITS, SOUNDS], (entries, inContents, edits, sounds) => {
      inContents.delete(id);
      edits.delete(IDBKeyRange.bound([id], [id, []]));
      sounds.delete(id);
      return entries.delete(id);
    });
    this.#tellList();
    return { entry, contents, sound };
  }

  async restore({ entry, contents, sound }) {
    const { edits, ...rest } = contents;
    await this.#run("readwrite", [ENTRIES, CONTENTS, EDITS, SOUNDS], (entries, inContents, inEdits, sounds) => {
      inContents.put(rest, entry.id);
      for (const event of edits) inEdits.put(event, [entry.id, event.key]);
      if (sound) sounds.put(sound, entry.id);
      return entries.put(entry);
    });
    this.#tellList();
  }

  async clear() {
    await this.#run("readwrite", [ENTRIES, CONTENTS, EDITS, SOUNDS], (...stores) => stores.map((store) => store.clear())[0]);
    this.#tellList();
  }

  #tellList() {
    this.#channel?.postMessage({});
  }

  /** Put the edits into the database that a closed page has left. */
  async #replayJournal() {
    for (const name of Object.keys(localStorage).filter((key) => key.startsWith(JOURNAL))) {
      const id = name.slice(JOURNAL.length, name.lastIndexOf(" "));
      const event = JSON.parse(localStorage.getItem(name));
      // A page in another tab may just have put it.
      if (!event) continue;
      await this.#run("readwrite", [EDITS], (edits) => edits.put(event, [id, event.key]));
      localStorage.removeItem(name);
    }
  }

  async #run(mode, names, ask) {
    this.#database ??= open();
    const database = await this.#database;
    const transaction = database.transaction(names, mode);
    const request = ask(...names.map((name) => transaction.objectStore(name)));
    const done = mode === "readonly" ? outcome(request) : settled(transaction, request);
    // Nothing more is asked: a page that is left meanwhile still has it written.
    if (mode === "readwrite") transaction.commit?.();
    return done;
  }
}

function open() {
  const request = indexedDB.open(DATABASE, 2);
  request.addEventListener("upgradeneeded", () => {
    const database = request.result;
    const kept = [...database.objectStoreNames];
    for (const name of ALL.filter((name) => !kept.includes(name))) {
      database.createObjectStore(name, name === ENTRIES || name === WORK ? { keyPath: "id" } : undefined);
    }
  });
  return outcome(request).then((database) => {
    // A newer page in another tab must not wait for this one.
    database.addEventListener("versionchange", () => database.close());
    return database;
  });
}

function outcome(request) {
  return new Promise((resolve, reject) => {
    request.addEventListener("success", () => resolve(request.result));
    request.addEventListener("error", () => reject(request.error));
  });
}

/** Wait until a transaction is on the disk: a full one fails at its end alone. */
function settled(transaction, request) {
  return new Promise((resolve, reject) => {
    transaction.addEventListener("complete", () => resolve(request.result));
    for (const name of ["abort", "error"]) transaction.addEventListener(name, () => reject(transaction.error));
  });
}
