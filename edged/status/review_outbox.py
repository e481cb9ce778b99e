"""The script that brings labels to the device and loses none: each is kept in the browser until the device has it."""

from __future__ import annotations

OUTBOX_SCRIPT = """
// on.state(why, count): why is "", "sending", "lost" or "login". on.sent(entry, reply). on.refused(entry, sentence).
window.edgedOutbox = function (device, on) {
  "use strict";
  const PREFIX = "edged-review ";
  const waiting = new Map();
  let flying = "", timer = 0, wait = 0, number = 0, safe = true;

  function keys() { return Array.from(waiting.keys()).sort(); }
  function drop(key) {
    waiting.delete(key);
    try { localStorage.removeItem(PREFIX + key); } catch (error) { safe = false; }
  }
  // Of a page that was closed or crashed. Another tab may send them as well; the device keeps each once.
  function adopt() {
    try {
      Object.keys(localStorage).filter(key => key.startsWith(PREFIX)).forEach(key => {
        const entry = JSON.parse(localStorage.getItem(key));
        if (entry && entry.device === device) waiting.set(key.slice(PREFIX.length), entry);
      });
    } catch (error) { safe = false; }
  }
  function add(id, body) {
    number += 1;
    const random = Math.random().toString(36).slice(2, 8);
    const key = [String(Date.now()).padStart(15, "0"), String(number).padStart(6, "0"), random].join("-");
    const entry = {device: device, id: id, body: body};
    waiting.set(key, entry);
    try { localStorage.setItem(PREFIX + key, JSON.stringify(entry)); } catch (error) { safe = false; }
    wait = 0;
    send();
    return key;
  }
  // True if it will never be sent. What was tried may have arrived, though its reply did not: it stays.
  function withdraw(key) {
    if (!waiting.has(key) || waiting.get(key).tried) return false;
    drop(key);
    return true;
  }
  function later(why) {
    wait = Math.min(15000, wait ? wait * 2 : 1000);
    on.state(why, waiting.size);
    clearTimeout(timer);
    timer = setTimeout(send, wait);
  }
  async function send() {
    if (flying) return;
    clearTimeout(timer);
    let why = "";
    while (!why && waiting.size) {
      flying = keys()[0];
      why = await deliver(flying, waiting.get(flying));
    }
    flying = "";
    if (why) { later(why); return; }
    wait = 0;
    on.state("", 0);
  }
  async function deliver(key, entry) {
    let reply, answer;
    entry.tried = true;
    const abort = new AbortController(), clock = setTimeout(() => abort.abort(), 15000);
    try {
      reply = await fetch("/api/samples/" + entry.id + "/label", {
        method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(entry.body),
        cache: "no-store", signal: abort.signal});
      answer = await reply.json();
    } catch (error) { return "lost"; } finally { clearTimeout(clock); }
    if (reply.status === 401 || reply.status === 403) return "login";
    if (reply.status >= 500 || reply.status === 429 || reply.status === 408) return "lost";
    drop(key);
    if (reply.ok) on.sent(entry, answer); else on.refused(entry, String(answer.error || reply.status));
    return "";
  }
  window.addEventListener("online", () => { wait = 0; send(); });
  window.addEventListener("beforeunload", event => { if (waiting.size && !safe) event.preventDefault(); });
  adopt();
  return {add: add, withdraw: withdraw, send: send};
};
"""
