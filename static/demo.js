/** The demo page: streams channels, publishes events, shows what happens. */

import {Refusal, getTicket, publish, whyRefused} from "./api.js";
import {EventList, duration} from "./eventlist.js";
import {Pushline} from "./pushline.js";
import {RateChart} from "./rate.js";

const CHANNEL = /^[A-Za-z0-9_.:-]{1,128}$/;
const TOKEN = /^[\x21-\x7e]*$/; // what a header can hold
const TICK_MILLISECONDS = 250; // between two looks at the clock, for the countdown and the figures
const SLOW_MILLISECONDS = 5000; // a connection that takes longer needs a word
const ENDINGS = {
  expired: "The credential has expired: opening again",
  revoked: "The service has closed this stream: Start opens another",
};
const WORDS = {connecting: "Connecting", open: "Open", waiting: "Retrying", closed: "Closed", ended: "Ended"};

const at = (id) => document.getElementById(id);
const numbers = new Intl.NumberFormat("en");
const chart = new RateChart(at("chart"), at("chart-max"));
const list = new EventList(at("events"), showList);

let stream = null;
let choice = {channels: [], names: [], token: ""}; // what the stream was started with
let since = ""; // the event id after which it was to begin; "" for what is new
let position = ""; // the last id seen: an event that doesn't move it has no id of its own
let received = 0;
let reopening = 0; // performance.now() at which a waiting stream opens
let slow = Infinity; // performance.now() from which a connection takes long

// --- Streaming ------------------------------------------------------------------------------------------------------

function start() {
  const chosen = fields();
  const wrong = [complain("channels", aboutChannels(chosen.channels)), complain("token", aboutToken(chosen.token))];
  if (wrong.some(Boolean)) {
    at(wrong[0] ? "channels" : "token").focus();
    return;
  }
  const goesOn = running() && chosen.channels.join() === choice.channels.join(); // with another token, say
  since = goesOn ? stream.lastEventId || since : "";
  position = since;
  stream?.close();
  choice = chosen;
  at("state").dataset.state = "closed"; // what the old stream was says nothing about the new one
  stream = new Pushline(address, {events: choice.names});
  stream.addEventListener("state", onState);
  ["message", "$reset", "$end", "$ping", ...choice.names].forEach(listen);
  if (!choice.channels.includes(at("publish-channel").value)) at("publish-channel").value = choice.channels[0];
  const bearer = choice.token && '-H "Authorization: Bearer $TOKEN" ';
  at("command").textContent = `curl ${bearer}-d 'hello' ${new URL(`channels/${choice.channels[0]}`, document.baseURI)}`;
  showAddress();
}

function fields() {
  const words = (id) => [...new Set(at(id).value.split(/[\s,]+/).filter(Boolean))];
  return {channels: words("channels"), names: words("names"), token: token()};
}

/** The token that the field holds: nothing else keeps it. */
function token() {
  return at("token").value.trim().replace(/^Bearer\s+/i, "");
}

/** Says under a field what is wrong with it; "" is nothing. */
function complain(id, wrong) {
  at(`${id}-error`).textContent = wrong;
  at(`${id}-error`).hidden = !wrong;
  at(id).setAttribute("aria-invalid", String(Boolean(wrong)));
  return wrong;
}

/** What is wrong with the channels, in words; "" if nothing is. */
function aboutChannels(channels) {
  if (!channels.length) return "Name at least one channel.";
  const bad = channels.find((channel) => !CHANNEL.test(channel));
  return bad ? `“${bad}” is no channel name: use 1 to 128 letters, digits and _ . : -` : "";
}

function aboutToken(said) {
  return TOKEN.test(said) ? "" : "This is no token: it has spaces in it, or letters that none has.";
}

function listen(name) {
  if (name !== "state") stream?.addEventListener(name, onEvent); // onState passes those on
}

