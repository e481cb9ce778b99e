"""The script that draws and moves boxes over a picture: mouse, pen, finger (pointer events) and keyboard alike."""

from __future__ import annotations

BOXES_SCRIPT = """
// Boxes are {label, left, top, right, bottom} in pixels of the stored picture. changed() after each change or choice.
window.edgedBoxes = function (svg, changed) {
  "use strict";
  const NS = "http://www.w3.org/2000/svg", TAP = 5;  // CSS pixels that a finger may slip
  let width = 1, height = 1, boxes = [], says = [], chosen = -1, label = "", drag = null, touched = false;

  function make(name, attributes, parent) {
    const node = document.createElementNS(NS, name);
    Object.keys(attributes).forEach(key => node.setAttribute(key, attributes[key]));
    return parent.appendChild(node);
  }
  function frame(box) {
    return {x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top};
  }
  // Picture pixels of one CSS pixel.
  function unit() { const m = svg.getScreenCTM(); return m && m.a ? 1 / m.a : 1; }
  function point(event) {
    const m = svg.getScreenCTM();
    return m ? new DOMPoint(event.clientX, event.clientY).matrixTransform(m.inverse()) : new DOMPoint(0, 0);
  }
  function within(value, most) { return Math.min(most, Math.max(0, value)); }
  function tidy(value) { return Math.round(value * 10) / 10; }
  function corners(box) {
    return [["left", "top"], ["right", "top"], ["left", "bottom"], ["right", "bottom"]].map(
      sides => ({sides: sides, x: box[sides[0]], y: box[sides[1]]}));
  }
  function draw() {
    svg.replaceChildren();
    const u = unit();
    says.forEach(one => make("rect", Object.assign(frame(one), {class: "says " + one.by}), svg));
    boxes.forEach((box, index) => {
      const group = make("g", index === chosen ? {class: "chosen"} : {}, svg);
      make("rect", Object.assign(frame(box), {class: "halo"}), group);
      make("rect", Object.assign(frame(box), {class: "box"}), group);
      const above = box.top > 18 * u;
      const caption = make("text", {x: box.left, y: above ? box.top - 5 * u : box.bottom + 16 * u,
                                    "font-size": 14 * u}, group);
      caption.textContent = (index + 1) + " " + box.label;
      if (index === chosen) corners(box).forEach(
        at => make("circle", {cx: at.x, cy: at.y, r: 6 * u, class: "corner"}, group));
    });
  }
  function update() { draw(); changed(); }
  function choose(index) { chosen = index >= 0 && index < boxes.length ? index : -1; update(); }
  function inside(box, p) { return p.x >= box.left && p.x < box.right && p.y >= box.top && p.y < box.bottom; }
  function area(box) { return (box.right - box.left) * (box.bottom - box.top); }
  function smallestAt(p) {
    let best = -1;
    boxes.forEach((box, i) => { if (inside(box, p) && (best < 0 || area(box) < area(boxes[best]))) best = i; });
    return best;
  }
  function cornerAt(p, reach) {
    if (chosen < 0) return null;
    const near = corners(boxes[chosen]).map(at => ({at: at, far: Math.hypot(at.x - p.x, at.y - p.y)}));
    near.sort((a, b) => a.far - b.far);
    return near[0].far <= reach ? near[0].at : null;
  }

  function down(event) {
    if (!event.isPrimary || event.button !== 0) return;
    const p = point(event), reach = (event.pointerType === "mouse" ? 9 : 22) * unit(), corner = cornerAt(p, reach);
    let kind = "draw";
    if (corner) kind = "corner"; else if (chosen >= 0 && inside(boxes[chosen], p)) kind = "move";
    drag = {kind: kind, from: p, x: event.clientX, y: event.clientY, id: event.pointerId, moved: false,
            before: boxes.map(box => Object.assign({}, box)), was: chosen, touched: touched,
            sides: corner ? corner.sides : null};
    try { svg.setPointerCapture(event.pointerId); } catch (error) { /* it has gone already */ }
  }
  function move(event) {
    if (!drag || event.pointerId !== drag.id) return;
    if (!drag.moved && Math.hypot(event.clientX - drag.x, event.clientY - drag.y) < TAP) return;
    const p = point(event);
    p.x = within(p.x, width);
    p.y = within(p.y, height);
    if (!drag.moved && drag.kind === "draw") {
      const x = within(drag.from.x, width), y = within(drag.from.y, height);
      drag.from = {x: x, y: y};
      boxes.push({label: label, left: x, top: y, right: x, bottom: y});
      chosen = boxes.length - 1;
    }
    drag.moved = touched = true;
    const box = boxes[chosen];
    if (drag.kind === "draw") span(box, drag.from.x, p.x, drag.from.y, p.y);
    else if (drag.kind === "move") shift(box, drag.before[chosen], p.x - drag.from.x, p.y - drag.from.y);
    else {
      const old = drag.before[chosen];
      const other = {x: drag.sides[0] === "left" ? old.right : old.left,
                     y: drag.sides[1] === "top" ? old.bottom : old.top};
      span(box, other.x, p.x, other.y, p.y);
    }
    draw();
  }
  function span(box, x1, x2, y1, y2) {
    box.left = tidy(Math.min(x1, x2));
    box.right = tidy(Math.max(x1, x2));
    box.top = tidy(Math.min(y1, y2));
    box.bottom = tidy(Math.max(y1, y2));
  }
  function shift(box, old, dx, dy) {
    dx = Math.min(width - old.right, Math.max(-old.left, dx));
    dy = Math.min(height - old.bottom, Math.max(-old.top, dy));
    box.left = tidy(old.left + dx);
    box.right = tidy(old.right + dx);
    box.top = tidy(old.top + dy);
    box.bottom = tidy(old.bottom + dy);
  }
  function up(event) {
    if (!drag || event.pointerId !== drag.id) return;
    const done = drag;
    drag = null;
    if (!done.moved) { choose(smallestAt(point(event))); return; }
    const box = boxes[chosen];
    if (box.right - box.left < 1 || box.bottom - box.top < 1) restore(done); else update();
  }
  // A second finger: the browser zooms, and what the first one began is void.
  function cancel(event) {
    if (!drag || event.pointerId !== drag.id) return;
    const done = drag;
    drag = null;
    restore(done);
  }
  function restore(old) {
    boxes = old.before;
    touched = old.touched;
    chosen = old.was;
    update();
  }

  function add() {
    const w = Math.max(1, width / 4), h = Math.max(1, height / 4);
    boxes.push({label: label, left: tidy((width - w) / 2), top: tidy((height - h) / 2),
                right: tidy((width + w) / 2), bottom: tidy((height + h) / 2)});
    touched = true;
    choose(boxes.length - 1);
  }
  function remove(index) {
    if (index < 0 || index >= boxes.length) return;
    boxes.splice(index, 1);
    touched = true;
    choose(-1);
  }
  // With a box chosen its class, and always that of the next box.
  function name(text) {
    label = text;
    if (chosen >= 0) { boxes[chosen].label = text; touched = true; }
    update();
  }
  function nudge(event) {
    const step = event.ctrlKey ? 1 : Math.max(1, Math.round(Math.max(width, height) / 150));
    const by = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step]}[event.key];
    const box = boxes[chosen];
    if (event.shiftKey) {
      box.right = tidy(Math.max(box.left + 1, within(box.right + by[0], width)));
      box.bottom = tidy(Math.max(box.top + 1, within(box.bottom + by[1], height)));
    } else shift(box, Object.assign({}, box), by[0], by[1]);
    touched = true;
    update();
  }
  // True if the key meant boxes.
  function key(event, pressed) {
    if (chosen >= 0 && event.key.startsWith("Arrow")) nudge(event);
    else if (chosen >= 0 && (event.key === "Delete" || event.key === "Backspace")) remove(chosen);
    else if (chosen >= 0 && event.key === "Escape") choose(-1);
    else if (event.ctrlKey || event.repeat) return false;
    else if (pressed === "b") add();
    else if (pressed === "k") choose(boxes.length ? (chosen + 1) % boxes.length : -1);
    else return false;
    return true;
  }
  // Of a new picture: the boxes to begin with, and what models say, drawn below them.
  function show(w, h, first, opinions) {
    width = w;
    height = h;
    drag = null;
    says = opinions;
    svg.setAttribute("viewBox", "0 0 " + w + " " + h);
    load(first, false);
  }
  function load(list, byHand) {
    boxes = list.map(box => {
      const clean = {label: box.label};
      span(clean, within(box.left, width), within(box.right, width),
           within(box.top, height), within(box.bottom, height));
      return clean;
    }).filter(box => box.right - box.left >= 0.1 && box.bottom - box.top >= 0.1);
    touched = byHand;
    choose(-1);
  }
  svg.addEventListener("pointerdown", down);
  svg.addEventListener("pointermove", move);
  svg.addEventListener("pointerup", up);
  svg.addEventListener("pointercancel", cancel);
  new ResizeObserver(draw).observe(svg);
  return {
    show: show, load: load, add: add, remove: remove, name: name, key: key, choose: choose,
    all: () => boxes.map(box => Object.assign({}, box)),
    chosen: () => chosen, label: () => (chosen >= 0 ? boxes[chosen].label : label), touched: () => touched
  };
};
"""
