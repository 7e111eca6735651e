// Fetches this page again every few seconds and changes only what differs, so that focus, selection and scrolling stay.
"use strict";

(() => {
  const EVERY_MS = 3000;
  const live = document.getElementById("live");
  const state = document.getElementById("state");
  const said = document.getElementById("said");
  const pause = document.getElementById("pause");
  const lost = document.getElementById("lost");
  let paused = false;
  let timer = 0;
  let seen = null;

  const keyOf = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("data-key") : null);

  function sameKind(a, b) {
    return a.nodeType === b.nodeType && a.nodeName === b.nodeName;
  }

  function morph(have, want) {
    if (have.nodeType === Node.TEXT_NODE) {
      if (have.data !== want.data) have.data = want.data;
      return;
    }
    if (have.nodeType !== Node.ELEMENT_NODE) return;
    for (const { name } of [...have.attributes]) {
      if (!want.hasAttribute(name) && !(name === "open" && have.nodeName === "DETAILS") && name !== "hidden" && name !== "class") have.removeAttribute(name);
    }
    for (const { name, value } of [...want.attributes]) {
      if (have.getAttribute(name) !== value && !(have.id === "zone")) have.setAttribute(name, value);
    }
    morphChildren(have, want);
  }

  function morphChildren(have, want) {
    const byKey = new Map();
    for (const node of have.childNodes) if (keyOf(node) !== null) byKey.set(keyOf(node), node);
    const grows = byKey.size > 0;
    let next = have.firstChild;
    for (const node of [...want.childNodes]) {
      const key = keyOf(node);
      const known = key !== null ? byKey.get(key) : undefined;
      if (known && sameKind(known, node)) {
        byKey.delete(key);
        if (known === next) next = next.nextSibling;
        else have.insertBefore(known, next);
        morph(known, node);
      } else if (key === null && next && keyOf(next) === null && sameKind(next, node)) {
        const here = next;
        next = next.nextSibling;
        morph(here, node);
      } else {
        const made = document.importNode(node, true);
        if (grows && key !== null && made.nodeName === "TR") made.classList.add("fresh");
        have.insertBefore(made, next);
      }
    }
    while (next) {
      const gone = next;
      next = next.nextSibling;
      gone.remove();
    }
  }

  function show(text, fresh) {
    const focused = document.activeElement;
    const found = new DOMParser().parseFromString(text, "text/html").getElementById("live");
    if (!found) return;
    if (!fresh) {
      const problem = found.querySelector("#problem .trouble");
      tell(problem ? problem.textContent : "The ledger cannot be read at the moment.");
      return;
    }
    morph(live, found);
    if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
    offerZone();
  }

  function tell(text) {
    lost.hidden = !text;
    if (lost.textContent !== text) lost.textContent = text;
    state.classList.toggle("off", Boolean(text));
  }

  async function refresh() {
    window.clearTimeout(timer);
    if (paused || document.hidden) return;
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" }, cache: "no-store" });
      const text = await answer.text();
      if (answer.ok) tell("");
      if (text !== seen || !answer.ok) show(text, answer.ok || live.querySelector("#problem") !== null);
      seen = answer.ok ? text : null;
      said.textContent = answer.ok ? `Live, ${new Date().toLocaleTimeString()}` : "Waiting for the ledger";
    } catch {
      seen = null;
      tell("Spendmeter does not answer; what is shown may be old. Trying again.");
      said.textContent = "Not connected";
    }
    timer = window.setTimeout(refresh, EVERY_MS);
  }

  function offerZone() {
    const link = document.getElementById("zone");
    const here = Intl.DateTimeFormat().resolvedOptions().timeZone;
    const asked = new URLSearchParams(location.search);
    if (!link || !here || asked.has("tz") || ["UTC", "Etc/UTC"].includes(here)) return;
    asked.set("tz", here);
    link.href = `${location.pathname}?${asked}`;
    link.textContent = `Use ${here}.`;
    link.hidden = false;
  }

  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Resume" : "Pause";
    state.classList.toggle("paused", paused);
    if (paused) said.textContent = "Paused";
    else refresh();
  });
  document.addEventListener("visibilitychange", refresh);
  state.hidden = false;
  offerZone();
  timer = window.setTimeout(refresh, EVERY_MS);
})();
