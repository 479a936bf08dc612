// Asks a server through OpenAI's own package: node client.mjs CASE BASE_URL FILE
// Prints what came back as one JSON object; an error of the package's as {"error": {...}}.

import { createReadStream, readFileSync } from "node:fs";
import { connect } from "node:net";
import OpenAI, { APIError } from "openai";
import { OpenAIRealtimeWS } from "openai/realtime/ws";

const [name, baseURL, path] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "the-key" });

const ask = (options = {}, patience = {}) =>
  client.audio.transcriptions.create(
    { model: "whisper-1", file: createReadStream(path), ...options },
    patience,
  );

const readToEnd = async (stream) => {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
};

// The package speaks TLS alone, to a proxy; here is none.
const openLive = (asked) =>
  OpenAIRealtimeWS.create(asked, {
    model: "whisper-1",
    options: { createConnection: ({ host, port }) => connect(port, host) },
  });

const cases = {
  json: () => ask({ include: ["logprobs"], chunking_strategy: "auto" }),
  verbose_json: () =>
    ask({ response_format: "verbose_json", timestamp_granularities: ["word", "segment"] }),
  diarized_json: () =>
    ask({ model: "gpt-4o-transcribe-diarize", response_format: "diarized_json", chunking_strategy: "auto" }),
  stream_diarized_json: async () =>
    readToEnd(await ask({ model: "gpt-4o-transcribe-diarize", response_format: "diarized_json", stream: true })),
  srt: () => ask({ response_format: "srt" }),
  parameters: () =>
    ask({
      language: "en",
      prompt: "Numbers.",
      temperature: 0.2,
      chunking_strategy: { type: "server_vad", threshold: 0.5 },
      known_speaker_names: ["customer", "agent"],
    }),
  stream: async () => readToEnd(await ask({ stream: true, include: ["logprobs"] })),
  stream_vtt: async () => readToEnd(await ask({ stream: true, response_format: "vtt" })),
  abort: async () => {
    const controller = new AbortController();
    const events = [];
    for await (const event of await ask({ stream: true }, { signal: controller.signal })) {
      events.push(event);
      controller.abort();
    }
    return events;
  },
  abort_before_the_answer: () => ask({}, { signal: AbortSignal.timeout(2000) }),
  leave_the_loop: async () => {
    for await (const event of await ask({ stream: true })) return [event];
  },
  live: async () => {
    const live = await openLive(client);
    const events = [];
    return new Promise((resolve, reject) => {
      live.on("error", reject);
      live.on("event", (event) => {
        events.push(event);
        if (event.type === "session.created") {
          live.send({
            type: "session.update",
            session: { type: "transcription", audio: { input: { turn_detection: null } } },
          });
        } else if (event.type === "session.updated") {
          const sound = readFileSync(path);
          for (let start = 0; start < sound.length; start += 4800) {
            const audio = sound.subarray(start, start + 4800).toString("base64");
            live.send({ type: "input_audio_buffer.append", audio });
          }
          live.send({ type: "input_audio_buffer.commit" });
        } else if (event.type.endsWith(".completed")) {
          live.close();
          resolve(events);
        }
      });
    });
  },
  live_wrong_key: async () => {
    const live = await openLive(client.withOptions({ apiKey: "wrong" }));
    return new Promise((resolve) => live.on("error", (error) => resolve(error.message)));
  },
  translation: () =>
    client.audio.translations.create({ model: "whisper-1", file: createReadStream(path) }),
  models: async () => readToEnd(await client.models.list()),
  model: () => client.models.retrieve("whisper-1"),
  unknown_model: () => client.models.retrieve("gpt-2"),
  wrong_key: () => client.withOptions({ apiKey: "wrong" }).models.list(),
};

try {
  console.log(JSON.stringify({ answer: await cases[name]() }));
} catch (error) {
  if (!(error instanceof APIError)) throw error;
  const { status, type, param, code, message } = error;
  const told = { class: error.constructor.name, status, type, param, code, message };
  console.log(JSON.stringify({ error: told }));
}
