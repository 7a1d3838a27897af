// The page of the service. Pictures go to POST /v1/cutout; nothing else leaves the browser.

const MOST_PICTURES = 24;
const MOST_COMPARED = 16e6; // pixels; larger maps are compared at a smaller size

const at = (id) => document.getElementById(id);
const state = { models: [], limits: null, pictures: [], shown: null, running: 0 };

// ---------------------------------------------------------------- the service

function headers() {
  const key = at("key").value.trim();
  return key ? { "X-Api-Key": key } : {};
}

/** The message of an answer that is an error. */
async function reason(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the service answered with status ${answer.status}`;
  }
}

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

/** Sends a request; waits and sends it again while the service is busy or loading. */
async function send(path, options = {}) {
  for (let tries = 0; ; tries += 1) {
    let answer;
    try {
      answer = await fetch(path, { ...options, headers: { ...options.headers, ...headers() } });
    } catch {
      throw new Error("the service cannot be reached");
    }
    if (answer.ok) return answer;
    if (answer.status === 401) at("key-field").hidden = false;
    const wait = Number(answer.headers.get("Retry-After"));
    if (!wait || tries > 30) throw new Error(await reason(answer));
    await pause(Math.min(wait, 10));
  }
}

async function loadModels() {
  for (;;) {
    let found = null;
    try {
      found = await (await send("/v1/models")).json();
    } catch (error) {
      at("service").textContent = `The service is not ready: ${error.message}`;
      if (!at("key-field").hidden) return; // the field's change comes here again
    }
    const ready = found && (await fetch("/readyz").catch(() => null));
    if (ready?.ok) {
      showModels(found);
      return;
    }
    if (found) at("service").textContent = "The models are loading …";
    await pause(1);
  }
}

function showModels(found) {
  state.models = found.models;
  state.limits = found;
  at("key-field").hidden = at("key-field").hidden || !at("key").value;
  const option = (model) => new Option(`${model.name} (${model.precision}, ${model.width} × ${model.height})`, model.name);
  at("model").replaceChildren(...found.models.map(option));
  at("second").replaceChildren(new Option("nothing", ""), ...found.models.map(option));
  at("second-field").hidden = found.models.length < 2;
  if (found.models.length > 1) at("second").value = found.models[1].name;
  const engine = found.device === "cpu" ? ` in ${found.engine}` : "";
  at("service").textContent = `Ready: ${found.models.length} model${found.models.length > 1 ? "s" : ""} on ${found.device}${engine}`;
  at("limits").textContent = `up to ${found.most_bytes / 1e6} MB and ${found.most_pixels / 1e6} megapixels each`;
  show(state.shown);
}

/** The cut-out of a picture by a model: made once, then kept. */
function cutout(picture, model) {
  picture.made[model] ??= make(picture, model).catch((error) => {
    delete picture.made[model];
    throw error;
  });
  return picture.made[model];
}

async function make(picture, model) {
  tell(1);
  try {
    const form = new FormData();
    form.append("file", picture.file, "picture");
    const began = performance.now();
    const answer = await send(`/v1/cutout?model=${encodeURIComponent(model)}`, { method: "POST", body: form });
    const blob = await answer.blob();
    const bitmap = await createImageBitmap(blob, { premultiplyAlpha: "none" });
    return { blob, bitmap, url: URL.createObjectURL(blob), seconds: (performance.now() - began) / 1000 };
  } finally {
    tell(-1);
  }
}

// ---------------------------------------------------------------- messages

function tell(change) {
  state.running += change;
  at("results").setAttribute("aria-busy", String(state.running > 0));
  if (state.running) at("status").textContent = `Working on ${state.running} picture${state.running > 1 ? "s" : ""} …`;
}

function fail(name, message) {
  const item = document.createElement("li");
  item.textContent = `${name}: ${message}`;
  at("errors").append(item);
  if (!state.running) at("status").textContent = "";
}

// ---------------------------------------------------------------- pictures

async function add(files) {
  at("errors").replaceChildren();
  const room = MOST_PICTURES - state.pictures.length;
  if (files.length > room) fail(`${files.length} files`, `the page holds ${MOST_PICTURES} pictures; remove some first`);
  await Promise.all([...files].slice(0, Math.max(room, 0)).map(addOne));
}

async function addOne(file) {
  const loading = () => !at("model").value && at("key-field").hidden;
  for (let waited = 0; loading() && waited < 240; waited += 1) await pause(0.5);
  const model = at("model").value;
  if (!model) return fail(file.name, "the models are not ready yet; try again in a moment");
  if (file.size > state.limits.most_bytes) return fail(file.name, `the file is larger than ${state.limits.most_bytes / 1e6} MB`);
  const picture = { file, name: file.name || "pasted picture", url: URL.createObjectURL(file), made: {} };
  try {
    await cutout(picture, model);
  } catch (error) {
    URL.revokeObjectURL(picture.url);
    return fail(picture.name, error.message);
  }
  state.pictures.push(picture);
  addButton(picture);
  return show(picture);
}

function addButton(picture) {
  const button = document.createElement("button");
  const image = new Image();
  button.type = "button";
  button.className = "checks";
  image.alt = picture.name;
  image.src = Object.values(picture.made).length ? picture.url : "";
  image.onerror = () => button.replaceChildren(picture.name); // a format that the browser does not show
  button.append(image);
  button.addEventListener("click", () => show(picture));
  picture.button = button;
  const item = document.createElement("li");
  item.append(button);
  at("pictures").append(item);
}

function clear() {
  for (const picture of state.pictures) {
    URL.revokeObjectURL(picture.url);
    for (const made of Object.values(picture.made)) made.then((one) => URL.revokeObjectURL(one.url), () => {});
  }
  state.pictures = [];
  state.shown = null;
  at("pictures").replaceChildren();
  at("errors").replaceChildren();
  at("results").hidden = true;
  at("status").textContent = "All pictures are removed.";
  at("files").focus();
}

/** Shows a picture by the model that is chosen, and the second one beside it. */
async function show(picture) {
  if (!picture) return;
  state.shown = picture;
  const [first, second] = [at("model").value, at("second").value];
  for (const one of state.pictures) one.button.setAttribute("aria-pressed", String(one === picture));
  const current = () => state.shown === picture && at("model").value === first && at("second").value === second;
  try {
    const made = await cutout(picture, first);
    if (!current()) return;
    await showCutout(picture, first, made);
    const other = second && second !== first ? await cutout(picture, second) : null;
    if (!current()) return;
    at("side-by-side").hidden = !other;
    if (other) compare(first, made, second, other);
    if (!state.running) at("status").textContent = `${picture.name} is done.`;
  } catch (error) {
    fail(picture.name, error.message);
  }
}

async function showCutout(picture, model, made) {
  const stem = picture.name.replace(/\.[^.]*$/, "");
  at("results").hidden = false;
  at("results-title").textContent = picture.name;
  at("before").src = picture.url;
  at("before").alt = `${picture.name} before`;
  at("before").onerror = () => at("stage").classList.add("alone");
  at("before").onload = () => at("stage").classList.remove("alone");
  at("after").src = made.url;
  at("after").alt = `${picture.name} cut out by ${model}`;
  at("caption").textContent = `${made.bitmap.width} × ${made.bitmap.height} pixels, by ${model}, in ${made.seconds.toFixed(2)} s`;
  await setDownload(at("download"), `${stem}.${model}.cutout.png`, onBackground(made));
  await setDownload(at("download-map"), `${stem}.${model}.map.png`, toBlob(mapCanvas(document.createElement("canvas"), made.bitmap, 1)));
}

async function setDownload(link, name, promised) {
  const blob = await promised;
  if (link.href) URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(blob);
  link.download = name;
}

const toBlob = (canvas) => new Promise((done) => canvas.toBlob(done, "image/png"));

/** The cut-out as it is downloaded: the service's own file, or on the chosen color. */
async function onBackground(made) {
  const color = chosenColor();
  if (!color) return made.blob;
  const canvas = document.createElement("canvas");
  canvas.width = made.bitmap.width;
  canvas.height = made.bitmap.height;
  const pen = canvas.getContext("2d");
  pen.fillStyle = color;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(await createImageBitmap(made.blob), 0, 0);
  return toBlob(canvas);
}

const chosenColor = () => (document.querySelector("[name=background]:checked").value === "color" ? at("color").value : "");

function setBackground() {
  const color = chosenColor();
  at("stage").classList.toggle("color", Boolean(color));
  at("stage").style.setProperty("--back", color || "transparent");
  show(state.shown);
}

// ---------------------------------------------------------------- two models

/** The alpha channel of a cut-out, which is the saliency map. */
function alphaOf(bitmap, scale) {
  const [width, height] = [Math.max(1, Math.round(bitmap.width * scale)), Math.max(1, Math.round(bitmap.height * scale))];
  const canvas = new OffscreenCanvas(width, height);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(bitmap, 0, 0, width, height);
  const { data } = pen.getImageData(0, 0, width, height);
  return { width, height, values: data.filter((_, index) => index % 4 === 3) };
}

function paint(canvas, width, height, colorOf) {
  canvas.width = width;
  canvas.height = height;
  const pixels = new ImageData(width, height);
  for (let index = 0; index < width * height; index += 1) {
    const [red, green, blue] = colorOf(index);
    pixels.data[4 * index] = red;
    pixels.data[4 * index + 1] = green;
    pixels.data[4 * index + 2] = blue;
    pixels.data[4 * index + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

function mapCanvas(canvas, bitmap, scale) {
  const { width, height, values } = alphaOf(bitmap, scale);
  return paint(canvas, width, height, (index) => [values[index], values[index], values[index]]);
}

function compare(firstName, first, secondName, second) {
  const scale = Math.min(1, Math.sqrt(MOST_COMPARED / (first.bitmap.width * first.bitmap.height)));
  const a = alphaOf(first.bitmap, scale);
  const b = alphaOf(second.bitmap, scale);
  const count = a.values.length;
  let [sum, largest, far] = [0, 0, 0];
  for (let index = 0; index < count; index += 1) {
    const difference = Math.abs(a.values[index] - b.values[index]);
    sum += difference;
    largest = Math.max(largest, difference);
    far += difference > 25.5;
  }
  const grey = (one) => (index) => [one.values[index], one.values[index], one.values[index]];
  paint(at("map-first"), a.width, a.height, grey(a));
  paint(at("map-second"), b.width, b.height, grey(b));
  paint(at("map-difference"), a.width, a.height, (index) => {
    const difference = a.values[index] - b.values[index];
    const rest = 255 - Math.min(255, 4 * Math.abs(difference));
    return difference > 0 ? [255, rest, rest] : [rest, rest, 255];
  });
  at("map-first").setAttribute("aria-label", `Saliency map by ${firstName}`);
  at("map-second").setAttribute("aria-label", `Saliency map by ${secondName}`);
  at("name-first").textContent = `First: ${firstName}`;
  at("name-second").textContent = `Second: ${secondName}`;
  const percent = ((100 * far) / count).toFixed(2);
  const text = `Mean difference ${(sum / count / 255).toFixed(4)}, largest ${(largest / 255).toFixed(3)}; ${percent} % of the pixels differ by more than 0.1.`;
  at("map-difference").setAttribute("aria-label", `Difference of the two maps. ${text}`);
  at("figures").textContent = text + " Differences are shown four times as strong." + (scale < 1 ? " Compared at a smaller size." : "");
}

// ---------------------------------------------------------------- input

at("files").addEventListener("change", () => {
  add([...at("files").files]);
  at("files").value = "";
});
at("slider").addEventListener("input", () => {
  const value = at("slider").value;
  at("stage").style.setProperty("--cut", `${value}%`);
  at("slider").setAttribute("aria-valuetext", `${value} % before, ${100 - value} % after`);
});
at("model").addEventListener("change", () => show(state.shown));
at("second").addEventListener("change", () => show(state.shown));
at("key").addEventListener("change", loadModels);
at("clear").addEventListener("click", clear);
at("options").addEventListener("submit", (event) => event.preventDefault());
for (const radio of document.querySelectorAll("[name=background]")) radio.addEventListener("change", setBackground);
at("color").addEventListener("input", () => {
  document.querySelector("[name=background][value=color]").checked = true;
  setBackground();
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) add([...event.clipboardData.files]);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => event.relatedTarget || at("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  add([...event.dataTransfer.files]);
});

loadModels();
