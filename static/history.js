/** What this browser keeps, in IndexedDB and nowhere else: transcripts, their edits, sound, and work under way. */

const DATABASE = "parakeet";
/** Entries are stored apart from their contents, so that listing does not load hours of words. */
const ENTRIES = "entries";
const CONTENTS = "contents";
const EDITS = "edits";
const SOUNDS = "sounds";
const WORK = "work";
const ALL = [ENTRIES, CONTENTS, EDITS, SOUNDS, WORK];
/** A recording is stored only if this many times its size is free, as the system needs space too. */
const ROOM = 3;
/** Edits are also in localStorage until the database has them: closing a page aborts transactions. */
const JOURNAL = "parakeet.edit.";

/**
 * Keeps an entry `{id, name, savedAt, durationS}` and its contents `{answer, peaks}`, as they came
 * from the server; edits are stored separately, as events of `Transcript`. `work` is what a recording
 * in progress needs to continue after a reload.
 *
 * Every method rejects if the browser refuses storage, as some private modes do, or is full.
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

  /** Return the contents of an entry, with its `edits`. */
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

  /** Store a transcript under its id, replacing the recording in progress. */
  async put(entry, contents) {
    await this.#run("readwrite", [ENTRIES, CONTENTS, WORK], (inEntries, inContents, inWork) => {
      inContents.put(contents, entry.id);
      inWork.delete(entry.id);
      return inEntries.put(entry);
    });
    this.#tellList();
  }

  /** Store an edit; the transaction is started before this returns. */
  putEdit(id, event) {
    const name = `${JOURNAL}${id} ${event.key}`;
    try {
      localStorage.setItem(name, JSON.stringify(event));
    } catch {
      // localStorage is full or forbidden: only the database has it.
    }
    this.#channel?.postMessage({ id, event });
    return this.#run("readwrite", [EDITS], (edits) => edits.put(event, [id, event.key])).then(() => localStorage.removeItem(name));
  }

  /** Store a recording if there is space; return whether there was. */
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

  /** Delete a recording in progress, and its audio unless it has a transcript. */
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

  /** Delete an entry; return the argument for `restore`. */
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

  /** Move edits that a closed page left in localStorage into the database. */
  async #replayJournal() {
    for (const name of Object.keys(localStorage).filter((key) => key.startsWith(JOURNAL))) {
      const id = name.slice(JOURNAL.length, name.lastIndexOf(" "));
      const event = JSON.parse(localStorage.getItem(name));
      // Another tab may just have stored it.
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
    // Commit at once, so that it is written even if the page is closed.
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
    // Do not block a newer version of the page in another tab.
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

/** Wait until a transaction is committed: a full disk is reported only then. */
function settled(transaction, request) {
  return new Promise((resolve, reject) => {
    transaction.addEventListener("complete", () => resolve(request.result));
    for (const name of ["abort", "error"]) transaction.addEventListener(name, () => reject(transaction.error));
  });
}