function streamUrl() {
  const url = new URL("stream", document.baseURI);
  choice.channels.forEach((channel) => url.searchParams.append("channel", channel));
  url.searchParams.append("ping", "event");
  if (since) url.searchParams.append("last_event_id", since);
  return url;
}

/** Where the stream opens this time: with a ticket of its own, as tokens don't belong into addresses. */
async function address() {
  const url = streamUrl();
  if (choice.token) url.searchParams.set("ticket", await getTicket(choice.channels, choice.token));
  return url;
}

/** The page's own address says what it streams: it can be linked and reloaded. */
function showAddress() {
  const url = new URL(location.href);
  url.search = "";
  choice.channels.forEach((channel) => url.searchParams.append("channel", channel));
  choice.names.forEach((name) => url.searchParams.append("listen", name));
  history.replaceState(null, "", url);
}

function onEvent(event) {
  const now = Date.now();
  const service = event.type.startsWith("$");
  const said = service ? saying(event.data) : {};
  const numbered = event.type !== "$ping" && !(event.type === "$end" && said.channel === undefined);
  const id = numbered && event.lastEventId !== position ? event.lastEventId : "";
  position = event.lastEventId;
  const published = /^\d+-\d+$/.test(id) ? Number(id.split("-")[0]) : null;
  list.add({
    id,
    type: event.type,
    text: service ? meaning(event, said) : event.data,
    time: published ?? now,
    latency: published === null || service ? null : Math.max(0, now - published),
  });
  if (service) return;
  received += 1;
  chart.count();
}

/** The object that an event of the service holds. */
function saying(data) {
  try {
    return {...JSON.parse(data)};
  } catch {
    return {};
  }
}

/** What an event of the service says, for people. */
function meaning({type, data}, said) {
  if (type === "$ping") return "Alive, nothing to send";
  if (type === "$end" && !said.channel) return ENDINGS[said.reason] ?? "The service has ended this stream";
  if (type === "$end") return `Channel ${said.channel} has ended${said.reason ? `: ${said.reason}` : ""}`;
  if (type !== "$reset") return data;
  const channels = Array.isArray(said.channels) ? said.channels.join(", ") : "this stream";
  const oldest = said.oldest ? `; the oldest kept is ${said.oldest}` : "";
  return `Events of ${channels} may be missing (${said.reason ?? "unknown"})${oldest}`;
}

function onState(event) {
  if (event instanceof MessageEvent) {
    onEvent(event);
    return;
  }
  if (event.target !== stream) return; // the one that was just replaced
  const {state, delay, reconnects, error} = event.detail;
  reopening = performance.now() + delay;
  const before = at("state").dataset.state;
  if (state !== "connecting") slow = Infinity;
  else if (before !== "connecting") slow = performance.now() + SLOW_MILLISECONDS;
  const again = state === "connecting" && before !== "closed" && before !== "ended";
  at("state").dataset.state = state;
  at("state-word").textContent = again ? "Reconnecting" : WORDS[state];
  at("reconnects").textContent = numbers.format(reconnects);
  document.title = `${WORDS[state]}: ${choice.channels.join(", ")} – Pushline`;
  if (state === "waiting") explain(stream, error);
  else if (state !== "connecting") at("notice").hidden = true;
  showButtons();
  showList();
  tick();
}

async function explain(refused, error) {
  const reason = error instanceof Refusal ? error : await whyRefused(streamUrl(), choice.token);
  if (!reason || stream !== refused || !["waiting", "connecting"].includes(stream.state)) return;
  notice(reason.message, reason.advice);
}

function notice(title, advice) {
  const strong = document.createElement("strong");
  strong.textContent = title;
  at("notice").replaceChildren(strong, ` ${advice}`);
  at("notice").hidden = false;
}

// --- Publishing -----------------------------------------------------------------------------------------------------

