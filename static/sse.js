/** Parser of server-sent events that arrive in pieces. */

export class EventReader {
  #rest = "";

  /** Take the next piece of the stream; return the events that are complete by now, parsed. */
  read(piece) {
    // A long event arrives in many pieces: do not search the same text for its end again.
    let searched = Math.max(0, this.#rest.length - 1);
    this.#rest += piece;
    const events = [];
    let start = 0;
    for (let end; (end = this.#rest.indexOf("\n\n", searched)) !== -1; searched = start) {
      events.push(...eventsOf(this.#rest.slice(start, end)));
      start = end + 2;
    }
    this.#rest = this.#rest.slice(start);
    return events;
  }
}

/** Parse one block; a block of comments, which only keeps the connection alive, gives none. */
function eventsOf(block) {
  const data = block
    .split("\n")
    .filter((line) => line.startsWith("data:"))
    .map((line) => line.slice("data:".length).trimStart());
  return data.length > 0 && data[0] !== "[DONE]" ? [JSON.parse(data.join("\n"))] : [];
}
