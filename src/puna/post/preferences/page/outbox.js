// What must not be lost: the answer on its way (outbox) and the half-written one (draft), both in the browser's storage.
// An answer is stored before it is sent and removed when the server has it; its submission name makes sending it twice
// count once. A server that is away is asked again, at growing intervals.

const read = (key) => { try { return JSON.parse(localStorage.getItem(key)); } catch { return null; } };
const write = (key, value) => localStorage.setItem(key, JSON.stringify(value));

export class ServerError extends Error {
  constructor(status, code, message) { super(message); this.status = status; this.code = code; }
}

export async function ask(token, path, body) {
  const headers = { Authorization: `Bearer ${token}` };
  if (body) headers["Content-Type"] = "application/json";
  const reply = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  const value = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new ServerError(reply.status, value.error?.code, value.error?.message ?? `status ${reply.status}`);
  return value;
}

/** Whether asking again can help: the server is away or overloaded, not the request wrong. */
const passing = (error) => !(error instanceof ServerError) || error.status >= 500 || error.status === 429;

/** Whether the server refuses what an answer says (too long, not allowed): a person can mend it, asking again cannot. */
export const unusable = (error) => error instanceof ServerError && [400, 413, 422].includes(error.status);

/** Whether an answer's task is not there to be answered any more: it is another's, or was answered in another window. */
export const outdated = (error) => error instanceof ServerError && [404, 409].includes(error.status);

export async function untilReached(work, onWait) {
  for (let wait = 500; ; wait = Math.min(wait * 1.6, 8000)) {
    try { const value = await work(); onWait(false); return value; } catch (error) {
      if (!passing(error)) { onWait(false); throw error; }
      onWait(true);
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }
}

const nameOf = ({ assignment, revision }) => `${assignment}.${revision}`;

export class Outbox {
  constructor(name) { this.key = `puna-annotate/${name}`; }
  /** One answer that the server has not confirmed; several windows may each have one. */
  get pending() {
    const key = Object.keys(localStorage).sort().find((name) => name.startsWith(`${this.key}/outbox/`));
    return key ? read(key) : null;
  }
  put(body) { write(`${this.key}/outbox/${body.submission}`, body); }
  clear(body) { localStorage.removeItem(`${this.key}/outbox/${body.submission}`); }
  /** An answer that the server refuses for what it says is sent no more; it stays as the draft of its task. */
  refuse(body) { write(`${this.key}/refused/${nameOf(body)}`, body); this.clear(body); }
  draft(task) {
    const found = read(`${this.key}/draft`);
    return found?.task === nameOf(task) ? found : read(`${this.key}/refused/${nameOf(task)}`);
  }
  keep(task, values) { write(`${this.key}/draft`, { task: nameOf(task), ...values }); }
  forget(body) { for (const name of ["draft", `refused/${nameOf(body)}`]) localStorage.removeItem(`${this.key}/${name}`); }
}
