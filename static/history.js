/** The last transcripts, in this browser's IndexedDB and nowhere else. */

const DATABASE = "parakeet";
/** What a list shows, apart from what is large: listing must not load hours of words. */
const ENTRIES = "entries";
const CONTENTS = "contents";
/** A long recording takes some megabytes; browsers allow far more than thirty of those. */
const MOST_KEPT = 30;

/**
 * Keeps an entry `{id, name, savedAt, durationS}` and its contents `{answer, peaks}`.
 *
 * Every method rejects where the browser refuses to store, as some private modes do.
 */
export class History {
  #database = null;

  /** List the entries, newest first. */
  async list() {
    const entries = await this.#run("readonly", [ENTRIES], (entries) => entries.getAll());
    return entries.sort((left, right) => right.savedAt - left.savedAt);
  }

  /** Give the contents of an entry. */
  contentsOf(id) {
    return this.#run("readonly", [CONTENTS], (contents) => contents.get(id));
  }

  /** Keep a transcript, in the place of what has its id, and let the oldest beyond the limit go. */
  async put(entry, contents) {
    await this.#run("readwrite", [ENTRIES, CONTENTS], (inEntries, inContents) => {
      inContents.put(contents, entry.id);
      return inEntries.put(entry);
    });
    for (const { id } of (await this.list()).slice(MOST_KEPT)) await this.remove(id);
  }

  remove(id) {
    return this.#onBoth((store) => store.delete(id));
  }

  clear() {
    return this.#onBoth((store) => store.clear());
  }

  #onBoth(ask) {
    return this.#run("readwrite", [ENTRIES, CONTENTS], (entries, contents) => {
      ask(contents);
      return ask(entries);
    });
  }

  async #run(mode, names, ask) {
    this.#database ??= open();
    const database = await this.#database;
    const transaction = database.transaction(names, mode);
    return outcome(ask(...names.map((name) => transaction.objectStore(name))));
  }
}

function open() {
  const request = indexedDB.open(DATABASE, 1);
  request.addEventListener("upgradeneeded", () => {
    request.result.createObjectStore(ENTRIES, { keyPath: "id" });
    request.result.createObjectStore(CONTENTS);
  });
  return outcome(request);
}

function outcome(request) {
  return new Promise((resolve, reject) => {
    request.addEventListener("success", () => resolve(request.result));
    request.addEventListener("error", () => reject(request.error));
  });
}
