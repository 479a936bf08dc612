/** Exports a transcript as a document: plain text, Markdown, CSV and DOCX. */

import { clock } from "./i18n.js";
import { zip } from "./zip.js";

const DOCX_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document";
/** XML namespaces; they are never fetched. */
const SCHEMAS = "http://schemas.openxmlformats.org";

/** Return the paragraphs, `{startS, speaker, text}`; `speaker` only where another one begins. */
function paragraphsOf(transcript, { speakers }) {
  let last = null;
  return transcript.paragraphs().map((group) => {
    const sentences = group.map((index) => transcript.sentences[index]);
    const speaker = speakers && sentences[0].speaker !== last ? sentences[0].speaker : null;
    last = sentences[0].speaker;
    return { startS: sentences[0].startS, speaker, text: sentences.map((sentence) => transcript.textOf(sentence)).join(" ") };
  });
}

export function toPlainText(transcript, options) {
  return paragraphsOf(transcript, options)
    .map(({ startS, speaker, text }) => `${options.times ? `[${clock(startS)}] ` : ""}${speaker ? `${speaker}: ` : ""}${text}\n`)
    .join("\n");
}

export function toMarkdown(transcript, options) {
  const body = paragraphsOf(transcript, options).map(({ startS, speaker, text }) => {
    const time = options.times ? `\`${clock(startS)}\` ` : "";
    const name = speaker ? `**${escapedMarkdown(speaker)}:** ` : "";
    return `${time}${name}${escapedMarkdown(text)}\n`;
  });
  return [`# ${escapedMarkdown(options.title)}\n`, ...body].join("\n");
}

function escapedMarkdown(text) {
  return text.replace(/[\\`*_[\]<>#|]/g, "\\$&").replace(/^(\s*)([-+]|\d+[.)])(?=\s)/, "$1\\$2");
}

/** Write a row for each sentence; spreadsheets read the mark in front as UTF-8. */
export function toCsv(transcript, options) {
  const names = ["start", "end", ...(options.speakers ? ["speaker"] : []), "text"];
  const rows = transcript.sentences.map((sentence) => [
    sentence.startS.toFixed(3),
    sentence.endS.toFixed(3),
    ...(options.speakers ? [sentence.speaker ?? ""] : []),
    transcript.textOf(sentence),
  ]);
  return `\ufeff${[names, ...rows].map((row) => `${row.map(cell).join(",")}\r\n`).join("")}`;
}

/** A cell that begins like a formula gets a quote in front, which spreadsheets do not show. */
function cell(value) {
  const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

export function toDocx(transcript, options) {
  const run = (text, style = "") => `<w:r>${style && `<w:rPr>${style}</w:rPr>`}<w:t xml:space="preserve">${escapedXml(text)}</w:t></w:r>`;
  const heading = `<w:p><w:pPr><w:spacing w:after="240"/></w:pPr>${run(options.title, '<w:b/><w:sz w:val="36"/>')}</w:p>`;
  const body = paragraphsOf(transcript, options).map(({ startS, speaker, text }) => {
    const time = options.times ? run(`${clock(startS)}  `, '<w:color w:val="707070"/><w:sz w:val="18"/>') : "";
    const name = speaker ? run(`${speaker}: `, "<w:b/>") : "";
    return `<w:p><w:pPr><w:spacing w:after="160" w:line="300" w:lineRule="auto"/></w:pPr>${time}${name}${run(text)}</w:p>`;
  });
  const xml = (body) => `<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n${body}`;
  const main = `${SCHEMAS}/wordprocessingml/2006/main`;
  const relations = `${SCHEMAS}/package/2006/relationships`;
  const types = `${SCHEMAS}/package/2006/content-types`;
  return zip(
    [
      {
        name: "[Content_Types].xml",
        body: xml(
          `<Types xmlns="${types}">` +
            '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>' +
            `<Override PartName="/word/document.xml" ContentType="${DOCX_TYPE}.main+xml"/></Types>`,
        ),
      },
      {
        name: "_rels/.rels",
        body: xml(
          `<Relationships xmlns="${relations}"><Relationship Id="r1" ` +
            `Type="${SCHEMAS}/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/></Relationships>`,
        ),
      },
      { name: "word/document.xml", body: xml(`<w:document xmlns:w="${main}"><w:body>${heading}${body.join("")}</w:body></w:document>`) },
    ],
    DOCX_TYPE,
  );
}

/** XML forbids most control characters altogether. */
function escapedXml(text) {
  return text
    .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "")
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;");
}
