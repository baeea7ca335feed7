// Prints a stream's events as JSON lines with the package eventsource, which reconnects by itself.
import { EventSource } from "eventsource";

const source = new EventSource(process.argv[2]);
for (const name of ["message", "greeting"]) {
  source.addEventListener(name, ({ type, data, lastEventId }) =>
    console.log(JSON.stringify({ type, data, id: lastEventId })),
  );
}
