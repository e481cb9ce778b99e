"""The look that edged's status page and cloudd's dashboard share: one frame, one stylesheet, one script, no asset.

Pages are rendered on the server and are whole without JavaScript; the script only fetches the page again and swaps
`<main>`, so that numbers live. Everything that comes from outside goes through `text()`. There are no inline style or
event attributes: the content security policy allows exactly STYLE and SCRIPT by their hashes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from html import escape as text

__all__ = ["SCRIPT", "STYLE", "age", "badge", "bar", "button", "count", "login", "megabytes", "page", "table", "text"]

STYLE = """
:root{--bg:#f4f5f7;--card:#fff;--ink:#16191d;--soft:#5c6670;--line:#dfe3e8;--ok:#1a7f4b;--warn:#9a5b00;--bad:#b3261e;
--edge:#2563a8;--cloud:#7a3fb0}
@media(prefers-color-scheme:dark){:root{--bg:#101316;--card:#1a1f24;--ink:#e8eaed;--soft:#9aa4ae;--line:#2c333a;
--ok:#4cc38a;--warn:#e8a33d;--bad:#f2786f;--edge:#6cabf0;--cloud:#c092ee}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
header,main,footer{max-width:72rem;margin:0 auto;padding:.75rem 1rem}
a{color:var(--edge)}
header{display:flex;gap:1rem;align-items:baseline;flex-wrap:wrap}
h1{font-size:1.25rem;margin:0}h2{font-size:1rem;margin:0 0 .5rem}
header span,footer,.soft{color:var(--soft)}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem;margin:0 0 1rem;
overflow-x:auto}
.verdict{border-left:6px solid var(--ok);font-size:1.1rem}
.verdict.warning{border-left-color:var(--warn)}.verdict.error{border-left-color:var(--bad)}
.grid{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(15rem,1fr));align-items:start;margin-bottom:1rem}
.grid>.card{margin:0}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.15rem .9rem;margin:0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th{color:var(--soft);font-weight:500;text-align:left}
th,td{padding:.3rem .7rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child td{border-bottom:0}
td.n,th.n{text-align:right;padding-right:1.4rem}
.badge{display:inline-block;border-radius:99px;padding:0 .55rem;font-size:.85rem;border:1px solid currentColor;
white-space:nowrap}
.ok{color:var(--ok)}.warning{color:var(--warn)}.error{color:var(--bad)}.edge{color:var(--edge)}.cloud{color:var(--cloud)}
code{font:.88em ui-monospace,monospace;overflow-wrap:anywhere}
td code{overflow-wrap:break-word}td code.long{overflow-wrap:anywhere}
img.sample{width:64px;height:64px;object-fit:cover;border-radius:6px;border:1px solid var(--line);display:block}
svg.bar{display:block;max-width:100%;margin-top:.45rem;border-radius:4px;background:var(--line)}
svg .edge{fill:var(--edge)}svg .cloud{fill:var(--cloud)}svg .warning{fill:var(--warn)}svg .ok{fill:var(--ok)}
svg .error{fill:var(--bad)}
.looks{display:flex;flex-wrap:wrap;gap:1rem}figure.look{flex:0 1 auto;max-width:100%}
figure.look img{display:block;max-width:100%;max-height:22rem;border-radius:6px;background:var(--line)}
h3{font-size:.95rem;margin:.5rem 0 0}
.charts{display:flex;flex-wrap:wrap;gap:.3rem 2rem}
figure{margin:0;flex:1 1 19rem;max-width:34rem}figcaption{color:var(--soft);font-size:.85rem}
.key{margin-left:.7rem;white-space:nowrap}.key strong{color:var(--ink)}
.key::before{content:"";display:inline-block;width:1.3rem;margin-right:.3rem;vertical-align:middle;
border-top:2px solid}
.key.p50::before{border-color:var(--edge)}.key.p99::before{border-color:var(--warn);border-top-style:dashed}
.key.rate::before{border-color:var(--ok)}
svg.chart{display:block;width:100%;height:auto}
svg.chart text{fill:var(--soft);font:21px system-ui,sans-serif}svg.chart .rule{stroke:var(--line);stroke-width:2}
svg.chart path{fill:none;stroke-width:3.5;stroke-linejoin:round;stroke-linecap:round}
svg.chart .p50{stroke:var(--edge)}svg.chart .p99{stroke:var(--warn);stroke-dasharray:9 7}
svg.chart .rate{stroke:var(--ok)}
form{display:inline}input,button{font:inherit;padding:.2rem .6rem;border-radius:6px;border:1px solid var(--line);
background:var(--bg);color:var(--ink)}button{cursor:pointer}
@media(max-width:40rem){table,tbody,tr,td,td.n{display:block}thead{display:none}
tr{border-bottom:1px solid var(--line);padding:.4rem 0}tr:last-child{border-bottom:0}
td,td.n{border:0;padding:.1rem 0 .1rem 7.8rem;text-align:left;overflow-wrap:anywhere;position:relative;min-height:1.7em}
td:empty{display:none}td[data-head]::before{content:attr(data-head);position:absolute;left:0;color:var(--soft)}}
"""

SCRIPT = """
(function () {
  var main = document.querySelector("main"), live = document.getElementById("live");
  function busy() { var a = document.activeElement; return a && main.contains(a) && /INPUT|BUTTON/.test(a.tagName); }
  function again() {
    if (document.hidden || busy()) return;
    fetch(location.pathname, {cache: "no-store"}).then(function (r) {
      if (!r.ok) throw new Error(String(r.status));
      return r.text();
    }).then(function (html) {
      var next = new DOMParser().parseFromString(html, "text/html").querySelector("main");
      if (next && !busy()) {
        // A picture that is seen stays until its successor is here: the element itself, which is loaded already.
        var seen = Array.from(main.querySelectorAll("img[data-live]"));
        var same = seen.map(function (old) { return next.querySelector('img[data-live="' + old.dataset.live + '"]'); });
        same.forEach(function (img) { if (img) img.removeAttribute("src"); });
        main.replaceChildren.apply(main, Array.from(next.childNodes));
        same.forEach(function (img, i) { if (img) { seen[i].alt = img.alt; img.replaceWith(seen[i]); } });
      }
      live.textContent = "live";
    }).catch(function () { live.textContent = "the daemon does not answer; numbers may be old"; });
  }
  function look() {
    if (document.hidden) return;
    document.querySelectorAll("img[data-live]").forEach(function (img) {
      var next = new Image();
      next.onload = function () { next.alt = img.alt; img.replaceWith(next); };
      next.dataset.live = img.dataset.live;
      next.src = img.dataset.live + "?" + Date.now();
    });
  }
  live.textContent = "live";
  setInterval(again, 2000);
  setInterval(look, 1000);
})();
"""


def page(title: str, subtitle: str, main: str, footer: str) -> str:
    """The whole document. `main` and `footer` are HTML made with these functions; title and subtitle are plain text."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{text(title)}</title><style>{STYLE}</style></head><body>'
        f'<header><h1>{text(title)}</h1><span>{text(subtitle)}</span><span id="live"></span></header>'
        f"<main>{main}</main><footer>{footer}</footer><script>{SCRIPT}</script></body></html>"
    )


def badge(label: str, kind: str = "") -> str:
    """A small rounded word. `kind` is one of ok, warning, error, edge, cloud, or empty."""
    return f'<span class="badge {kind}">{text(label)}</span>'


def table(head: Iterable[tuple[str, bool]], rows: Iterable[Iterable[str]], empty: str) -> str:
    """A table of ready HTML cells; `head` gives each column's title and whether it holds numbers.

    A narrow screen shows each row as a list, with the titles beside the cells.
    """
    columns = list(head)
    opening = [
        "<td" + (" class=n" if number else "") + (f' data-head="{text(title)}"' if title else "") + ">"
        for title, number in columns
    ]
    body = "".join(
        "<tr>" + "".join(f"{tag}{cell}</td>" for tag, cell in zip(opening, row, strict=True)) + "</tr>" for row in rows
    )
    if not body:
        return f'<p class="soft">{text(empty)}</p>'
    heads = "".join(f"<th{' class=n' if number else ''}>{text(title)}</th>" for title, number in columns)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def bar(parts: Iterable[tuple[float, str]], label: str, width: int = 160) -> str:
    """A stacked bar: shares (0..1) with their colour class, left to right. `label` says the same for screen readers."""
    x, pieces = 0.0, []
    for share, kind in parts:
        length = max(0.0, min(share, 1.0)) * width
        pieces.append(f'<rect x="{x:.1f}" y="0" width="{length:.1f}" height="10" class="{kind}"/>')
        x += length
    return (
        f'<svg class="bar" width="{width}" height="10" role="img" aria-label="{text(label)}">'
        f"<title>{text(label)}</title>{''.join(pieces)}</svg>"
    )


def button(action: str, label: str) -> str:
    """A button that posts to `action`."""
    return f'<form method="post" action="{text(action)}"><button>{text(label)}</button></form>'


def login(logged_in: bool, daemon: str, purpose: str, actions: str = "") -> str:
    """The operator's card: a login form, or (logged in) the ready HTML `actions` and the way out."""
    if logged_in:
        form = f"{actions} {button('/logout', 'Log out')}"
    else:
        form = (
            '<form method="post" action="/login"><label>Page token '
            '<input name="token" type="password" autocomplete="off" required></label> <button>Log in</button></form> '
            f'<span class="soft">{text(purpose)}; the token is in the file <code>page-token</code> of '
            f"{text(daemon)}'s state directory</span>"
        )
    return f'<section class="card" id="operator"><h2>Operator</h2>{form}</section>'


def age(now: float, then: float | None) -> str:
    """How long ago, for people; "never" for None."""
    if then is None or then <= 0:
        return "never"
    seconds = max(0.0, now - then)
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (129600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name} ago"
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(then))


def megabytes(size: float) -> str:
    """Bytes as MB (10^6) or GB, as people read disks."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def count(number: int) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{number:,}".replace(",", "\u202f")
