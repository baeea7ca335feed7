// Prints a stream's events as JSON lines with fetch, to its end; an error exits with another code.
const response = await fetch(process.argv[2]);
const decoder = new TextDecoder();
let text = "";
for await (const piece of response.body) {
  text += decoder.decode(piece, { stream: true });
  const blocks = text.split("\n\n");
  text = blocks.pop();
  for (const block of blocks) {
    const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: ?(.*)/s)));
    if ("data" in fields) {
      const event = { type: fields.event ?? "message", data: fields.data, id: fields.id ?? "" };
      console.log(JSON.stringify(event));
    }
  }
}
