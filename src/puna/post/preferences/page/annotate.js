// The page: shows a task, takes a choice, sends it. All text goes in through textContent, never as markup.

import { Outbox, ask, outdated, untilReached, unusable } from "/page/outbox.js";

const byId = (id) => document.getElementById(id);
const form = byId("form"), spoken = byId("spoken"), notice = byId("notice");
const LEVELS = ["significantly better", "better", "slightly better", "marginally better"];
const SCALE = [...LEVELS.map((word, i) => ["left", 4 - i, word]), ...LEVELS.toReversed().map((word, i) => ["right", i + 1, word])];
const ROLES = { system: "System", user: "User", assistant: "Assistant", tool: "Tool" };
let token = null, outbox = null, task = null, busy = false, seconds = 0, since = null;

function element(name, className, text = "") {
  const node = document.createElement(name);
  node.className = className;
  node.textContent = text;
  return node;
}

function say(text) { spoken.textContent = text; }
function warn(text) { notice.textContent = text; notice.hidden = text === ""; }
let away = false;
function waiting(on) {
  if (on !== away) warn(on ? "The server cannot be reached. Your work is kept here and is sent as soon as it is back." : "");
  away = on;
}

function buildScale() {
  SCALE.forEach(([side, strength, word], index) => {
    const label = element("label", "");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "choice", value: index });
    const head = element("span", "side", `${side} `);
    head.append(element("kbd", "", index + 1));
    label.append(input, head, element("span", "", word));
    byId("scale").append(label);
  });
}

function buildReasons(reasons) {
  byId("reasons").replaceChildren(...reasons.map((reason) => {
    const label = element("label", "");
    label.append(Object.assign(document.createElement("input"), { type: "checkbox", name: "reason", value: reason }), reason);
    return label;
  }));
  byId("reasons-box").hidden = reasons.length === 0;
}

const chosen = () => { const input = form.querySelector("input[name=choice]:checked"); return input && SCALE[input.value]; };
const ticked = () => [...form.querySelectorAll("input[name=reason]:checked")].map((input) => input.value);

// --- time on the task: only while the page is seen ---

function tick() {
  if (since !== null) seconds += (performance.now() - since) / 1000;
  since = document.hidden ? null : performance.now();
}

// --- a task ---

function show(name) {
  for (const id of ["entry", "task", "done"]) byId(id).hidden = id !== name;
  byId("guideline-button").hidden = byId("leave").hidden = name === "entry";
}

function fill(values) {
  form.reset();
  const index = values?.choice ? SCALE.findIndex(([side, strength]) => side === values.choice && strength === values.strength) : -1;
  if (index >= 0) form.querySelectorAll("input[name=choice]")[index].checked = true;
  for (const input of form.querySelectorAll("input[name=reason]")) input.checked = values?.reasons?.includes(input.value) ?? false;
  byId("edit").value = values?.edit ?? "";
  byId("note").value = values?.note ?? "";
  byId("reasons-box").open = ticked().length > 0;
  byId("edit-box").open = byId("edit").value !== "";
  byId("note-box").open = byId("note").value !== "";
  changed();
}

function changed() {
  const choice = chosen();
  byId("submit").disabled = !choice || busy;
  for (const side of ["left", "right"]) byId(side).parentElement.classList.toggle("better", choice?.[0] === side);
  const area = byId("edit"), better = choice && task ? task[choice[0]] : "";
  area.disabled = !choice;
  area.placeholder = choice ? "" : "Choose an answer first.";
  // an untouched edit follows the choice; what a person wrote stays
  if (task && [task.left, task.right, ""].includes(area.value)) area.value = byId("edit-box").open ? better : "";
  if (task) outbox.keep(task, { ...current(), seconds });
}

function current() {
  const [choice, strength] = chosen() ?? [null, null];
  const text = byId("edit").value, original = choice ? task[choice] : "";
  const edit = choice && byId("edit-box").open && text.trim() && text !== original ? text : null;
  return { choice, strength, reasons: ticked(), edit, note: byId("note").value };
}

function draw(reply) {
  task = reply.task;
  drawProgress(reply.progress);
  if (task === null) {
    show("done");
    byId("done-text").textContent = "You have judged everything that is open for you. Thank you.";
    byId("done-back").hidden = reply.progress.mine === 0;
    say("Nothing left to do.");
    byId("done-head").focus();
    return;
  }
  show("task");
  byId("prompt").replaceChildren(...task.prompt.map(({ role, content }) => {
    const item = element("li", role), text = element("p", "text", content);
    text.dir = "auto";
    item.append(element("p", "who", ROLES[role] ?? role), text);
    return item;
  }));
  byId("left").textContent = task.left;
  byId("right").textContent = task.right;
  drawOthers(task.others);
  const draft = outbox.draft(task);
  [seconds, since] = [draft?.seconds ?? 0, document.hidden ? null : performance.now()];
  fill(draft ?? task.previous);
  scrollTo(0, 0);
  byId("choice").focus({ preventScroll: true });
  say(task.revision > 0 ? "Your last answer, to change it." : "A new task.");
}

function drawOthers(others) {
  byId("others").hidden = others.length === 0;
  byId("others-list").replaceChildren(...others.map((label) => {
    const word = label.action === "prefer" ? `${label.choice}: ${LEVELS[4 - label.strength]}` : label.action === "skip" ? "skipped" : "flagged";
    return element("li", "", [word, label.reasons.join(", "), label.note].filter(Boolean).join(" — "));
  }));
}

