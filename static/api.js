/** The two HTTP requests that the demo page makes besides the stream itself. */

const ANSWER_MILLISECONDS = 10_000; // the longest wait for an answer

/** Why a request failed, in words: `message` says what happened, `advice` what to do. */
export class Refusal extends Error {
  constructor(message, advice = "") {
    super(message);
    this.advice = advice;
  }
}

/**
 * Publishes one event.
 *
 * @param {string} channel
 * @param {string} name the event's name; "" for a plain message
 * @param {string} data
 * @returns {Promise<{id: string, milliseconds: number}>} the event's id, and how long the service took to accept it
 * @throws {Refusal}
 */
export async function publish(channel, name, data) {
  const url = new URL(`channels/${encodeURIComponent(channel)}`, document.baseURI);
  if (name) url.searchParams.set("event", name);
  const started = performance.now();
  let answer;
  try {
    answer = await fetch(url, {method: "POST", body: data, signal: AbortSignal.timeout(ANSWER_MILLISECONDS)});
  } catch (error) {
    if (error.name === "TimeoutError") throw new Refusal("No answer within 10 s.", "It may be out all the same.");
    throw new Refusal("The service could not be reached.", "Is it running?");
  }
  if (!answer.ok) throw await refusal(answer);
  const {id} = await answer.json();
  return {id, milliseconds: performance.now() - started};
}

/**
 * Asks for a stream once more without EventSource, which hides why it was refused.
 *
 * @param {URL} url
 * @returns {Promise<?Refusal>} null if the stream would be open now, or nothing answers
 */
export async function whyRefused(url) {
  const asked = new AbortController();
  const timer = setTimeout(() => asked.abort(), ANSWER_MILLISECONDS);
  try {
    const headers = {Accept: "application/problem+json"};
    const answer = await fetch(url, {headers, signal: asked.signal, cache: "no-store"});
    return answer.ok ? null : await refusal(answer);
  } catch {
    return null;
  } finally {
    clearTimeout(timer);
    asked.abort(); // leaves the stream, if it was let in this time
  }
}

/** From problem+json, or from the bare status: what answers may be a proxy on the way. */
async function refusal(answer) {
  try {
    const {title, detail, fix} = await answer.json();
    if (title) return new Refusal(`${title} (${answer.status}).`, [detail, fix].filter(Boolean).join(" "));
  } catch {
    // Not JSON.
  }
  return new Refusal(`The service answered ${answer.status}${answer.statusText && ` ${answer.statusText}`}.`);
}