async function send() {
  const channel = at("publish-channel").value.trim();
  const name = at("publish-event").value.trim();
  if (!channel) {
    showResult(false, "Name a channel.", "All its streams get the event.");
    at("publish-channel").focus();
    return;
  }
  if (complain("token", aboutToken(token()))) {
    at("token").focus();
    return;
  }
  hear(name);
  try {
    const {id, milliseconds} = await publish(channel, name, at("publish-data").value, token());
    showResult(true, `Published ${id}`, `to ${channel}, accepted in ${duration(milliseconds)}`);
  } catch (error) {
    showResult(false, error.message, error.advice ?? "");
  }
}

/** An event that this page names itself should also be seen here. */
function hear(name) {
  if (!name || name === "message" || name.startsWith("$") || choice.names.includes(name)) return;
  choice.names.push(name);
  at("names").value = [...new Set([...fields().names, name])].join(", ");
  listen(name);
  showAddress();
  showButtons();
}

function showResult(ok, title, advice) {
  const [head, rest, strong] = ["p", "p", "strong"].map((tag) => document.createElement(tag));
  strong.textContent = title;
  head.append(strong);
  rest.textContent = advice;
  at("result").dataset.ok = String(ok);
  at("result").replaceChildren(head, rest);
  at("result").scrollIntoView({block: "nearest"});
}

// --- Showing --------------------------------------------------------------------------------------------------------

function running() {
  return ["connecting", "open", "waiting"].includes(stream?.state);
}

function showButtons() {
  const changed = JSON.stringify(fields()) !== JSON.stringify(choice);
  const focused = document.activeElement === at("start") || document.activeElement === at("stop");
  at("start").textContent = running() ? "Apply" : "Start";
  at("start").hidden = running() && !changed;
  at("stop").hidden = !running();
  if (focused) (running() ? at("stop") : at("start")).focus(); // the focused button may just have been hidden
}

function showList() {
  const shown = list.full ? `newest ${list.length}` : String(list.length || "");
  const held = list.held ? `${numbers.format(list.held)} waiting` : "";
  at("count").textContent = [shown, held].filter(Boolean).join(", ");
  at("empty").hidden = list.length > 0;
  at("empty-title").textContent = running() ? "Nothing has arrived yet" : "Not streaming";
  at("pause").textContent = list.paused ? "Resume" : "Pause";
}

function tick() {
  const seconds = Math.max(0, Math.ceil((reopening - performance.now()) / 1000));
  if (stream?.state === "connecting" && performance.now() > slow) {
    slow = Infinity;
    notice("Still connecting.", "Is the service running? Over HTTP/1.1 a browser also shares six connections to a " +
      "site among all its tabs: others may hold them.");
  }
  at("state-note").textContent = stream?.state === "waiting" ? `in ${seconds} s` : "";
  at("rate").textContent = numbers.format(chart.rate);
  at("received").textContent = numbers.format(received);
  const latency = list.medianLatency;
  at("latency").textContent = latency === null ? "–" : duration(latency);
  chart.draw();
}

// --- Wiring ---------------------------------------------------------------------------------------------------------

at("stream-form").addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
at("stream-form").addEventListener("input", showButtons);
at("show").addEventListener("click", () => {
  const shown = at("token").classList.toggle("shown");
  at("show").setAttribute("aria-pressed", String(shown));
});
at("stop").addEventListener("click", () => stream.close());
at("publish-form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
at("publish-form").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  send();
});
at("pause").addEventListener("click", () => {
  list.paused = !list.paused;
});
at("clear").addEventListener("click", () => {
  list.clear();
  chart.clear();
  received = 0;
  tick();
});
at("copy").hidden = !navigator.clipboard; // only on https and this machine's own pages
at("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(at("command").textContent);
  at("copy").textContent = "Copied";
  setTimeout(() => {
    at("copy").textContent = "Copy";
  }, 1500);
});

const asked = new URLSearchParams(location.search);
at("channels").value = asked.getAll("channel").join(", ") || "demo";
at("names").value = asked.getAll("listen").join(", ");
setInterval(tick, TICK_MILLISECONDS);
start();
