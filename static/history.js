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
/** Edits and names are also in localStorage until the database has them: closing a page aborts transactions. */
const JOURNAL = "parakeet.edit.";
const NAMES = "parakeet.name.";
const PARTS_PER_RECORD = 10;
/** How long other tabs may take to tell what they work on. */
const ANSWER_MS = 500;

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

  /**
   * Call `onEdit(id, event)` for edits and `onList()` for other changes that another tab has made, and
   * `onLeave()` when one is closed. `owned()` gives the ids of this tab's recordings in progress.
   */
  listen({ onEdit, onList, onLeave, owned }) {
    this.#channel?.addEventListener("message", ({ data }) => {
      if (data.event) onEdit(data.id, data.event);
      else if (data.asks) this.#channel.postMessage({ owned: owned() });
      else if (data.leaves) onLeave();
      else if (!data.owned) onList();
    });
  }

  /** Tell other tabs that this one is being closed. */
  leave() {
    this.#channel?.postMessage({ leaves: true });
  }

  /** Return the ids of the recordings in progress that other tabs work on. */
  async ownedElsewhere() {
    const ids = new Set();
    if (!this.#channel) return ids;
    const collect = ({ data }) => data.owned?.forEach((id) => ids.add(id));
    this.#channel.addEventListener("message", collect);
    this.#channel.postMessage({ asks: true });
    await new Promise((resolve) => { setTimeout(resolve, ANSWER_MS); });
    this.#channel.removeEventListener("message", collect);
    return ids;
  }

  /** List the entries, newest first. */
  async list() {
    await this.#replayNames();
    const entries = await this.#run("readonly", [ENTRIES], (entries) => entries.getAll());
    return entries.sort((left, right) => right.savedAt - left.savedAt);
  }

  /** Return the contents of an entry, with its `edits`. */
  async contentsOf(id) {
    const contents = await this.#run("readonly", [CONTENTS], (contents) => contents.get(id));
    return contents && { ...contents, edits: await this.editsOf(id) };
  }

  async editsOf(id) {
    const left = await this.#replayJournal();
    const kept = await this.#run("readonly", [EDITS], (edits) => edits.getAll(all(id)));
    return [...kept, ...left.filter((edit) => edit.id === id).map(({ event }) => event)];
  }

  /** Return the recording named `name`, whole or from the parts of one that was being made. */
  async soundOf(id, name = "") {
    const whole = await this.#run("readonly", [SOUNDS], (sounds) => sounds.get(id));
    if (whole) return whole;
    const parts = await this.#run("readonly", [SOUNDS], (sounds) => sounds.getAll(all(id)));
    return parts.length > 0 ? new File(parts, name, { type: parts[0].type }) : undefined;
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
    setItem(name, JSON.stringify(event));
    this.#channel?.postMessage({ id, event });
    return this.#run("readwrite", [EDITS], (edits) => edits.put(event, [id, event.key])).then(() => localStorage.removeItem(name));
  }

  /** Store a recording if there is space; return whether there was. */
  async putSound(id, file) {
    // Over plain http, browsers do not tell how much is free: then the attempt tells.
    const { quota = Infinity, usage = 0 } = (await navigator.storage?.estimate?.()) ?? {};
    if (quota - usage < ROOM * file.size) return false;
    await this.#run("readwrite", [SOUNDS], (sounds) => sounds.put(file, id));
    return true;
  }

  /** Store a part of a recording that is being made, and now and then `record`, which has its words. */
  putPart(record, part, index) {
    return this.#run("readwrite", [SOUNDS, WORK], (sounds, work) => {
      if (index % PARTS_PER_RECORD === 0) work.put(record);
      return sounds.put(part, [record.id, index]);
    });
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
      if (!entry) for (const key of [id, all(id)]) sounds.delete(key);
      return work.delete(id);
    });
  }

  async rename(id, name) {
    setItem(NAMES + id, name);
    await this.#rename(id, name);
    this.#tellList();
  }

  async #rename(id, name) {
    const entry = await this.#run("readonly", [ENTRIES], (entries) => entries.get(id));
    if (entry && entry.name !== name) await this.#run("readwrite", [ENTRIES], (entries) => entries.put({ ...entry, name }));
    localStorage.removeItem(NAMES + id);
  }

  /** Delete an entry; return the argument for `restore`. */
  async remove(id) {
    const entry = await this.#run("readonly", [ENTRIES], (entries) => entries.get(id));
    const [contents, sound] = await Promise.all([this.contentsOf(id), this.soundOf(id, entry?.name)]);
    await this.#run("readwrite", [ENTRIES, CONTENTS, EDITS, SOUNDS], (entries, inContents, edits, sounds) => {
      inContents.delete(id);
      edits.delete(all(id));
      for (const key of [id, all(id)]) sounds.delete(key);
      return entries.delete(id);
    });
    for (const { key } of journal().filter((edit) => edit.id === id)) localStorage.removeItem(key);
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

  /** Move edits that a closed page left in localStorage into the database; return those for which it has no room. */
  async #replayJournal() {
    const left = [];
    for (const { key, id, event } of journal()) {
      try {
        await this.#run("readwrite", [EDITS], (edits) => edits.put(event, [id, event.key]));
        localStorage.removeItem(key);
      } catch {
        left.push({ id, event });
      }
    }
    return left;
  }

  async #replayNames() {
    for (const key of keysOf(NAMES)) {
      const name = localStorage.getItem(key);
      // Another tab may just have stored it.
      if (name !== null) await this.#rename(key.slice(NAMES.length), name);
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

/** The keys of an entry's edits, or of the parts of its recording. */
function all(id) {
  return IDBKeyRange.bound([id], [id, []]);
}

function keysOf(prefix) {
  return Object.keys(localStorage).filter((key) => key.startsWith(prefix));
}

/** Return the edits in localStorage, `{key, id, event}` each. */
function journal() {
  return keysOf(JOURNAL).flatMap((key) => {
    const id = key.slice(JOURNAL.length, key.lastIndexOf(" "));
    const event = JSON.parse(localStorage.getItem(key));
    // Another tab may just have stored it.
    return event ? [{ key, id, event }] : [];
  });
}

/** Put `value` into localStorage unless it is full or forbidden: then only the database has it. */
function setItem(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // As above.
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
