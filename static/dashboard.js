/** The dashboard: streams `$sys` for who may administrate, and shows what the workers tell there. */

import {Refusal, getTicket, publish} from "./api.js";
import {NONE, count, milliseconds, percent, rate} from "./figures.js";
import {Fleet} from "./fleet.js";
import {History} from "./history.js";
import {channelRows, fill, labelRows, storeRows, workerRows} from "./panels.js";
import {Plot} from "./plot.js";
import {Pushline} from "./pushline.js";

const CHANNEL = "$sys";
const TOKEN = "pushline-dashboard-token"; // the name of what the tab keeps, and nothing else does
const TICK_MILLISECONDS = 1000;
const SETTLE_MILLISECONDS = 1200; // from the first snapshot on: each worker tells every second
const SILENCE_MILLISECONDS = 5000; // an open stream that tells nothing for so long needs a word
const WORDS = {connecting: "Connecting", open: "Live", waiting: "Retrying", closed: "Closed", ended: "Ended"};

const at = (id) => document.getElementById(id);
const fleet = new Fleet();
const history = new History();

let plots = [];
let stream = null;
let reopening = 0; // performance.now() at which a waiting stream opens
let heard = 0; // performance.now() of the last snapshot, or of the opening
let settled = Infinity; // performance.now() from which all workers have been heard

// --- Streaming ------------------------------------------------------------------------------------------------------

function start() {
  stream?.close();
  stream = new Pushline(address);
  stream.addEventListener("state", onState);
  stream.addEventListener("message", onSnapshot);
}

/** Where the stream opens this time: with a ticket, as tokens don't belong into addresses. */
async function address() {
  const ticket = await getTicket([CHANNEL], token());
  const url = new URL("stream", document.baseURI);
  url.searchParams.set("channel", CHANNEL);
  url.searchParams.set("ticket", ticket);
  return url;
}

function token() {
  return sessionStorage.getItem(TOKEN) ?? "";
}

function onState({target, detail}) {
  if (target !== stream) return; // the one that was just replaced
  const {state, delay, error} = detail;
  if (error instanceof Refusal && error.wantsToken) {
    ask(error);
    return;
  }
  reopening = performance.now() + delay;
  show(state);
  if (state === "open") {
    heard = performance.now();
    showBoard();
  }
  if (error) notice(error.message, error.advice ?? "");
}

function show(state) {
  at("state").dataset.state = state;
  at("state-word").textContent = WORDS[state];
  at("forget").hidden = !token();
}

function onSnapshot({data}) {
  let snapshot;
  try {
    snapshot = JSON.parse(data);
  } catch {
    return; // anybody with the rights to Redis may publish something else there
  }
  if (!Array.isArray(snapshot?.top)) return;
  heard = performance.now();
  fleet.take(snapshot, heard);
  settled = Math.min(settled, heard + SETTLE_MILLISECONDS);
}

// --- Tokens ---------------------------------------------------------------------------------------------------------

/** Asks for a token, and says what was wrong with the last one. */
function ask(refusal) {
  stream.close();
  show("closed");
  const wrong = token() ? `${refusal.message} ${refusal.advice}` : "";
  sessionStorage.removeItem(TOKEN);
  at("forget").hidden = true;
  at("notice").hidden = true;
  at("token-error").textContent = wrong;
  at("token-error").hidden = !wrong;
  at("token").setAttribute("aria-invalid", String(Boolean(wrong)));
  at("board").hidden = true;
  at("ask").hidden = false;
  at("token").focus();
}

function takeToken() {
  const said = at("token").value.trim().replace(/^Bearer\s+/i, "");
  at("token").value = "";
  if (said) sessionStorage.setItem(TOKEN, said);
  at("ask").hidden = true;
  start();
}

// --- Showing --------------------------------------------------------------------------------------------------------

function showBoard() {
  at("board").hidden = false;
  if (plots.length) return;
  plots = [ // only now, as a plot needs to know how wide it is
    new Plot(at("plot-streams"), (value) => (value === null ? NONE : count(value)), 5),
    new Plot(at("plot-in"), rate, 5),
    new Plot(at("plot-out"), rate, 5),
    new Plot(at("plot-latency"), milliseconds, 5),
  ];
}

function tick() {
  const now = performance.now();
  const seconds = Math.max(0, Math.ceil((reopening - now) / 1000));
  at("state-note").textContent = stream.state === "waiting" ? `in ${seconds} s` : "";
  fleet.expire(now);
  warn(now);
  if (at("board").hidden || now < settled) return;
  history.add(fleet, now / 1000);
  showFigures();
  showTables();
  if (!document.hidden) plots.forEach((plot) => plot.draw(history.lines(plot.names, now / 1000)));
}

