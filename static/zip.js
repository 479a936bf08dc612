/** ZIP archives without compression, for DOCX files and for several transcripts. */

const TABLE = Uint32Array.from({ length: 256 }, (_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});
/** File names are UTF-8. */
const FLAGS = 0x0800;
const VERSION = 20;

/** Return the archive of `{name, body}` files, `body` a string or bytes, as a `Blob`. */
export function zip(files, type = "application/zip", moment = new Date()) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const { name, body } of files) {
    const bytes = typeof body === "string" ? new TextEncoder().encode(body) : body;
    const path = new TextEncoder().encode(name);
    const shared = [
      [2, VERSION], [2, FLAGS], [2, 0], [2, dosTime(moment)], [2, dosDate(moment)],
      [4, crc32(bytes)], [4, bytes.length], [4, bytes.length], [2, path.length], [2, 0],
    ];
    const head = fields([[4, 0x04034b50], ...shared]);
    parts.push(head, path, bytes);
    directory.push(fields([[4, 0x02014b50], [2, VERSION], ...shared, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]]), path);
    offset += head.length + path.length + bytes.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = [[4, 0x06054b50], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, size], [4, offset], [2, 0]];
  return new Blob([...parts, ...directory, fields(end)], { type });
}

/** Write numbers, `[bytes, value]` each, low byte first. */
function fields(values) {
  const bytes = new Uint8Array(values.reduce((sum, [length]) => sum + length, 0));
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const [length, value] of values) {
    if (length === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += length;
  }
  return bytes;
}

function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = TABLE[(value ^ byte) & 0xff] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

function dosTime(moment) {
  return (moment.getHours() << 11) | (moment.getMinutes() << 5) | (moment.getSeconds() >> 1);
}

function dosDate(moment) {
  return ((moment.getFullYear() - 1980) << 9) | ((moment.getMonth() + 1) << 5) | moment.getDate();
}
