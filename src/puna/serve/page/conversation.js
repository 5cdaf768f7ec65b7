// The conversation as data, kept in this page only. No DOM here.

export class Conversation {
  constructor() {
    this.messages = []; // {role: "user" | "assistant", content, note}
  }

  clear() {
    this.messages = [];
  }

  add(role, content = "") {
    const message = { role, content, note: "" };
    this.messages.push(message);
    return message;
  }

  remove(message) {
    this.messages = this.messages.filter((other) => other !== message);
  }

  /** The body of a request that asks for the next answer. */
  request({ system, temperature, maxTokens }) {
    const messages = this.messages.filter((m) => m.content !== "").map(({ role, content }) => ({ role, content }));
    if (system) messages.unshift({ role: "system", content: system });
    return { messages, temperature, max_tokens: maxTokens };
  }
}

/** The whole sentences of `text` after position `start`, for a screen reader, and where they end. */
export function sentences(text, start) {
  const fresh = text.slice(start);
  const ends = [...fresh.matchAll(/[.!?。!?।؟…](?=\s)|[。!?]|\n/gu)];
  if (ends.length === 0) return { spoken: "", end: start };
  const last = ends[ends.length - 1];
  const end = start + last.index + last[0].length;
  return { spoken: text.slice(start, end).trim(), end };
}