/** Says what is wrong, if anything is. */
function warn(now) {
  const workers = fleet.workers.map((worker) => worker.now);
  const of = (some) => `${count(some.length)} of ${count(workers.length)} workers`;
  const draining = workers.filter((one) => one.draining);
  const cutOff = workers.filter((one) => !one.redis);
  if (stream.state === "open" && now - heard > SILENCE_MILLISECONDS) {
    notice("No worker has told of itself for a while.", "They tell through Redis: is it there?");
  } else if (cutOff.length) {
    notice(`${of(cutOff)} have lost Redis.`, "From there, others can't be seen.");
  } else if (draining.length) {
    notice(`${of(draining)} are draining:`, "they end their streams, then themselves.");
  } else if (stream.state === "open") {
    at("notice").hidden = true;
  }
}

function notice(title, advice) {
  const isSaid = !at("notice").hidden && at("notice").textContent === `${title} ${advice}`;
  if (isSaid) return; // screen readers say it once
  const strong = document.createElement("strong");
  strong.textContent = title;
  at("notice").replaceChildren(strong, ` ${advice}`);
  at("notice").hidden = false;
}

function showFigures() {
  const workers = fleet.workers.map((worker) => worker.now);
  const {length} = workers;
  const figure = (id, text, more) => {
    at(id).textContent = length ? text : NONE;
    at(`${id}-more`).textContent = length ? more : "";
  };
  const limit = workers.some((one) => !one.limit) ? 0 : fleet.sum("limit");
  const streams = fleet.sum("streams");
  const following = workers.filter((one) => one.redis).length;
  const draining = workers.filter((one) => one.draining).length;
  const hosts = new Set(workers.map((one) => one.host)).size;
  const versions = [...new Set(workers.map((one) => one.version))].join(", ");
  const lag = history.percentile(fleet.bounds, "lag", 0.99);
  figure("streams", count(streams), limit ? `${percent(streams / limit)} of ${count(limit)}` : "no limit");
  figure("published", rate(fleet.rate("published")), `${rate(fleet.rate("received"))} from Redis`);
  figure("delivered", rate(fleet.rate("delivered")), `${count(fleet.sum("slow"))} slow streams`);
  figure("latency", milliseconds(history.last("p50")), `p99 ${milliseconds(history.last("p99"))}`);
  figure("redis", following === length ? "Up" : "Lost", `followed by ${following} of ${length}`);
  const where = `${hosts === 1 ? "" : `${count(hosts)} hosts, `}version ${versions}`;
  figure("workers", count(length), draining ? `${count(draining)} draining` : where);
  at("redis").classList.toggle("bad", length > 0 && following < length);
  at("lag").textContent = milliseconds(lag === null ? null : lag * 1000);
  document.title = length ? `${count(streams)} streams – Pushline dashboard` : "Pushline dashboard";
}

function showTables() {
  fill(at("workers-rows"), workerRows(fleet));
  const tables = {
    channels: channelRows(fleet),
    closed: labelRows(fleet, history, "closed"),
    refused: labelRows(fleet, history, "refused"),
  };
  for (const [name, rows] of Object.entries(tables)) {
    fill(at(`${name}-rows`), rows);
    at(`${name}-rows`).parentElement.hidden = !rows.length;
    at(`${name}-empty`).hidden = rows.length > 0;
  }
  const shown = tables.channels.length;
  at("channels-title").textContent = `Channels by streams${fleet.busiest.length > shown ? `: the first ${shown}` : ""}`;
  fill(at("store-rows"), storeRows(fleet, history));
}

// --- Publishing -----------------------------------------------------------------------------------------------------

async function send() {
  const channel = at("publish-channel").value.trim();
  try {
    const sent = await publish(channel, at("publish-event").value.trim(), at("publish-data").value, token());
    showResult(true, `Published ${sent.id}`, `to ${channel}, accepted in ${milliseconds(sent.milliseconds)}`);
  } catch (error) {
    showResult(false, error.message, error.advice ?? "");
  }
}

function showResult(ok, title, advice) {
  const [head, rest, strong] = ["p", "p", "strong"].map((tag) => document.createElement(tag));
  strong.textContent = title;
  head.append(strong);
  rest.textContent = advice;
  at("result").dataset.ok = String(ok);
  at("result").replaceChildren(head, rest);
}

// --- Wiring ---------------------------------------------------------------------------------------------------------

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  takeToken();
});
at("show").addEventListener("click", () => {
  const shown = at("token").classList.toggle("shown");
  at("show").setAttribute("aria-pressed", String(shown));
});
at("forget").addEventListener("click", () => {
  sessionStorage.removeItem(TOKEN);
  location.reload();
});
at("publish-form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
at("command").textContent = `curl -N '${new URL("stream?channel=demo", document.baseURI)}'`;
setInterval(tick, TICK_MILLISECONDS);
start();
