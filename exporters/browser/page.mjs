// The page: takes pictures that are dropped, pasted or chosen, and shows what `classify.mjs` says of them, in order.

const TOP = 5; // classes in an answer
const TRANSPARENT = { "": "", ignored: ", transparency ignored", black: ", transparent parts taken as black" };
const SMALL = 144; // pixels: smaller pictures are shown enlarged, without smoothing

const about = JSON.parse(document.getElementById("about").textContent);
const [runs, progress, answers] = ["runs", "progress", "answers"].map((id) => document.getElementById(id));

document.getElementById("unstarted").remove();
runs.textContent = "Loading the model and what runs it …";
const started = start();
started.catch((error) => {
  runs.textContent = `The model does not run in this browser: ${error.message}`;
  runs.className = "notice";
});

async function start() {
  const { load, read } = await import("./classify.mjs");
  const model = await load("model.onnx", about);
  const instead = model.refused.map(({ reason }) => ` Not on WebGPU: ${reason.replace(/\.?$/, ".")}`).join("");
  runs.textContent = `Runs on ${model.name}.${instead}`;
  return { model, read };
}

let work = started; // pictures are answered one after the other

function add(files) {
  const items = [...files].map((file) => ({ file, entry: entryOf(file) }));
  if (!items.length) return;
  document.getElementById("answered").hidden = false;
  answers.prepend(...items.map(({ entry }) => entry.item));
  for (const { file, entry } of items) work = work.then((ready) => answer(file, entry, ready));
  work = work.then((ready) => {
    const [first] = items;
    const count = items.filter(({ entry }) => entry.answered).length;
    progress.textContent =
      items.length === 1
        ? `${first.file.name}: ${first.entry.verdict.textContent}`
        : `${count} of ${items.length} pictures are classified.`;
    return ready;
  });
  work.catch(() => {
    for (const { entry } of items) entry.verdict.textContent = "not classified: the model does not run";
  });
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function entryOf(file) {
  const picture = element("img", { src: URL.createObjectURL(file), alt: "" });
  picture.onload = () => {
    picture.classList.toggle("small", picture.naturalWidth < SMALL);
    URL.revokeObjectURL(picture.src);
  };
  picture.onerror = () => URL.revokeObjectURL(picture.src);
  const verdict = element("p", { className: "score", textContent: "waiting …" });
  const told = element("div", {}, verdict);
  const item = element("li", {}, picture, element("h3", { textContent: file.name }), told);
  return { item, verdict, told };
}

async function answer(file, entry, { model, read }) {
  const { verdict, told } = entry;
  progress.textContent = `Classifying ${file.name} …`;
  await new Promise((done) => setTimeout(done)); // lets the browser draw
  try {
    const start = performance.now();
    const picture = await read(file, about);
    const between = performance.now();
    const probabilities = await model.classify(picture.pixels);
    const seconds = [between - start, performance.now() - between].map((ms) => `${(ms / 1000).toPrecision(2)} s`);
    const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a] || a - b);
    verdict.textContent = `${about.classes[order[0]]}, ${percent(probabilities[order[0]])}`;
    const rows = order.slice(0, TOP).map((k) => bar(about.classes[k], probabilities[k]));
    told.append(element("table", { className: "bars" }, element("tbody", {}, ...rows)));
    const size = `${picture.width} x ${picture.height} pixels`;
    const note = TRANSPARENT[picture.transparent];
    const took = `read in ${seconds[0]}, classified in ${seconds[1]}`;
    told.append(element("p", { className: "soft", textContent: `${size}${note}; ${took}` }));
    entry.answered = true;
  } catch (error) {
    verdict.textContent = `not classified: ${error.message}`;
    verdict.className = "notice";
  }
  return { model, read };
}

function bar(name, probability) {
  const drawn = element("div", { className: "bar" });
  drawn.style.setProperty("--share", `${100 * probability}%`);
  const cells = [element("td", {}, drawn), element("td", { textContent: percent(probability) })];
  return element("tr", {}, element("th", { scope: "row", title: name, textContent: name }), ...cells);
}

function percent(share) {
  return `${(100 * share).toFixed(1)}%`;
}

const files = document.getElementById("files");
files.addEventListener("change", () => {
  add(files.files);
  files.value = ""; // the same picture may be chosen again
});
addEventListener("paste", (event) => add(event.clipboardData.files));
addEventListener("dragover", (event) => {
  event.preventDefault(); // else the browser opens what is dropped
  document.body.classList.add("over");
});
for (const left of ["dragleave", "drop"]) addEventListener(left, () => document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  add(event.dataTransfer.files);
});
