/** The HTTP requests that the pages make besides the stream itself. */

const ANSWER_MILLISECONDS = 10_000; // the longest wait for an answer

/** What to do on this page about a credential that the service does not take, by the code of its answer. */
const ADVICE = {
  no_credential: "Put a token into the field Token.",
  bad_credential: "Put another one into the field Token.",
  expired_credential: "Put a new one into the field Token.",
  not_granted: "Put a token that grants it into the field Token.",
};

/** Why a request failed, in words: `message` says what happened, `advice` what to do; `code` is the service's. */
export class Refusal extends Error {
  constructor(message, advice = "", code = "") {
    super(message);
    this.advice = advice;
    this.code = code;
  }

  /** Whether another credential is what it takes. */
  get wantsToken() {
    return this.code in ADVICE;
  }
}

/**
 * Publishes one event.
 *
 * @param {string} channel
 * @param {string} name the event's name; "" for a plain message
 * @param {string} data
 * @param {string} token "" for none
 * @returns {Promise<{id: string, milliseconds: number}>} the event's id, and how long the service took to accept it
 * @throws {Refusal}
 */
export async function publish(channel, name, data, token) {
  const url = new URL(`channels/${encodeURIComponent(channel)}`, document.baseURI);
  if (name) url.searchParams.set("event", name);
  const started = performance.now();
  const {id} = await post(url, token, data, "It may be out all the same.");
  return {id, milliseconds: performance.now() - started};
}

/**
 * A ticket, which stands for the token in the address of a stream: it counts for a minute, for these channels alone.
 *
 * @param {string[]} channels
 * @param {string} token
 * @returns {Promise<string>}
 * @throws {Refusal}
 */
export async function getTicket(channels, token) {
  const url = new URL("tickets", document.baseURI);
  channels.forEach((channel) => url.searchParams.append("channel", channel));
  return (await post(url, token, null, "")).ticket;
}

/**
 * Asks for a stream once more without EventSource, which hides why it was refused.
 *
 * @param {URL} url
 * @param {string} token "" for none
 * @returns {Promise<?Refusal>} null if the stream would be open now, or nothing answers
 */
export async function whyRefused(url, token) {
  const asked = new AbortController();
  const timer = setTimeout(() => asked.abort(), ANSWER_MILLISECONDS);
  try {
    const headers = {Accept: "application/problem+json", ...authorization(token)};
    const answer = await fetch(url, {headers, signal: asked.signal, cache: "no-store"});
    return answer.ok ? null : await refusal(answer);
  } catch {
    return null;
  } finally {
    clearTimeout(timer);
    asked.abort(); // leaves the stream, if it was let in this time
  }
}

/** The answer's JSON; `late` is what to know when none has come. */
async function post(url, token, body, late) {
  const signal = AbortSignal.timeout(ANSWER_MILLISECONDS);
  let answer;
  try {
    answer = await fetch(url, {method: "POST", body, headers: authorization(token), signal});
  } catch (error) {
    if (error.name === "TimeoutError") throw new Refusal("No answer within 10 s.", late);
    throw new Refusal("The service could not be reached.", "Is it running?");
  }
  if (!answer.ok) throw await refusal(answer);
  return answer.json();
}

function authorization(token) {
  return token ? {Authorization: `Bearer ${token}`} : {};
}

/** From problem+json, or from the bare status: what answers may be a proxy on the way. */
async function refusal(answer) {
  try {
    const {title, detail, fix, code} = await answer.json();
    if (title) {
      const why = detail === title ? "" : detail;
      const advice = [why, ADVICE[code] ?? fix].filter(Boolean).map(sentence).join(" ");
      return new Refusal(`${title} (${answer.status})${why ? ":" : "."}`, advice, code);
    }
  } catch {
    // Not JSON.
  }
  return new Refusal(`The service answered ${answer.status}${answer.statusText && ` ${answer.statusText}`}.`);
}

function sentence(text) {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}
