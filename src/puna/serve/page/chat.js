// The page: draws the conversation, sends, stops, retries. All text goes in through textContent, never as markup.

import { Conversation, sentences } from "/page/conversation.js";
import { answer, modelName } from "/page/stream.js";

const byId = (id) => document.getElementById(id);
const scroller = byId("scroller"), list = byId("messages"), question = byId("question"), spoken = byId("spoken");
const conversation = new Conversation();
let running = null; // the AbortController of the answer that is being written

const FINISH_NOTES = {
  length: "The answer reached its longest length.",
  content_filter: "The guard stopped this answer.",
};

function element(name, className, text = "") {
  const node = document.createElement(name);
  node.className = className;
  node.textContent = text;
  return node;
}

function button(label, action, describe = label) {
  const node = element("button", "small", label);
  node.type = "button";
  node.setAttribute("aria-label", describe);
  node.addEventListener("click", action);
  return node;
}

function draw(message) {
  const item = element("li", `message ${message.role}`);
  const text = element("p", "text", message.content);
  text.dir = "auto";
  item.append(element("p", "who", message.role === "user" ? "You" : "Model"), text);
  list.append(item);
  byId("empty").hidden = true;
  return { item, text };
}

/** Keeps the end in sight, unless the reader has scrolled up. */
function following(change) {
  const near = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
  change();
  if (near) scroller.scrollTop = scroller.scrollHeight;
}

function number(id) {
  const value = byId(id).valueAsNumber;
  return Number.isFinite(value) ? value : null;
}

function setRunning(controller) {
  running = controller;
  byId("send").hidden = controller !== null;
  byId("stop").hidden = controller === null;
  byId("new").disabled = controller !== null;
}

async function write() {
  const controller = new AbortController();
  const body = conversation.request({
    system: byId("system").value.trim(),
    temperature: number("temperature"),
    maxTokens: number("max-tokens"),
  });
  dropActions();
  const message = conversation.add("assistant");
  const { item, text } = draw(message);
  item.classList.add("writing");
  scroller.scrollTop = scroller.scrollHeight;
  setRunning(controller);
  let said = 0, problem = null;
  try {
    for await (const { content, refusal, finish } of answer(body, controller.signal)) {
      following(() => {
        if (content) text.textContent = message.content += content;
        if (refusal) message.note = refusal;
        if (finish in FINISH_NOTES) message.note = `${FINISH_NOTES[finish]} ${message.note}`.trim();
      });
      const { spoken: sentence, end } = sentences(message.content, said);
      if (sentence) [spoken.textContent, said] = [sentence, end];
    }
    spoken.textContent = message.content.slice(said) || message.note || "The answer is complete.";
  } catch (error) {
    if (controller.signal.aborted) message.note = spoken.textContent = "Stopped.";
    else problem = error;
  }
  item.classList.remove("writing");
  setRunning(null);
  following(() => finish(item, message, problem));
  if (document.activeElement === document.body) question.focus();
}

function finish(item, message, problem) {
  if (problem !== null) {
    conversation.remove(message);
    const box = element("p", "wrong", problem.message || "The server cannot be reached.");
    box.setAttribute("role", "alert");
    box.append(button("Retry", () => again(item), "Retry the answer"));
    box.append(button("Edit", () => edit(item), "Edit your message"));
    item.append(box);
    return;
  }
  if (message.content === "" && message.note === "") message.note = "The model said nothing.";
  if (message.note) item.append(element("p", "note", message.note));
  const actions = element("p", "actions");
  if (message.content) actions.append(button("Copy", (event) => copy(event.target, message.content), "Copy the answer"));
  const rewrite = button("Write again", () => again(item, message), "Write this answer again");
  rewrite.classList.add("again");
  actions.append(rewrite);
  item.append(actions);
}

/** Only the last answer can be written again; copying stays. */
function dropActions() {
  for (const node of list.querySelectorAll(".actions .again")) node.remove();
}

function again(item, message = null) {
  if (running) return;
  if (message) conversation.remove(message);
  item.remove();
  write();
}

/** Takes the last question back into the box: one that is too long would fail for ever. */
function edit(item) {
  if (running) return;
  const last = conversation.messages.at(-1);
  conversation.remove(last);
  item.previousElementSibling.remove();
  item.remove();
  byId("empty").hidden = conversation.messages.length > 0;
  question.value = last.content;
  grow();
  question.focus();
}

async function copy(node, text) {
  try {
    await navigator.clipboard.writeText(text);
    node.textContent = spoken.textContent = "Copied";
  } catch {
    node.textContent = "Cannot copy";
  }
  setTimeout(() => { node.textContent = "Copy"; }, 1500);
}

function grow() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight + 2}px`;
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (running || text === "") return;
  for (const box of list.querySelectorAll(".wrong")) box.closest(".message").remove();
  draw(conversation.add("user", text));
  question.value = "";
  grow();
  write();
});

question.addEventListener("input", grow);
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("form").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort();
});
byId("stop").addEventListener("click", () => { running?.abort(); question.focus(); });
byId("new").addEventListener("click", () => {
  if (running) return;
  conversation.clear();
  list.replaceChildren();
  byId("empty").hidden = false;
  spoken.textContent = "New chat.";
  question.focus();
});
byId("settings-button").addEventListener("click", (event) => {
  const open = byId("settings").hidden;
  byId("settings").hidden = !open;
  event.currentTarget.setAttribute("aria-expanded", String(open));
});

modelName().then(
  (name) => { byId("model").textContent = name; document.title = `Chat with ${name}`; },
  () => { byId("model").textContent = "(server not reached)"; },
);
