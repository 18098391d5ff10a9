"use strict";
const at = id => document.getElementById(id);
const SIDES = ["left", "right"];
const KEYS = {ArrowLeft: "left", ArrowDown: "tie", ArrowRight: "right", s: "skip"};
const MOVES = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
let state = null;  // what the command has said last
let ready = false;  // whether the question is shown with both images, so that an answer is about them
let fetched = new Map();  // the images of a question and of the next, by the question's id

function say(words, bad = false) {
  at("message").textContent = words;
  at("message").className = bad ? "bad" : "";
}

async function ask(path, sent) {
  let answer;
  try {
    answer = await fetch(path, sent === undefined ? {} : {method: "POST", body: JSON.stringify(sent)});
  } catch {
    throw new Error("The command does not answer: has it ended? What it had confirmed is in the file; start it again.");
  }
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}

function imagesOf(question) {
  if (!fetched.has(question.id)) {
    fetched.set(question.id, SIDES.map(side => {
      const image = new Image();
      image.alt = "";
      image.draggable = false;
      image.src = `image/${question.id}/${side}`;
      return image;
    }));
  }
  return fetched.get(question.id);
}

async function put(side, image) {
  const frame = at(side);
  try {
    await image.decode();
    image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) < 256);
    frame.replaceChildren(image);
  } catch {
    const why = document.createElement("span");
    why.className = "why";
    frame.replaceChildren(why);
    why.textContent = await ask(image.src).then(() => "it cannot be shown", error => error.message);
  }
}

function enabled(yes) {
  ready = yes;
  for (const button of document.querySelectorAll("[data-choice]")) button.disabled = !yes;
  at("undo").disabled = !state.undo;
}

async function show(found) {
  state = found;
  document.title = `${found.by}: ${found.title}`;
  at("count").textContent = `${found.done} of ${found.total}`;
  at("bar").max = found.total;
  at("bar").value = found.done;
  enabled(false);
  closer(false);
  say(found.note ?? "");
  if (!found.question) return results();
  at("results").hidden = true;
  at("asking").hidden = false;
  const {question, next} = found;
  at("caption").textContent = question.caption;
  at("caption").scrollTop = 0;
  document.body.classList.add("answered");
  await Promise.all(imagesOf(question).map((image, number) => put(SIDES[number], image)));
  if (state !== found) return;
  document.body.classList.remove("answered");
  document.body.dataset.question = question.id;
  enabled(true);
  const kept = [question, next].filter(Boolean);
  fetched = new Map(kept.map(one => [one.id, imagesOf(one)]));
}

async function change(path, sent) {
  const was = state;
  enabled(false);
  at("undo").disabled = true;
  try {
    await show(await ask(path, sent));
  } catch (error) {
    if (state === was) enabled(Boolean(was.question));
    say(error.message, true);
  }
}

const answer = choice => ready && change("answer", {id: state.question.id, choice});
const undo = () => !at("undo").disabled && change("undo", {});

async function results() {
  let found;
  try {
    found = await ask("results");
  } catch (error) {
    return say(error.message, true);
  }
  ready = false;
  at("asking").hidden = true;
  at("results").hidden = false;
  at("on").hidden = !state.question;
  at("heading").textContent = found.heading;
  at("words").replaceChildren(...found.words.map(words => {
    const line = document.createElement("p");
    line.textContent = words;
    return line;
  }));
}

async function end() {
  try {
    say((await ask("end", {})).words);
    for (const button of document.querySelectorAll("button")) button.disabled = true;
  } catch (error) {
    say(error.message, true);
  }
}

const isCloser = () => document.body.classList.contains("closer");
const scrolled = frame => [frame.scrollWidth - frame.clientWidth, frame.scrollHeight - frame.clientHeight];

function closer(yes, x = 0.5, y = 0.5) {
  document.body.classList.toggle("closer", yes);
  for (const side of SIDES) {
    const [width, height] = scrolled(at(side));
    at(side).scrollTo(x * width, y * height);
  }
}

function follow(event) {
  const [from, to] = event.target === at("left") ? ["left", "right"].map(at) : ["right", "left"].map(at);
  const [width, height] = scrolled(from), [w, h] = scrolled(to);
  const x = width && from.scrollLeft / width * w, y = height && from.scrollTop / height * h;
  if (Math.abs(to.scrollLeft - x) > 1 || Math.abs(to.scrollTop - y) > 1) to.scrollTo(x, y);
}

function look(event) {
  const box = event.currentTarget.getBoundingClientRect();
  closer(!isCloser(), (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
}

function pressed(event) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const isUndo = key === "u" || key === "Backspace" || (key === "z" && (event.ctrlKey || event.metaKey));
  if (event.altKey || ((event.ctrlKey || event.metaKey) && !isUndo) || at("asking").hidden && !isUndo) return;
  if (event.shiftKey && key in MOVES && isCloser()) {
    const [x, y] = MOVES[key], frame = at("left");
    frame.scrollBy(x * frame.clientWidth / 4, y * frame.clientHeight / 4);
  } else if (event.repeat) {
    return;
  } else if (isUndo) {
    undo();
  } else if (key in KEYS) {
    answer(KEYS[key]);
  } else if (key === "z" || key === "Escape" || (event.target.matches(".frame") && [" ", "Enter"].includes(key))) {
    closer(key !== "Escape" && !isCloser());
  } else {
    return;
  }
  event.preventDefault();
}

document.addEventListener("keydown", pressed);
for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", () => answer(button.dataset.choice));
}
for (const side of SIDES) {
  at(side).addEventListener("click", look);
  at(side).addEventListener("scroll", follow);
}
at("undo").addEventListener("click", undo);
at("stop").addEventListener("click", results);
at("on").addEventListener("click", () => show(state));
at("end").addEventListener("click", end);
ask("state").then(show).catch(error => say(error.message, true));
