// Sends likes with the fetch API of Node.js. Set LIKES_URL, and LIKES_TOKEN or LIKES_API_KEY if ingest requires
// authentication.

import { setTimeout as sleep } from "node:timers/promises";

const URL_BASE = process.env.LIKES_URL ?? "http://127.0.0.1:8080";
const ATTEMPTS = 6;
const TIMEOUT_MS = 30_000;
const LONGEST_WAIT_S = 30;
const LATER = [408, 429, 500, 502, 503, 504];

function headers(contentType) {
  const all = { "Content-Type": contentType };
  const { LIKES_TOKEN: token, LIKES_API_KEY: key } = process.env;
  if (token) all.Authorization = `Bearer ${token}`;
  else if (key) all["X-Api-Key"] = key;
  return all;
}

// Sends a request, with retries on transient failures. Retries are safe: a like is stored once.
async function post(path, contentType, body) {
  for (let attempt = 1; ; attempt++) {
    let waitSeconds = 2 ** (attempt - 1);
    let failure;
    try {
      const signal = AbortSignal.timeout(TIMEOUT_MS);
      const response = await fetch(URL_BASE + path, { method: "POST", headers: headers(contentType), body, signal });
      const text = await response.text();
      if (response.ok) return JSON.parse(text);
      failure = new Error(`${response.status}: ${text}`);
      if (!LATER.includes(response.status)) attempt = ATTEMPTS;
      const retryAfter = response.headers.get("retry-after") ?? "";
      if (/^\d+$/.test(retryAfter)) waitSeconds = Number(retryAfter);
    } catch (error) {
      failure = new Error(`no response: ${error.cause ?? error}`);
    }
    if (attempt >= ATTEMPTS) throw failure;
    // Jitter: many clients must not retry at the same moment.
    await sleep(Math.min(waitSeconds, LONGEST_WAIT_S) * (1 + Math.random() / 2) * 1000);
  }
}

try {
  console.log(await post("/likes", "application/json", JSON.stringify({ user_id: 7, post_id: 42 })));

  const batch = [8, 9, 10].map((user) => JSON.stringify({ user_id: user, post_id: 42 }) + "\n").join("");
  const result = await post("/likes/batch", "application/x-ndjson", batch);
  console.log(result);
  for (const { index, detail } of result.errors) console.error(`like ${index} was rejected: ${detail}`);
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
