"""The script with what the others need: labels and answers in words, which one is suggested, asking the device."""

from __future__ import annotations

WORDS_SCRIPT = """
window.edgedWords = (function () {
  "use strict";
  function node(name, text, parent) {
    const made = document.createElement(name);
    made.textContent = text;
    if (parent) parent.appendChild(made);
    return made;
  }
  function words(label) {
    if (label.unusable) return "unusable";
    if (!label.boxes) return label.label;
    const counts = new Map();
    label.boxes.forEach(box => counts.set(box.label, (counts.get(box.label) || 0) + 1));
    return Array.from(counts, ([name, n]) => (n > 1 ? n + " x " : "") + (name || "no class yet")).join(", ")
      || "nothing there";
  }
  // A model's answer as the label that it would be; null if it is of the other kind.
  function answered(opinion, boxed) {
    if (!opinion) return null;
    if (!boxed) return opinion.label ? {label: opinion.label} : null;
    if (!opinion.boxes) return null;
    return {boxes: opinion.boxes.map(box => (
      {label: box.label, left: box.left, top: box.top, right: box.right, bottom: box.bottom}))};
  }
  // Somebody's word before a model's, and the cloud's before the edge's.
  function suggested(one, boxed) {
    const last = one.said[one.said.length - 1] || one.sample.label;
    const said = one.mine || (last ? last.label : null);
    if (said && (said.unusable || Boolean(said.boxes) === boxed)) return said;
    return answered(one.sample.cloud, boxed) || answered(one.sample.edge, boxed);
  }
  function opinions(one, boxed) {
    return ["edge", "cloud"].filter(by => one.sample[by]).map(by => {
      const opinion = one.sample[by], label = answered(opinion, boxed) || {label: opinion.label};
      return "the " + by + " says " + words(label) + " (" + Math.round(opinion.score * 100) + " %, " +
        opinion.model + ")";
    });
  }
  async function ask(path) {
    const reply = await fetch(path, {cache: "no-store"});
    if (reply.status === 401) window.dispatchEvent(new Event("edged-login"));
    const answer = await reply.json();
    if (!reply.ok) throw new Error(answer.error || String(reply.status));
    return answer;
  }
  // Kept until the browser or the tab is closed.
  function session(key, value) {
    try {
      if (value === undefined) return sessionStorage.getItem("edged-review-" + key) || "";
      sessionStorage.setItem("edged-review-" + key, value);
    } catch (error) { /* then it is asked for again */ }
    return "";
  }
  // Three times as large, around the chosen or the first box or the middle; and back.
  function magnify(stage) {
    const look = stage.querySelector("svg .chosen .box") || stage.querySelector("svg .box") || stage;
    const at = look.getBoundingClientRect(), all = stage.getBoundingClientRect();
    const x = (at.left + at.width / 2 - all.left) / all.width, y = (at.top + at.height / 2 - all.top) / all.height;
    if (!stage.classList.toggle("large")) return;
    stage.scrollTo(x * stage.scrollWidth - stage.clientWidth / 2, y * stage.scrollHeight - stage.clientHeight / 2);
  }
  return {node, ask, session, magnify, words, answered, suggested, opinions};
})();
"""
