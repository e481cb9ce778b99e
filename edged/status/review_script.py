"""The script of the review page: queue, pictures ahead, keys and buttons. It writes text, never HTML."""

from __future__ import annotations

REVIEW_SCRIPT = """
(function () {
  "use strict";
  const AHEAD = 3, BEHIND = 1, FEW = 8, PAGE = 50, BUTTONS = 60;
  const $ = id => document.getElementById(id);
  const main = document.querySelector("main"), stage = $("stage"), told = $("told");
  const {node, ask, session, magnify, words, suggested, answered, opinions} = window.edgedWords;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const pictures = new Map(), known = new Set(), done = [];
  let services = [], service = null, items = [], at = 0, author = "", loading = false, exhausted = false, retry = 0;

  function tell(text, bad) { told.textContent = text; told.classList.toggle("warning", Boolean(bad)); }
  // What must not be missed stays until somebody has seen it.
  function news(text, one) {
    const line = node("p", text + " ", $("news"));
    line.className = "told warning";
    const gone = (label, act) => {
      const button = node("button", label, line);
      button.type = "button";
      button.addEventListener("click", () => { line.remove(); act(); stage.focus(); });
    };
    if (one) gone("Show it", () => { if (items.includes(one)) { at = items.indexOf(one); show(); } });
    gone("Seen", () => {});
  }
  function item() { return items[at] || null; }
  function boxed() { return service !== null && service.task === "detection"; }
  function expired(more) {
    $("link").hidden = false;
    $("link").textContent = "Your login has ended. " + more;
    node("a", "Log in", $("link")).href = "/review";
  }
  window.addEventListener("edged-login", () => { if ($("link").hidden) expired(""); });

  const outbox = window.edgedOutbox(main.dataset.device, {
    state: (why, count) => {
      const labels = (count === 1 ? "1 label waits" : count + " labels wait") + " in this browser and will be sent ";
      $("link").hidden = why !== "lost";
      $("link").textContent = "The device does not answer. " + labels + "by itself. You can go on.";
      if (why === "login") expired(labels + "when you are logged in again. ");
    },
    sent: (entry, reply) => {
      const one = items.find(other => other.id === entry.id);
      if (one) hear(one, reply.said);
      if (!reply.others.length) return;
      const other = reply.others[reply.others.length - 1], newest = reply.said[reply.said.length - 1];
      news("While " + entry.body.author + " said " + words(entry.body.label) + ", " + other.author + " said " +
        words(other.label) + " about the same picture. The newest counts: " + words(newest.label) +
        ", by " + newest.author + ". Both are kept.", one);
    },
    refused: (entry, why) => {
      const one = items.find(other => other.id === entry.id);
      if (one) one.mine = null;
      news("The label " + words(entry.body.label) + " was not taken: " + why, one);
      render();
    }
  });
  const boxes = window.edgedBoxes(svg, panel);

  // --- the queue ---
  async function start() {
    try {
      services = await ask("/review/services.json");
    } catch (error) {
      tell("The samples cannot be listed now: " + error.message + ". Trying again.", true);
      setTimeout(start, 3000);
      return;
    }
    const select = $("service");
    select.replaceChildren();
    services.forEach(one => { node("option", one.name + " (" + one.waiting + ")", select).value = one.name; });
    const wanted = session("service"), busiest = services.slice().sort((a, b) => b.waiting - a.waiting)[0];
    if (busiest) open((services.find(one => one.name === wanted && one.waiting) || busiest).name);
    else { tell("No service runs here yet."); render(); }
  }
  function open(name) {
    service = services.find(one => one.name === name) || null;
    $("service").value = name;
    session("service", name);
    items = [];
    at = 0;
    done.length = 0;
    known.clear();
    pictures.clear();
    exhausted = false;
    tell("");
    render();
    more();
  }
  // Skipped pictures stay at the head of the device's queue, so ask beyond them.
  async function more(again) {
    if (loading || (exhausted && !again) || !service) return;
    loading = true;
    const of = service, limit = PAGE + items.filter(one => !one.mine).length;
    try {
      const found = await ask("/review/queue.json?service=" + encodeURIComponent(of.name) + "&limit=" + limit);
      if (of !== service) return;
      const empty = !item(), fresh = found.filter(sample => !known.has(sample.id));
      fresh.forEach(sample => {
        known.add(sample.id);
        items.push({id: sample.id, sample: sample, said: [], mine: null, key: "", failed: false});
      });
      exhausted = found.length < limit;
      if (retry) tell("");
      retry = 0;
      if (empty) show(); else { preload(); counts(); }
    } catch (error) {
      retry = Math.min(15000, retry ? retry * 2 : 1000);
      if (of === service) tell("More pictures cannot be fetched now: " + error.message + ". Trying again.", true);
      setTimeout(more, retry);
    } finally {
      loading = false;
      if (of !== service) more();
    }
  }
  function picture(one) {
    let img = pictures.get(one.id);
    if (!img) {
      img = new Image();
      img.decoding = "async";
      img.draggable = false;
      img.onload = () => {
        img.classList.toggle("small", Math.max(img.naturalWidth, img.naturalHeight) < 160);
        if (item() === one) render();
      };
      img.onerror = () => {
        one.failed = true;
        if (item() !== one) return;
        render();
        setTimeout(() => { if (item() === one) show(); }, 5000);
      };
      img.src = "/review/samples/" + one.id + "/picture";
      pictures.set(one.id, img);
    }
    return img;
  }
  function preload() {
    const wanted = items.slice(Math.max(0, at - BEHIND), at + AHEAD + 1);
    wanted.forEach(picture);
    Array.from(pictures.keys()).forEach(id => {
      if (!wanted.some(one => one.id === id)) pictures.delete(id);
    });
    if (items.length - at < FEW) more();
  }
  async function look(one) {
    try {
      const found = await ask("/review/samples/" + one.id + ".json");
      one.sample = found.sample;
      const last = found.said[found.said.length - 1];
      hear(one, found.said);
      if (last && item() === one && !one.mine) {
        const seen = suggestion(one);
        if (boxed() && !boxes.touched() && seen && seen.boxes) boxes.load(seen.boxes, false);
        tell(last.author + " has labelled this picture in the meantime: " + words(last.label) + ".", true);
      }
    } catch (error) { /* the queue has told what is needed; a label tells again */ }
  }
  function hear(one, said) {
    one.said = said;
    if (item() === one) render();
  }

  // --- one picture ---
  function suggestion(one) { return suggested(one, boxed()); }
  function show() {
    const one = item();
    if (one) {
      const says = ["edge", "cloud"].flatMap(by => ((one.sample[by] || {}).boxes || []).map(
        box => Object.assign({by: by}, box)));
      const first = boxed() ? (suggestion(one) || {}).boxes || [] : [];
      if (one.failed) pictures.delete(one.id);
      one.failed = false;
      boxes.show(one.sample.width || 1, one.sample.height || 1, first, boxed() ? says : []);
      look(one);
    }
    preload();
    render();
  }
  function visible(one) {
    const img = pictures.get(one.id);
    return Boolean(img && img.complete && img.naturalWidth);
  }
  function render() {
    const one = item();
    if (!one) {
      stage.replaceChildren(node("p", exhausted ? "Nothing more waits for a label here." : "…"));
    } else {
      const img = picture(one), shown = visible(one);
      img.alt = [one.sample.group && "Board " + one.sample.group, ...opinions(one, boxed())].filter(Boolean).join("; ")
        || "Picture to label";
      stage.setAttribute("aria-label", img.alt);
      const inside = boxed() ? [img, svg] : [img];
      if (!shown) inside.push(node("p", one.failed ? "This picture cannot be shown now." : "The picture comes …"));
      if (inside.length !== stage.childNodes.length || inside.some((child, i) => child !== stage.childNodes[i])) {
        stage.replaceChildren(...inside);
      }
    }
    svg.setAttribute("aria-hidden", "true");
    panel();
  }
  function panel() {
    const one = item(), usable = Boolean(one && visible(one));
    const said = one ? suggestion(one) : null;
    facts(one);
    labels(usable, said);
    list();
    let text = "Confirm";
    if (boxed()) text = one && (said || boxes.touched()) ? "Save: " + words({boxes: boxes.all()}) : "Save";
    else if (said) text = "Confirm: " + words(said);
    $("confirm").lastChild.textContent = text;
    $("confirm").disabled = !usable || !(said || (boxed() && boxes.touched()));
    ["edge", "cloud"].forEach(by => {
      const label = one && answered(one.sample[by], boxed());
      $(by).hidden = !label;
      $(by).disabled = !usable;
      $(by).classList.add(by);
      if (label) $(by).lastChild.textContent = (by === "edge" ? "Edge: " : "Cloud: ") + words(label);
    });
    $("boxes").hidden = !boxed();
    ["unusable", "add", "nothing"].forEach(id => { $(id).disabled = !usable; });
    $("undo").disabled = !done.length;
    $("back").disabled = at === 0;
    $("on").disabled = !one;
    counts();
  }
  function counts() {
    const left = items.filter(one => !one.mine).length;
    $("count").textContent = service
      ? left + (exhausted ? "" : " or more") + " wait, " + (items.length - left) + " labelled" : "";
  }
  function facts(one) {
    const lines = $("facts");
    lines.replaceChildren();
    $("said").replaceChildren();
    if (!one) return;
    const when = new Date(one.sample.captured_at * 1000).toLocaleString();
    const about = [one.sample.group && "board " + one.sample.group, when, one.sample.source].filter(Boolean);
    node("div", about.join(" · "), lines).className = "soft";
    opinions(one, boxed()).forEach(text => node("div", text, lines));
    one.said.forEach(record => node("div", record.author + " said " + words(record.label) + ", "
      + new Date(record.at * 1000).toLocaleString(), $("said")).className = "soft");
    if (one.mine) node("strong", "You said " + words(one.mine), $("said"));
  }
  function labels(usable, said) {
    const group = $("labels"), names = $("names");
    const current = boxed() ? boxes.label() : said ? said.label : "", all = service ? service.labels : [];
    const key = JSON.stringify([all, current, usable, boxed()]);
    if (group.dataset.key === key) return;
    group.dataset.key = key;
    group.replaceChildren();
    names.replaceChildren();
    all.forEach((label, index) => {
      node("option", "", names).value = label;
      if (index >= BUTTONS) return;
      const button = node("button", "", group);
      button.type = "button";
      if (index < 10) {
        const hint = node("kbd", String((index + 1) % 10), button);
        hint.setAttribute("aria-hidden", "true");
      }
      node("span", label, button);
      if (boxed()) button.setAttribute("aria-pressed", String(label === current));
      button.disabled = !usable;
      button.addEventListener("click", () => { name(label); stage.focus(); });
    });
  }
  function list() {
    const lines = $("list");
    lines.replaceChildren();
    if (!boxed() || !item()) return;
    boxes.all().forEach((box, index) => {
      const line = node("li", "", lines), what = (index + 1) + " " + (box.label || "no class yet");
      const where = [box.left, box.top, box.right, box.bottom].map(Math.round).join(", ");
      const pick = node("button", what + " · " + where, line);
      const away = node("button", "✕", line);
      pick.type = away.type = "button";
      pick.setAttribute("aria-pressed", String(index === boxes.chosen()));
      away.setAttribute("aria-label", "Remove box " + what);
      pick.addEventListener("click", () => { boxes.choose(index); stage.focus(); });
      away.addEventListener("click", () => { boxes.remove(index); stage.focus(); });
    });
  }

  // --- what a person does ---
  function say(label) {
    const one = item();
    if (!one) return;
    if (!author) { identify(); return; }
    if (!visible(one)) { tell("Wait until the picture is here: nobody can label what is not seen.", true); return; }
    if ((label.boxes || []).some(box => !box.label)) { tell("A box has no class yet: choose one.", true); return; }
    one.mine = label;
    one.key = outbox.add(one.id, {label: label, author: author, seen: one.said.length});
    done.push(one);
    tell(words(label) + (one.sample.group ? " (board " + one.sample.group + ")" : ""));
    let next = at + 1;
    while (next < items.length && items[next].mine) next += 1;
    at = next;
    show();
    stage.focus();
  }
  function name(label) { if (boxed()) boxes.name(label); else say({label: label}); }
  function confirm() {
    const one = item();
    if (!one || $("confirm").disabled) return;
    const said = suggestion(one);
    if (boxed() && (boxes.touched() || !(said && said.unusable))) say({boxes: boxes.all()});
    else say(said);
  }
  function take(by) {
    const label = item() && answered(item().sample[by], boxed());
    if (!label) return;
    if (boxed()) boxes.load(label.boxes, true); else say(label);
  }
  function go(by) {
    const to = at + by;
    if (to < 0 || to > items.length || (to === items.length && !exhausted)) return;
    at = to;
    tell("");
    show();
  }
  function undo() {
    const one = done.pop();
    if (!one) return;
    const unsent = outbox.withdraw(one.key);
    at = items.indexOf(one);
    const was = words(one.mine);
    show();
    if (unsent) one.mine = null;
    tell(unsent ? was + " is taken back; it had not been sent."
      : "Say it anew: the newest label counts. Until then you said " + was + ".");
    render();
  }
  function identify() { $("who").hidden = false; $("author").value = author; $("author").focus(); }

  const keys = {
    Enter: confirm, u: () => say({unusable: true}), z: undo, e: () => take("edge"), c: () => take("cloud"),
    n: () => $("name").focus(), x: () => { if (boxed()) say({boxes: []}); },
    f: () => magnify(stage), ArrowRight: () => go(1), ArrowLeft: () => go(-1)
  };
  document.addEventListener("keydown", event => {
    const target = event.target;
    if (event.defaultPrevented || event.metaKey || event.altKey) return;
    if (target.matches("input,select,textarea")) { if (event.key === "Escape") stage.focus(); return; }
    if ((event.key === "Enter" || event.key === " ") && target.closest("button,a,summary")) return;
    const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;  // Caps Lock
    if (boxed() && item() && visible(item()) && boxes.key(event, pressed)) { event.preventDefault(); return; }
    if (event.ctrlKey || (event.repeat && !event.key.startsWith("Arrow"))) return;
    const number = /^[0-9]$/.test(event.key) ? (Number(event.key) + 9) % 10 : -1;
    if (number >= 0 && service && service.labels[number] !== undefined) name(service.labels[number]);
    else if (Object.hasOwn(keys, pressed)) keys[pressed]();
    else return;
    event.preventDefault();
  });
  function press(id, act) { $(id).addEventListener("click", () => { act(); if (id !== "me") stage.focus(); }); }
  press("confirm", confirm);
  press("edge", () => take("edge"));
  press("cloud", () => take("cloud"));
  press("unusable", keys.u);
  press("undo", undo);
  press("larger", keys.f);
  press("back", () => go(-1));
  press("on", () => go(1));
  press("add", () => boxes.add());
  press("nothing", keys.x);
  $("service").addEventListener("change", event => { open(event.target.value); stage.focus(); });
  $("another").addEventListener("submit", event => {
    event.preventDefault();
    const label = $("name").value.trim();
    if (!label || !service) return;
    $("name").value = "";
    if (!service.labels.includes(label)) service.labels.push(label);
    name(label);
    if (author) stage.focus();
  });
  $("who").addEventListener("submit", event => {
    event.preventDefault();
    const given = $("author").value.trim();
    if (given) known_as(given);
  });
  function known_as(given) {
    author = given;
    session("author", given);
    $("who").hidden = true;
    const button = node("button", "You are " + given);
    button.type = "button";
    button.addEventListener("click", identify);
    $("me").replaceChildren(button);
    stage.focus();
  }
  const before = session("author");
  if (before) known_as(before); else identify();
  setInterval(() => { if (!item() && !document.hidden) more(true); }, 5000);
  outbox.send();
  start();
})();
"""
