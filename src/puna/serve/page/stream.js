// The client's half of the protocol: ask for a streamed answer and hand out its deltas. No DOM here.

/** An error that the server explained. */
export class ServerError extends Error {}

/** Yields the payload of each `data:` line of a server-sent event stream; comments and other fields are skipped. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const lines = rest.split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6).replace(/\r$/, "");
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Yields `{content?, refusal?, finish?}` for each chunk of the answer. Aborting `signal` stops the server too. */
export async function* answer(request, signal) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...request, stream: true }),
    signal,
  });
  if (!response.ok) throw new ServerError(await explain(response));
  let finished = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message);
    const choice = chunk.choices[0];
    if (!choice) continue;
    finished ||= choice.finish_reason !== null;
    yield { content: choice.delta.content, refusal: choice.delta.refusal, finish: choice.finish_reason };
  }
  if (!finished) throw new ServerError("The connection ended before the answer did.");
}

/** The message of an error reply, in words for the reader. */
async function explain(response) {
  let message = `The server answered with status ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch { /* no JSON: the status must do */ }
  return message;
}

/** The name of the model that the server has. */
export async function modelName() {
  const response = await fetch("/v1/models");
  if (!response.ok) throw new ServerError(await explain(response));
  return (await response.json()).data[0].id;
}
