// The browser's part of the explorer: it shows the pieces that Python sends, and says what was clicked.
// Python has escaped every text in them; nothing is put together here.
const LARGEST = 1600; // pixels of a photo's longer side: a larger one is made smaller before it is sent
const MOST_BYTES = 8 * 2 ** 20; // of what is sent: the connection breaks at 10 MB
const PATIENCE = 20000; // milliseconds without an answer until the page says so

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "explorer";
  const places = {};
  const place = (name, parent) => {
    places[name] = document.createElement("div");
    places[name].dataset.part = name;
    parent.append(places[name]);
  };
  place("controls", root);
  place("picker", root);
  place("note", root);
  places.note.setAttribute("role", "status");
  const body = document.createElement("div");
  body.className = "body";
  root.append(body);
  place("query", body);
  place("answers", body);
  place("beside", root);
  places.answers.setAttribute("aria-live", "polite");
  const style = document.createElement("style"); // the font for Chinese captions
  style.textContent = model.get("font");
  el.append(style, root);

  const latest = {};
  async function draw(name) {
    const fresh = document.createElement("template");
    const text = model.get(name);
    latest[name] = text;
    fresh.innerHTML = text;
    for (const focusable of fresh.content.querySelectorAll("button, input, select, [tabindex]")) {
      focusable.dataset.lmSuppressShortcuts = "true"; // or JupyterLab would take 1, b, dd … for its own cells
    }
    const pictures = [...fresh.content.querySelectorAll("img")].map((picture) => picture.decode());
    await Promise.allSettled(pictures); // no empty frames while they are decoded
    if (latest[name] !== text) return; // a newer answer has come meanwhile
    const focused = root.getRootNode().activeElement;
    const key = places[name].contains(focused) ? focused.dataset.key : null;
    places[name].replaceChildren(fresh.content);
    const strip = places[name].querySelector(".strip"), chosen = strip?.querySelector(".chosen");
    if (chosen) strip.scrollLeft = chosen.offsetLeft - strip.offsetLeft - (strip.clientWidth - chosen.clientWidth) / 2;
    if (!key) return;
    const again = places[name].querySelector(`[data-key="${CSS.escape(key)}"]`)
      ?? places[name].querySelector('[aria-pressed="true"]'); // it is gone: what is chosen now keeps the keyboard
    again?.focus({ preventScroll: true });
  }
  const names = Object.keys(places);
  names.forEach((name) => model.on(`change:${name}`, () => draw(name)));
  model.on("change:answered", () => {
    root.classList.remove("busy");
    clearTimeout(waiting);
    draw("note"); // in place of what the browser had to say
  });

  let waiting;
  function send(content, buffers) {
    root.classList.add("busy");
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      places.note.textContent = "no answer yet; if it stays so, reload the page";
    }, PATIENCE);
    model.send(content, undefined, buffers);
  }
  const choose = (patch) => send({ do: "set", patch });

  root.addEventListener("click", (event) => {
    const clicked = event.target.closest("[data-set], [data-do]");
    if (!clicked || clicked.disabled) return;
    if (clicked.dataset.do) send({ do: clicked.dataset.do });
    else choose(JSON.parse(clicked.dataset.set));
  });
  root.addEventListener("change", (event) => {
    const { dataset, type, value, checked, files } = event.target;
    if (type === "file" && files.length) {
      upload(files[0]);
      event.target.value = ""; // so that the same file can be handed in again
    } else if (dataset.name) choose({ [dataset.name]: type === "checkbox" ? checked : value });
  });
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const typing = ["text", "select-one"].includes(event.target.type);
    if (event.target.dataset.set && event.target.localName === "g" && ["Enter", " "].includes(event.key)) {
      event.preventDefault();
      choose(JSON.parse(event.target.dataset.set));
    } else if (!typing && /^[0-9]$/.test(event.key)) {
      root.querySelector(event.key === "0" ? '[data-key="box-all"]' : `[data-key="number-${event.key - 1}"]`)?.click();
    } else if (!typing && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
      event.preventDefault();
      const chosen = places.picker.querySelector(".query.chosen"); // or else the next strip begins
      if (event.key === "ArrowLeft") (chosen?.previousElementSibling ?? places.picker.querySelector('[data-key="before"]')).click();
      else (chosen?.nextElementSibling ?? places.picker.querySelector('[data-key="after"]')).click();
    } else if (!typing && event.key === "w") {
      root.querySelector('[data-do="wrong"]').click();
    }
  });

  async function upload(file) {
    let content = file;
    try {
      const picture = await createImageBitmap(file); // upright, as its EXIF data say
      const scale = Math.min(1, LARGEST / Math.max(picture.width, picture.height));
      if (scale < 1) {
        const canvas = new OffscreenCanvas(Math.round(picture.width * scale), Math.round(picture.height * scale));
        canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
        content = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
      }
    } catch {
      // a format that the browser cannot read; Python may, or says why not
    }
    if (content.size > MOST_BYTES) {
      places.note.textContent = `${file.name}: larger than 8 MB, and not a photo that the browser can make smaller`;
      return;
    }
    send({ do: "photo", name: file.name }, [await content.arrayBuffer()]);
  }
  return Promise.all(names.map(draw)).then(() => {});
}

export default { render };
