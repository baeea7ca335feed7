// better-sse as its manual shows it: a session per client, registered with its channel; ioredis brings the events.
import http from "node:http";
import { createChannel, createSession } from "better-sse";
import { Redis } from "ioredis";

const PREFIX = "bench:";
const publisher = new Redis(process.env.REDIS_URL);
const listener = new Redis(process.env.REDIS_URL);
const channels = new Map();

function channelOf(name) {
  if (!channels.has(name)) channels.set(name, createChannel());
  return channels.get(name);
}

listener.on("pmessage", (_pattern, name, data) => {
  channels.get(name.slice(PREFIX.length))?.broadcast(data);
});
await listener.psubscribe(`${PREFIX}*`);

const server = http.createServer(async (request, response) => {
  const [, route, name] = request.url.split("/");
  if (request.method === "GET" && route === "stream") {
    channelOf(name).register(await createSession(request, response, { serializer: String }));
  } else if (request.method === "POST" && route === "publish") {
    const parts = [];
    for await (const part of request) parts.push(part);
    await publisher.publish(PREFIX + name, Buffer.concat(parts));
    response.end("ok");
  } else {
    response.writeHead(404).end();
  }
});
server.keepAliveTimeout = 75_000;
server.listen({ host: "127.0.0.1", port: Number(process.env.PORT), backlog: 4096 });
