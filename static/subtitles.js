/**
 * Sentences -> cues; SRT and WebVTT text.
 *
 * The same algorithm as the server's `subtitles.py`, function by function, so that an edited transcript
 * breaks where the server would break it; a test compares the two. Times are whole milliseconds.
 *
 * `options`: `{lineLength, lines, longestS, shortestS, mergeGapS, gapS, fewCharacters}`.
 */

/** Options that the page does not offer; the server's defaults. */
export const FIXED_OPTIONS = { shortestS: 1.5, mergeGapS: 0.3, gapS: 0.06, fewCharacters: 6 };

/** Cost of splitting after a comma, relative to splitting inside a phrase. */
const PUNCTUATION_COST = 0.2;
/** A pause this long inside a sentence is as good a place to split as a comma. */
const TELLING_PAUSE_MS = 500;
/** A part with less than this share of a cue's limits is an orphan: too brief to read. */
const SPARSE_FILL = 0.2;

const CLAUSE_END = /[,;:!?–—…、。！，：；？]["'’”»)\]]*$/;
/** Texts that an SRT parser may take for the arrow of a timing line. */
const SRT_ARROW = /-[- ]*>/g;

/** Convert a transcript to cues: `{start, end, lines}` each, milliseconds. Every word once, in order. */
export function makeCues(transcript, options) {
  const limits = limitsOf(options);
  const pieces = transcript.sentences
    .map((sentence) => readableWords(transcript.wordsOf(sentence), sentence.speaker))
    .filter((piece) => piece.length > 0)
    .flatMap((piece) => split(piece, limits));
  // Pieces of two speakers who talk at once overlap.
  const merged = mergeShort(pieces, limits).sort((left, right) => left[0].start - right[0].start);
  const times = timesOf(merged, limits);
  return merged.map((piece, index) => ({ ...times[index], speaker: piece[0].speaker, lines: breakLines(piece, limits) }));
}

export function toSrt(cues) {
  return cues
    .map(({ start, end, speaker, lines }, index) => {
      const isNew = speaker && speaker !== cues[index - 1]?.speaker;
      const text = `${isNew ? `${speaker}: ` : ""}${lines.join("\n")}`.replace(SRT_ARROW, "→");
      return `${index + 1}\n${timestamp(start, ",")} --> ${timestamp(end, ",")}\n${text}\n\n`;
    })
    .join("");
}

export function toVtt(cues) {
  const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const blocks = cues.map(({ start, end, speaker, lines }) => {
    const voice = speaker ? `<v ${escaped(speaker)}>` : "";
    return `${timestamp(start, ".")} --> ${timestamp(end, ".")}\n${voice}${escaped(lines.join("\n"))}\n\n`;
  });
  return `WEBVTT\n\n${blocks.join("")}`;
}

function limitsOf({ lineLength, lines, longestS, shortestS, mergeGapS, gapS, fewCharacters }) {
  return {
    lineLength,
    lines,
    characters: lineLength * lines,
    longest: ms(longestS),
    shortest: ms(shortestS),
    mergeGap: ms(mergeGapS),
    gap: ms(gapS),
    fewCharacters,
  };
}

/** An edit may have replaced a word by several or none: those share its time. */
function readableWords(words, speaker) {
  return words.flatMap(({ text, start, end }) =>
    text.split(/\s+/).filter(Boolean).map((part) => ({
      text: part,
      length: [...part].length,
      start: ms(start),
      end: ms(end),
      speaker,
    })),
  );
}

/** Split at word times into parts that fit, with the lowest total cost. */
function split(piece, limits) {
  if (fits(piece, limits)) return [piece];
  const firsts = cheapestFirsts(piece, limits);
  const parts = [];
  for (let end = piece.length; end > 0; end = firsts[end]) parts.unshift(piece.slice(firsts[end], end));
  return parts;
}

/** Find, for each n, where the last part of the cheapest split of the first n words begins. */
function cheapestFirsts(piece, limits) {
  const splitCosts = piece.map((word, index) => (index === 0 ? 0 : splitCost(piece[index - 1], word)));
  const costs = [0];
  const firsts = [0];
  for (let end = 1; end <= piece.length; end += 1) {
    costs[end] = Infinity;
    for (const { first, cost } of lastParts(piece, end, limits)) {
      const total = costs[first] + splitCosts[first] + cost;
      // On equal cost the earlier start: `lastParts` goes backwards.
      if (total <= costs[end]) [costs[end], firsts[end]] = [total, first];
    }
  }
  return firsts;
}

function splitCost(before, after) {
  if (CLAUSE_END.test(before.text)) return PUNCTUATION_COST;
  const pause = Math.min(Math.max(after.start - before.end, 0), TELLING_PAUSE_MS);
  return 1 - ((1 - PUNCTUATION_COST) * pause) / TELLING_PAUSE_MS;
}

/** Yield the possible starts of a part that ends before word `end`, each with its cost. */
function* lastParts(piece, end, limits) {
  let characters = -1;
  for (let first = end - 1; first >= 0; first -= 1) {
    characters += 1 + piece[first].length;
    const share = fill(characters, piece[end - 1].end - piece[first].start, limits);
    if (share > 1 && first < end - 1) return;
    yield { first, cost: 1 + share ** 2 + (share < SPARSE_FILL ? 1 : 0) };
  }
}

/** Append pieces to the previous one if either is short and both fit into one cue. */
function mergeShort(pieces, limits) {
  const merged = [];
  for (const piece of pieces) {
    const last = merged.at(-1);
    if (last && belongTogether(last, piece, limits)) merged[merged.length - 1] = [...last, ...piece];
    else merged.push(piece);
  }
  return merged;
}

function belongTogether(left, right, limits) {
  return (
    left[0].speaker === right[0].speaker &&
    right[0].start - left.at(-1).end <= limits.mergeGap &&
    (isShort(left, limits) || isShort(right, limits)) &&
    fits([...left, ...right], limits)
  );
}

function isShort(piece, limits) {
  return duration(piece) < limits.shortest || characterCount(piece) < limits.fewCharacters;
}

function fits(piece, limits) {
  return fill(characterCount(piece), duration(piece), limits) <= 1;
}

/** Return the share of what a cue may hold, in characters or in time, whichever is more. */
function fill(characters, length, limits) {
  return Math.max(characters / limits.characters, length / limits.longest);
}

function characterCount(piece) {
  return piece.reduce((sum, word) => sum + 1 + word.length, -1);
}

function duration(piece) {
  return piece.at(-1).end - piece[0].start;
}

/** Return each cue's start and end, with a gap between: only cues of two speakers overlap. */
function timesOf(pieces, limits) {
  const starts = [];
  for (const piece of pieces) starts.push(Math.max(piece[0].start, (starts.at(-1) ?? -1) + 1));
  const ownFollowing = ownFollowingStarts(pieces, starts);
  return pieces.map((piece, index) => {
    const [start, last] = [starts[index], piece.at(-1).end];
    const before = (following) => following - Math.min(limits.gap, Math.floor((following - start) / 2));
    let end = Math.max(last, start + limits.shortest);
    if (index + 1 < pieces.length) {
      const following = starts[index + 1];
      const isInterrupted = ownFollowing[index] !== following && last > following;
      end = isInterrupted ? last : Math.min(end, before(following));
    }
    return { start, end: ownFollowing[index] === null ? end : Math.min(end, before(ownFollowing[index])) };
  });
}

/** Return the start of the same speaker's next cue, for each cue; `null` for the last. */
function ownFollowingStarts(pieces, starts) {
  const upcoming = new Map();
  const found = [];
  for (let index = pieces.length - 1; index >= 0; index -= 1) {
    const { speaker } = pieces[index][0];
    found[index] = upcoming.get(speaker) ?? null;
    upcoming.set(speaker, starts[index]);
  }
  return found;
}

/** Break text into as few lines as the length allows, as even as possible. */
function breakLines(piece, limits) {
  const count = Math.min(fillLines(piece, limits.lineLength).length, limits.lines);
  let [low, high] = [0, characterCount(piece)];
  while (low < high) {
    const width = (low + high) >> 1;
    if (fillLines(piece, width).length <= count) high = width;
    else low = width + 1;
  }
  return fillLines(piece, low).map((words) => words.map((word) => word.text).join(" "));
}

/** Fill lines of `width` characters; a longer word gets its own line. */
function fillLines(piece, width) {
  const lines = [];
  let room = 0;
  for (const word of piece) {
    if (lines.length > 0 && word.length < room) {
      lines.at(-1).push(word);
      room -= 1 + word.length;
    } else {
      lines.push([word]);
      room = width - word.length;
    }
  }
  return lines;
}

function timestamp(milliseconds, mark) {
  const pad = (value, length = 2) => String(value).padStart(length, "0");
  const seconds = Math.floor(milliseconds / 1000);
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  return `${pad(h)}:${pad(m)}:${pad(s)}${mark}${pad(milliseconds % 1000, 3)}`;
}

function ms(seconds) {
  return Math.round(seconds * 1000);
}