function drawProgress({ mine, labels, wanted }) {
  byId("mine").textContent = `${mine} by you`;
  byId("all").textContent = `${labels} of ${wanted} in this round`;
  Object.assign(byId("bar"), { max: Math.max(wanted, 1), value: labels });
}

// --- talking to the server ---

async function next(path = "/api/task") {
  await guarded(async () => draw(await untilReached(() => ask(token, path), waiting)));
}

async function send(action) {
  if (busy || !task || (action === "prefer" && !chosen())) return;
  tick();
  warn("");
  const { choice, strength, reasons, edit, note } = current();
  const answer = action === "prefer" ? { choice, strength, edit } : {};
  outbox.put({ assignment: task.assignment, revision: task.revision, submission: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`,
    action, seconds: Math.round(seconds * 100) / 100, reasons, note, ...answer });
  await flush();
}

/** Sends what is in the outbox, then asks for the next task. */
async function flush() {
  await guarded(async () => {
    let mend = false;
    for (let body = outbox.pending; body; body = outbox.pending) {
      try { await untilReached(() => ask(token, "/api/labels", body), waiting); } catch (error) {
        if (!unusable(error) && !outdated(error)) throw error;
        const kept = unusable(error); // for ever in both cases: asking again would not help
        warn(`The last answer was not taken${kept ? ", and is kept here to be changed" : ""}: ${error.message}`);
        if (kept) {
          outbox.refuse(body);
          mend ||= task?.assignment === body.assignment && task.revision === body.revision;
          continue;
        }
      }
      outbox.clear(body);
      outbox.forget(body);
    }
    if (!mend) draw(await untilReached(() => ask(token, "/api/task"), waiting));
  });
}

async function guarded(work) {
  if (busy) return;
  busy = true;
  byId("submit").disabled = true;
  try { await work(); } catch (error) {
    warn(error.message);
    if (error.status === 401) leave(); else if (error.code === "paused") { show("done"); byId("done-text").textContent = error.message; }
  } finally {
    busy = false;
    if (task) byId("submit").disabled = !chosen();
  }
}

async function enter(given) {
  await guarded(async () => {
    const me = await untilReached(() => ask(given, "/api/me"), waiting);
    token = given;
    sessionStorage.setItem("puna-annotate/token", token);
    outbox = new Outbox(me.name);
    byId("title").textContent = document.title = me.title;
    byId("guideline-text").textContent = me.guideline;
    byId("edit-box").hidden = !me.allow_edit;
    buildReasons(me.reasons);
  });
  if (token) await flush(); else { show("entry"); byId("token").focus(); }
}

function leave() {
  sessionStorage.removeItem("puna-annotate/token");
  [token, task] = [null, null];
  show("entry");
  byId("token").value = "";
  byId("token").focus();
}

// --- buttons and keys ---

function toggle(name) {
  const open = byId(name).hidden;
  byId(name).hidden = !open;
  byId(`${name}-button`).setAttribute("aria-expanded", String(open));
}

function openBox(name, field) {
  const box = byId(`${name}-box`);
  if (box.hidden) return;
  box.open = true;
  changed();
  field().focus();
}

const KEYS = {
  s: () => send("skip"), f: () => send("flag"), b: () => next("/api/last"), g: () => toggle("guideline"), "?": () => toggle("keys"),
  r: () => openBox("reasons", () => byId("reasons").querySelector("input")),
  e: () => openBox("edit", () => byId("edit")),
  n: () => openBox("note", () => byId("note")),
};

document.addEventListener("keydown", (event) => {
  const { target, key } = event, typing = target.matches("textarea, input[type=password]");
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (key === "Escape" && task) { byId("choice").focus({ preventScroll: true }); return; }
  if (typing || !token || event.repeat) return;
  if (task && !busy && key >= "1" && key <= "8" && key.length === 1) {
    const input = form.querySelectorAll("input[name=choice]")[key - 1];
    input.checked = true;
    changed();
    const [side, , word] = SCALE[key - 1];
    say(`${side} answer ${word}`);
  } else if (key === "Enter" && task && !target.matches("button, summary, a")) send("prefer");
  else if (key.toLowerCase() in KEYS && (task || "g?b".includes(key.toLowerCase()))) KEYS[key.toLowerCase()]();
  else return;
  event.preventDefault();
});
form.addEventListener("submit", (event) => { event.preventDefault(); send("prefer"); });
form.addEventListener("input", () => { if (task) changed(); });
byId("edit-box").addEventListener("toggle", () => { if (task) changed(); });
byId("skip").addEventListener("click", () => send("skip"));
byId("flag").addEventListener("click", () => send("flag"));
byId("back").addEventListener("click", () => next("/api/last"));
byId("done-back").addEventListener("click", () => next("/api/last"));
byId("look").addEventListener("click", () => { warn(""); next(); });
byId("leave").addEventListener("click", leave);
byId("guideline-button").addEventListener("click", () => toggle("guideline"));
byId("keys-button").addEventListener("click", () => toggle("keys"));
byId("entry").addEventListener("submit", (event) => { event.preventDefault(); warn(""); enter(byId("token").value.trim()); });
document.addEventListener("visibilitychange", () => { tick(); if (task && outbox) outbox.keep(task, { ...current(), seconds }); });
addEventListener("pagehide", () => { tick(); if (task && outbox) outbox.keep(task, { ...current(), seconds }); });

buildScale();
// an invitation link carries the token behind `#`, which browsers never send; it is taken out of the address at once
const invited = new URLSearchParams(location.hash.slice(1)).get("token") ?? sessionStorage.getItem("puna-annotate/token");
if (location.hash) history.replaceState(null, "", location.pathname);
if (invited) enter(invited); else { show("entry"); byId("token").focus(); }
