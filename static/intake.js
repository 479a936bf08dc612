/** Input of files and folders, dropped, picked or pasted, and of URLs. */

import { byId } from "./dom.js";

/** Of a folder, only files with these types are used; a chosen file always is. */
const RECORDING_NAME = /\.(aac|ac3|aif[fc]?|amr|ape|avi|caf|flac|flv|m2ts|m4[abv]|mka|mkv|mov|mp[234]|mpe?g|mts|mxf|og[agv]|opus|spx|ts|wav|web[ma]|wm[av]|3g[p2])$/i;

/** Call `onFiles` with each list of input files. */
export function listenForFiles(onFiles) {
  listenForPicks(onFiles);
  listenForDrops(onFiles);
  listenForPastes(onFiles);
}

/** Call `onUrl` with the URL of a recording that was typed, or pasted outside a field. */
export function listenForUrls(onUrl) {
  const form = byId("url-form");
  const opener = byId("enter-url");
  opener.addEventListener("click", () => {
    form.hidden = !form.hidden;
    opener.setAttribute("aria-expanded", String(!form.hidden));
    if (!form.hidden) byId("url").focus();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    onUrl(byId("url").value.trim());
    form.reset();
  });
  window.addEventListener("paste", (event) => {
    const pasted = event.clipboardData?.getData("text").trim() ?? "";
    if (opener.hidden || event.target.closest?.("input, textarea, [contenteditable]")) return;
    if (/^https?:\/\/\S+$/i.test(pasted)) onUrl(pasted);
  });
}

function listenForPicks(onFiles) {
  byId("choose").addEventListener("click", () => byId("file").click());
  byId("choose-folder").addEventListener("click", () => byId("folder").click());
  for (const id of ["file", "folder"]) {
    byId(id).addEventListener("change", ({ target }) => {
      const files = [...target.files];
      onFiles(id === "folder" ? recordingsAmong(files) : files);
      target.value = ""; // Choosing the same file again is then a change too.
    });
  }
}

/** Accept dropped files; other drags keep their default behaviour. */
function listenForDrops(onFiles) {
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  const showOverlay = (shown) => { byId("drop-overlay").hidden = !shown; };
  window.addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault(); // Else the browser leaves the page to open the file.
    event.dataTransfer.dropEffect = "copy";
    showOverlay(true);
  });
  window.addEventListener("dragleave", (event) => {
    // `relatedTarget` is null only when the drag leaves the page.
    if (event.relatedTarget === null) showOverlay(false);
  });
  window.addEventListener("drop", async (event) => {
    showOverlay(false);
    if (!carriesFiles(event)) return;
    event.preventDefault();
    onFiles(await dropped(event.dataTransfer));
  });
}

function listenForPastes(onFiles) {
  window.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length === 0) return;
    event.preventDefault();
    onFiles(files);
  });
}

/** Return the files that were dropped, and the recordings in the folders among them. */
async function dropped(transfer) {
  // Read before the first await, as the browser clears it afterwards.
  const files = [...transfer.files];
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter((entry) => entry?.isDirectory);
  if (entries.length === 0) return files;
  const names = new Set(entries.map(({ name }) => name));
  const inside = (await Promise.all(entries.map(filesIn))).flat();
  return [...files.filter(({ name }) => !names.has(name)), ...recordingsAmong(inside)];
}

async function filesIn(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  // A reader returns a hundred entries at a time.
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) break;
    found.push(...some);
  }
  return (await Promise.all(found.map(filesIn))).flat();
}

function recordingsAmong(files) {
  return files
    .filter(({ name, type }) => /^(audio|video)\//.test(type) || RECORDING_NAME.test(name))
    .sort((left, right) => (left.webkitRelativePath || left.name).localeCompare(right.webkitRelativePath || right.name));
}
