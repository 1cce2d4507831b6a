// Core of the page: requests, texts, theme, selected run, one shared feed of that run, dialogs, top bar.
// Text from people or models is only ever set with textContent (the `h` helper does so).
(() => {
  const root = () => ((window.gradio_config && window.gradio_config.root) || location.origin + location.pathname).replace(/\/+$/, "");
  const lang = () => (navigator.language === "zh-CN" ? "zh-CN" : "en");
  const store = {
    get: (key) => { try { return localStorage.getItem("studio." + key); } catch { return null; } },
    set: (key, value) => { try { localStorage.setItem("studio." + key, value); } catch { /* private mode */ } },
  };
  const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

  const t = (key, values = {}) => {
    const texts = window.STUDIO_TEXTS[lang()] || {};
    const text = texts[key] ?? window.STUDIO_TEXTS.en[key] ?? key;
    return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
  };

  // h("button.primary", {onclick, title}, "text", child, …): strings become text nodes, never markup.
  const h = (spec, options = {}, ...children) => {
    const [tag, ...classes] = spec.split(".");
    const node = document.createElement(tag || "div");
    if (classes.length) node.className = classes.join(" ");
    for (const [name, value] of Object.entries(options || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
    return node;
  };

  // Makes the children of `host` equal to `nodes` and touches only what differs, so that animations, focus, open folds
  // and selected text survive. A button is kept only for the same id: its listener belongs to that id.
  const patch = (old, fresh) => {
    if (old.isEqualNode(fresh)) return;
    const foreign = old.nodeName !== fresh.nodeName || (old.id || "") !== (fresh.id || "") || (old.nodeName === "BUTTON" && !old.id);
    if (foreign) { old.replaceWith(fresh); return; }
    if (old.nodeType === Node.TEXT_NODE) { old.data = fresh.data; return; }
    for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
    for (const { name, value } of fresh.attributes) if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
    render(old, ...fresh.childNodes);
  };
  const render = (host, ...nodes) => {
    const wanted = nodes.flat(Infinity).filter((node) => node !== null && node !== undefined && node !== false)
      .map((node) => (typeof node === "string" ? document.createTextNode(node) : node));
    const have = [...host.childNodes];
    wanted.forEach((node, index) => { if (index < have.length) patch(have[index], node); else host.append(node); });
    for (const extra of have.slice(wanted.length)) extra.remove();
  };

  const api = async (path) => {
    const answer = await fetch(root() + path, { headers: { accept: "application/json" } });
    if (!answer.ok) throw Object.assign(new Error(path), { status: answer.status });
    return answer.json();
  };

  const seen = (node) => node.isConnected && !document.hidden && node.offsetParent !== null;
  const poll = (node, work, ms = 1000) => {
    let stopped = false;
    (async () => {
      while (!stopped && node.isConnected) {
        if (seen(node)) try { await work(); } catch (error) { report(error); }
        await sleep(ms);
      }
    })();
    return () => { stopped = true; };
  };
  const report = (error) => { if (!(error instanceof TypeError) && !error.status) console.warn(error); };

  const goTab = (id) => {
    const button = document.querySelector(`#nav [role=tab][data-tab-id="${CSS.escape(id)}"]`);
    if (button) { button.click(); window.scrollTo({ top: 0 }); }
  };

  // ---- the selected run -------------------------------------------------------------------------------------
  let selected = "";
  let bound = null;
  const run = () => selected;
  const select = (id, { quiet = false } = {}) => {
    id = id || "";
    if (id === selected) return;
    selected = id;
    const url = new URL(location.href);
    if (id) url.searchParams.set("run", id); else url.searchParams.delete("run");
    url.searchParams.delete("token");
    history.replaceState(null, "", url);
    store.set("run", id);
    if (bound && !quiet && bound.props.value !== id) { bound.props.value = id; bound.trigger("change"); }
    feed.reset(id);
    dispatchEvent(new CustomEvent("studio:run", { detail: id }));
  };
  const bindRun = (parts) => {
    bound = parts;
    parts.watch("value", () => select(parts.props.value, { quiet: true }));
    if (parts.props.value) select(parts.props.value, { quiet: true });
    else if (selected) { parts.props.value = selected; parts.trigger("change"); } // chosen before this was there
  };
  const remembered = () => store.get("run") || "";

  // ---- what happens in runs: one reading of each, shared by every widget ---------------------------------------
  const feed = (() => {
    const KEPT = 10; // runs whose points are remembered, so that going back and forth fetches nothing twice
    const TABLES = ["points", "evals", "exams", "asked", "saved"];
    const listeners = new Set();
    const known = new Map();
    let state = null;
    let overlay = [];
    const fresh = (id) => ({
      id, offset: 0, status: null, counts: null, progress: null, phases: [], warnings: [], eta: null, missing: false,
      version: 0, rewinds: 0, received: 0, logSize: 0, samplesEnd: 0, ...Object.fromEntries(TABLES.map((name) => [name, { step: [] }])),
    });
    const stateOf = (id) => {
      const found = known.get(id) || Object.assign(fresh(id), { busy: false, again: false });
      known.delete(id);
      known.set(id, found);
      for (const old of known.keys()) if (known.size > KEPT && old !== id && old !== state?.id && !overlay.includes(old)) known.delete(old);
      return found;
    };
    // A table grows at its end; what a resume repeats replaces what came after `rewind`.
    const grow = (mine, table, columns, rewind) => {
      const steps = table.step;
      if (rewind !== null && steps.length && steps[steps.length - 1] > rewind) {
        let low = 0; let high = steps.length;
        while (low < high) { const middle = (low + high) >> 1; if (steps[middle] <= rewind) low = middle + 1; else high = middle; }
        for (const column of Object.values(table)) column.length = low;
        mine.rewinds += 1;
      }
      const had = table.step.length;
      for (const [name, values] of Object.entries(columns)) {
        const column = (table[name] ||= new Array(had).fill(null));
        for (const value of values) column.push(value);
      }
    };
    const merge = (mine, part) => {
      if (part.offset < mine.offset) Object.assign(mine, fresh(mine.id), { version: mine.version, rewinds: mine.rewinds + 1 });
      for (const name of TABLES) grow(mine, mine[name], part[name], part.rewind[name]);
      mine.phases.push(...part.phases);
      mine.warnings.push(...part.warnings);
      mine.counts = part.counts || mine.counts;
      mine.progress = part.progress || mine.progress;
      if (part.status.eta_seconds !== null) mine.eta = part.status.eta_seconds;
      mine.status = part.status;
      mine.offset = part.offset;
      mine.logSize = part.log_size;
      mine.samplesEnd = part.samples_end;
      mine.received = Date.now();
      hearClock(part.status.now);
      mine.missing = false;
      mine.version += 1;
    };
    // What lies on a tab that is not open is told when the tab is opened. Looked up before anything is drawn: a look
    // in between would make the browser lay out the page again.
    const tell = (late = false) => {
      const open = new Map();
      const told = [];
      for (const item of listeners) {
        if (!item.node.isConnected) { listeners.delete(item); continue; }
        const panel = item.node.closest("[role=tabpanel]");
        if (!open.has(panel)) open.set(panel, !document.hidden && panel?.offsetParent !== null);
        if (!open.get(panel)) item.late = true;
        else if (!late || item.late) told.push(item);
      }
      for (const item of told) { item.late = false; item.tell(state); }
    };
    // Several runs are read side by side: what they bring is drawn once.
    let soon = 0;
    const tellSoon = () => { soon ||= setTimeout(() => { soon = 0; tell(); }, 40); };
    const wanted = (mine) => mine === state || overlay.includes(mine.id);
    const tick = async (mine = state) => {
      if (!mine || !mine.id) return;
      if (mine.busy) { mine.again = true; return; }
      mine.busy = true;
      try {
        let more = true;
        while (more && wanted(mine)) {
          const part = await api(`/api/metrics?run=${encodeURIComponent(mine.id)}&after=${mine.offset}`);
          merge(mine, part);
          more = part.more;
          if (wanted(mine)) tellSoon();
        }
      } catch (error) {
        if (error.status === 404) { mine.missing = true; if (wanted(mine)) tellSoon(); } else report(error);
      } finally {
        mine.busy = false;
        if (mine.again) { mine.again = false; tick(mine); }
      }
    };
    const going = (mine) => Boolean(mine && mine.status && ["queued", "starting", "running", "stopping"].includes(mine.status.state));
    const beat = async (count) => {
      if (![...listeners].some((item) => seen(item.node))) return;
      const due = [state, ...overlay.map(stateOf)].filter((mine, index, all) => mine && all.indexOf(mine) === index && (going(mine) || count % 3 === 0));
      await Promise.all(due.map((mine) => tick(mine)));
    };
    (async () => { for (let count = 1; ; count += 1) { await sleep(1000); if (state) tell(true); await beat(count); } })();
    document.addEventListener("visibilitychange", () => { if (!document.hidden) { if (state) tell(true); beat(0); } });
    addEventListener("click", (event) => { if (event.target.closest?.("[role=tab]")) setTimeout(() => { if (state) tell(true); beat(0); }, 60); });
    // Runs drawn beside the selected one; the list of runs says which.
    addEventListener("studio:overlay", (event) => {
      overlay = [...new Set(event.detail || [])];
      for (const id of overlay) if (!known.get(id)?.status) tick(stateOf(id));
      if (state) tell();
    });
    return {
      listen: (node, callback) => { listeners.add({ node, tell: callback, late: false }); if (state) callback(state); },
      reset: (id) => { state = id ? stateOf(id) : fresh(""); document.body.toggleAttribute("data-run", Boolean(id)); tell(); tick(); },
      kick: () => tick(),
      live: () => going(state),
      get state() { return state; },
      // The selected run first, then the others of the overlay that exist.
      get shown() { return state && state.id ? [state, ...overlay.filter((id) => id !== state.id).map(stateOf).filter((mine) => !mine.missing)] : []; },
      get overlay() { return overlay; },
    };
  })();

  // ---- dialog ---------------------------------------------------------------------------------------------------
  const confirm = ({ title, body, ok, cancel, danger = true }) => new Promise((done) => {
    const no = h("button", { type: "button", autofocus: true }, cancel || t("cancel"));
    const yes = h(danger ? "button.bad" : "button.good", { type: "button" }, ok || t("ok"));
    const dialog = h("dialog.studio-dialog", { "aria-labelledby": "studio-dialog-title" },
      h("h2", { id: "studio-dialog-title" }, title), h("p", {}, body), h("div.row", {}, no, yes));
    (document.querySelector(".gradio-container") || document.body).append(dialog);
    const end = (answer) => { dialog.close(); dialog.remove(); done(answer); };
    no.onclick = () => end(false);
    yes.onclick = () => end(true);
    dialog.oncancel = (event) => { event.preventDefault(); end(false); };
    dialog.showModal();
  });
  // A visible button asks; only a yes presses the hidden one that carries the event.
  const ask = async (options, target) => { if (await confirm(options)) document.querySelector(target)?.click(); };

  // ---- theme ------------------------------------------------------------------------------------------------------
  const dark = () => (store.get("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const applyTheme = () => { if (document.body.classList.contains("dark") !== dark()) document.body.classList.toggle("dark", dark()); };
  const toggleTheme = () => { store.set("theme", dark() ? "light" : "dark"); applyTheme(); dispatchEvent(new Event("studio:theme")); };
  applyTheme();
  new MutationObserver(applyTheme).observe(document.body, { attributes: true, attributeFilter: ["class"] });

  // ---- numbers ------------------------------------------------------------------------------------------------------
  const formats = new Map();
  const formatOf = (digits) => { if (!formats.has(digits)) formats.set(digits, new Intl.NumberFormat("en-US", { maximumFractionDigits: digits })); return formats.get(digits); };
  const number = (value, digits = 3) => (value === null || value === undefined ? "–" : formatOf(digits).format(value));
  const format = {
    number,
    loss: (value) => (value === null || value === undefined ? "–" : Number(value).toPrecision(3)),
    rate: (value) => (value === null || value === undefined ? "–" : value === 0 ? "0" : Number(value).toExponential(1).replace("e-", "e-")),
    bytes: (value) => {
      if (!value) return "–";
      const power = Math.min(4, Math.floor(Math.log(value) / Math.log(1024)));
      return (value / 1024 ** power).toFixed(power > 2 ? 1 : 0) + " " + ["B", "KB", "MB", "GB", "TB"][power];
    },
    seconds: (value) => {
      if (value === null || value === undefined) return "–";
      const s = Math.max(0, Math.round(value));
      if (s < 60) return t("seconds", { n: s });
      if (s < 3600) return t("minutes", { n: Math.floor(s / 60), s: String(s % 60).padStart(2, "0") });
      return t("hours", { n: Math.floor(s / 3600), m: String(Math.floor((s % 3600) / 60)).padStart(2, "0") });
    },
    ago: (unix) => {
      const s = Date.now() / 1000 - unix;
      if (s < 60) return t("ago.now");
      if (s < 3600) return t("ago.minutes", { n: Math.floor(s / 60) });
      if (s < 86400) return t("ago.hours", { n: Math.floor(s / 3600) });
      return new Date(unix * 1000).toLocaleDateString(lang());
    },
    percent: (share) => (share === null || share === undefined ? "–" : Math.round(share * 1000) / 10 + "%"),
  };

  // How far a phase without steps is. The parts of a program that are loaded first are no number for a person.
  const part = ({ done, total, label }) => (label === "modules loaded" ? t("part.libraries", { share: format.percent(Math.floor((100 * done) / total) / 100) })
    : t("now.part", { done: format.number(done), total: format.number(total) }));

  // Seconds since the engine was started, going on between two answers of the server.
  // The server's clock, from the answer that was on its way for the shortest time: a late answer sets nothing back.
  let ahead = Infinity;
  const hearClock = (now) => { const gap = Date.now() / 1000 - now; ahead = Math.abs(gap - ahead) > 30 ? gap : Math.min(ahead, gap); };
  const serverNow = () => Date.now() / 1000 - ahead;
  const elapsed = (state) => {
    const status = state.status;
    if (!status || !status.started_at) return null;
    return status.live ? Math.max(0, serverNow() - status.started_at) : status.updated_at - status.started_at;
  };
  // Asks for what a run's path gives, again only when `key` changed: for things that change rarely. Who asks while the
  // answer is on its way gets the same one, and an answer that comes late is never taken for another run's.
  const cachedRead = (path) => {
    let last = null; let answer = null;
    return (id, key) => {
      const mark = `${id}|${key}`;
      if (mark !== last) {
        last = mark;
        answer = id ? api(`${path}?run=${encodeURIComponent(id)}`).catch(() => { if (last === mark) last = null; return null; }) : Promise.resolve(null);
      }
      return answer;
    };
  };
  // All samples of the selected run so far; returns the same list until there are new ones. One reading at a time: two
  // from the same place would bring the same samples twice.
  const sampleReader = () => {
    let now = { id: null };
    const read = async (mine) => {
      let more = true;
      while (more && mine === now) {
        const part = await api(`/api/samples?run=${encodeURIComponent(mine.id)}&after=${mine.offset}`);
        if (part.offset < mine.offset) mine.list = [];
        if (part.samples.length) mine.list = mine.list.concat(part.samples);
        more = part.more && part.offset > mine.offset;
        mine.offset = part.offset;
      }
    };
    return async (state) => {
      if (state.id !== now.id) now = { id: state.id, offset: 0, list: [], reading: null };
      const mine = now;
      if (mine.reading) await mine.reading;
      const behind = mine.id && (state.samplesEnd > mine.offset || state.offset < mine.offset);
      if (behind) await (mine.reading ||= read(mine).finally(() => { mine.reading = null; }));
      return mine.list;
    };
  };

  // Whether this page has been told to teach: a button may be pressed before the widget that shows the lesson is there.
  let hasTaught = false;
  const taught = () => hasTaught;
  const teaching = () => { hasTaught = true; dispatchEvent(new Event("studio:teach")); };
  const teachingFailed = () => {
    hasTaught = false;
    dispatchEvent(new Event("studio:teach-failed"));
    if (!selected) select(foundLate);
  };
  // What the page load found may be heard of late: it replaces no run that was chosen meanwhile, and no lesson begun.
  let foundLate = "";
  const attached = (found) => {
    if (!found || selected) return;
    if (hasTaught) foundLate = found; else select(found);
  };
  const bindFound = ({ props, watch }) => {
    const heard = () => window.Studio.attached(props.value);
    watch("value", heard);
    heard();
  };

  const script = (path) => ((script.cache ||= {})[path] ||= new Promise((done, failed) => {
    const node = h("script", { src: root() + path });
    node.onload = done;
    node.onerror = failed;
    document.head.append(node);
  }));
  const mount = (name, parts) => import(`${root()}/studio-assets/${name}.js`).then((module) => module.mount(parts)).catch((error) => console.error(error));

  // ---- top bar ----------------------------------------------------------------------------------------------------
  const topBar = (element) => {
    const live = element.querySelector(".live");
    const theme = element.querySelector(".theme");
    theme.setAttribute("aria-label", t("theme"));
    theme.title = t("theme");
    theme.onclick = toggleTheme;
    element.querySelector(".lang").setAttribute("aria-label", t("language"));
    for (const button of element.querySelectorAll(".lang button")) {
      button.setAttribute("aria-pressed", String(button.dataset.lang === lang()));
      button.onclick = () => { store.set("lang", button.dataset.lang); const url = new URL(location.href); url.searchParams.delete("lang"); history.replaceState(null, "", url); location.reload(); };
    }
    element.querySelector(".brand").onclick = (event) => { event.preventDefault(); goTab("home"); };
    poll(element, async () => {
      try {
        const runs = await api("/api/runs?live=1");
        const first = runs[0];
        live.hidden = !first;
        document.title = first && first.max_steps ? `${Math.round((100 * first.step) / first.max_steps)}% · ${first.name}` : "Crucible 丹炉";
        live.className = "live";
        if (!first) return;
        live.replaceChildren(h("span.dot", { "aria-hidden": "true" }), h("span.what", {}, first.name),
          h("span.num", {}, first.max_steps ? `${first.step} / ${first.max_steps}` : t("state." + first.state)));
        live.onclick = () => { select(first.id); goTab("monitor"); };
      } catch (error) {
        live.hidden = false;
        live.className = "live lost";
        live.replaceChildren(h("span.dot", { "aria-hidden": "true" }), t("offline"));
        live.onclick = null;
      }
    }, 2000);
  };

  // Runs once when the page is loaded: opens the tab of the address and keeps the address current.
  const started = () => {
    const tabs = [...document.querySelectorAll("#nav > .tab-wrapper [role=tab]")];
    // Whoever opens a tab, the visitor or the server: it is seen from its beginning, and the address names it.
    let shown = tabs.find((tab) => tab.getAttribute("aria-selected") === "true");
    const turned = () => {
      const tab = [...document.querySelectorAll("#nav > .tab-wrapper [role=tab][aria-selected=true]")].find((one) => one.dataset.tabId);
      if (!tab || tab.dataset.tabId === shown?.dataset.tabId) return;
      shown = tab;
      window.scrollTo({ top: 0 });
      tab.scrollIntoView({ block: "nearest", inline: "nearest" }); // in the bar of a narrow window
      history.replaceState(null, "", location.pathname + location.search + "#" + tab.dataset.tabId);
    };
    new MutationObserver(turned).observe(document.querySelector("#nav > .tab-wrapper"), { subtree: true, attributes: true, attributeFilter: ["aria-selected"] });
    const wanted = location.hash.slice(1);
    // Chat and Export begin with the chosen run, so that they wait until it is known which that is.
    if (["chat", "export"].includes(wanted)) {
      let opened = false;
      const open = () => { if (!opened) { opened = true; goTab(wanted); } };
      addEventListener("studio:run", () => setTimeout(open, 50), { once: true });
      setTimeout(open, 2000);
    } else if (wanted) goTab(wanted);
    addEventListener("hashchange", () => goTab(location.hash.slice(1)));  // a link to another tab of this very page
    return remembered();
  };

  // A start is seen at once, however busy the server is: until the run is there, a question or a refusal.
  addEventListener("click", (event) => {
    const button = event.target.closest?.("#train-start");
    if (!button || button.hasAttribute("data-busy")) return;
    const begun = Date.now();
    const end = () => { button.removeAttribute("data-busy"); clearInterval(watch); removeEventListener("studio:run", end); };
    const watch = setInterval(() => { if (Date.now() - begun > 20_000 || document.querySelector("dialog[open], .toast-body, .field.wrong")) end(); }, 150);
    button.setAttribute("data-busy", "");
    addEventListener("studio:run", end);
  });

  // Gradio's drop-down would open again after the Tab key has left it: its own handler must not see that key.
  addEventListener("keydown", (event) => {
    if (event.key === "Tab" && event.target.matches?.("input[role=combobox]")) event.stopPropagation();
  }, true);
  addEventListener("keydown", (event) => {
    if (event.altKey && /^[1-9]$/.test(event.key)) {
      const tab = document.querySelectorAll("#nav > .tab-wrapper [role=tablist] [role=tab]")[+event.key - 1];
      if (tab) { event.preventDefault(); tab.click(); tab.focus(); }
    }
    if ((event.ctrlKey || event.metaKey) && event.key === "Enter") {
      const panel = [...document.querySelectorAll("#nav > [role=tabpanel]")].find((node) => node.offsetParent !== null);
      [...(panel?.querySelectorAll(".primary-action") || [])].find((node) => node.offsetParent !== null)?.click();
    }
  });

  window.Studio = { root, api, t, h, render, poll, seen, goTab, run, select, bindRun, feed, confirm, ask, format, script, mount, topBar, started, store, lang, sleep, toggleTheme, taught, teaching, teachingFailed, attached, bindFound, elapsed, serverNow, part, cachedRead, sampleReader };
})();
