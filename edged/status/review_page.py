"""The frame of the review page: what is on it before its scripts ask for pictures. Pure; no picture and no label is in
it, so nothing of them needs escaping here, and the scripts write text, never HTML.
"""

from __future__ import annotations

from edged.status.review_boxes import BOXES_SCRIPT
from edged.status.review_outbox import OUTBOX_SCRIPT
from edged.status.review_script import REVIEW_SCRIPT
from edged.status.review_words import WORDS_SCRIPT
from edgekit.html import STYLE, text

REVIEW_STYLE = """
[hidden],#news:empty{display:none!important}
header,main.review{max-width:none}
header select{font:inherit;padding:.5rem;border-radius:6px;border:1px solid var(--line);background:var(--bg);
color:var(--ink);max-width:60vw}
main.review{display:grid;grid-template-columns:minmax(0,1fr) minmax(18rem,24rem);gap:1rem;align-items:start}
main.review .card{margin:0}
.wide{grid-column:1/-1;margin:0}
.told{border-left:6px solid var(--edge);padding:.5rem .8rem;background:var(--card);border-radius:6px;min-height:2.5rem}
.told:empty{visibility:hidden}#news{display:grid;gap:.4rem}#news p{margin:0}
.told.warning{border-left-color:var(--warn);color:inherit}
.stage{position:relative;height:calc(100vh - 11rem);min-height:16rem;overflow:hidden;padding:0;outline-offset:-3px}
.stage img,.stage svg{position:absolute;inset:0;width:100%;height:100%}
.stage img{object-fit:contain;image-orientation:none}.stage img.small{image-rendering:pixelated}
.stage.large{overflow:auto}.stage.large img,.stage.large svg{inset:0 auto auto 0;width:300%;height:300%}
.stage p{position:absolute;inset:0;margin:auto;height:3rem;text-align:center;color:var(--soft)}
.stage svg{touch-action:pinch-zoom;cursor:crosshair;user-select:none;-webkit-user-select:none}
.stage svg *{vector-effect:non-scaling-stroke}
.stage svg .box{fill:transparent;stroke:#ffd60a;stroke-width:2}
.stage svg .halo{fill:none;stroke:#000;stroke-width:4;stroke-opacity:.55}
.stage svg .chosen .box{stroke:#fff;stroke-width:3}
.stage svg .chosen .halo{stroke:#0a54c9;stroke-width:6;stroke-opacity:1}
.stage svg .says{fill:none;stroke-width:2;stroke-dasharray:6 5}
.stage svg .says.edge{stroke:#6cabf0}.stage svg .says.cloud{stroke:#d6a8ff}
.stage svg text{fill:#fff;stroke:#000;stroke-width:3;paint-order:stroke;font-family:system-ui,sans-serif}
.stage svg .corner{fill:#fff;stroke:#0a54c9;stroke-width:2}
.panel{display:grid;gap:.8rem}.panel h2{margin:0}
.panel button,.who button,.told button,.told a{min-height:3rem;min-width:3rem;padding:.4rem .8rem;text-align:left}
.keys{display:flex;flex-wrap:wrap;gap:.5rem}
.keys.pairs{display:grid;grid-template-columns:1fr 1fr}
.keys button{overflow-wrap:anywhere;max-width:100%}
.keys button[aria-pressed=true]{border-color:var(--edge);box-shadow:inset 0 0 0 2px var(--edge)}
#labels{max-height:16rem;overflow-y:auto}
#confirm{background:var(--edge);color:var(--card);border-color:var(--edge);font-weight:600;flex:1 1 100%}
button:disabled{opacity:.45;cursor:default}
kbd{font:.8em ui-monospace,monospace;border:1px solid currentColor;border-radius:4px;padding:0 .3rem;opacity:.75;
margin-right:.35rem}
.panel ul{margin:0;padding:0;list-style:none;display:grid;gap:.3rem}
#list li{display:flex;gap:.4rem}#list li button:first-child{flex:1}
.panel form{display:flex;gap:.5rem;flex-wrap:wrap;align-items:center}#boxes{display:grid;gap:.5rem}
.panel form input,.who input{min-height:3rem;flex:1 1 8rem;min-width:0}
.who{display:flex;gap:.6rem;align-items:center;flex-wrap:wrap}
summary{min-height:2.2rem;cursor:pointer}
:focus-visible{outline:3px solid var(--edge);outline-offset:2px}
@media(max-width:60rem){main.review{grid-template-columns:minmax(0,1fr);padding:.4rem}.stage{height:48vh}}
"""

STYLES = (STYLE, REVIEW_STYLE)
SCRIPTS = (WORDS_SCRIPT, BOXES_SCRIPT, OUTBOX_SCRIPT, REVIEW_SCRIPT)

_KEYS = (
    ("1–9, 0", "the label with this number; with boxes: the class of the chosen box, or of the next one"),
    ("Enter", "confirm what is suggested, or save the boxes"),
    ("e, c", "what the edge says, what the cloud says"),
    ("u", "unusable: nobody can tell"),
    ("n", "another class: type its name"),
    ("z", "back to the last one, to say it anew"),
    ("f", "three times as large, and back"),
    ("← →", "the picture before, the next one"),
)
_BOX_KEYS = (
    ("drag", "draw a box; tap one to choose it, then drag it or a corner"),
    ("b, k", "a new box in the middle; choose the next box"),
    ("← → ↑ ↓", "move the chosen box; with Shift its right and lower side; with Ctrl by one pixel"),
    ("Delete, Esc", "remove the chosen box; choose none"),
    ("x", "nothing is there"),
)


def render(name: str, device_id: str) -> str:
    """The page of the device of this name."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>Review · {text(name)}</title>'
        f"{''.join(f'<style>{style}</style>' for style in STYLES)}</head><body>"
        f"<header><h1>Review · {text(name)}</h1>"
        '<label>Service <select id="service"></select></label><span id="count"></span>'
        '<span id="me"></span><a href="/">Status page</a></header>'
        f'<main class="review" data-device="{text(device_id)}">{_MAIN}</main>'
        f"{''.join(f'<script>{script}</script>' for script in SCRIPTS)}</body></html>"
    )


def _keys(keys: tuple[tuple[str, str], ...]) -> str:
    return "".join(f"<dt><kbd>{text(key)}</kbd></dt><dd>{text(what)}</dd>" for key, what in keys)


def _button(identity: str, key: str, label: str) -> str:
    return f'<button type="button" id="{identity}"><kbd aria-hidden="true">{key}</kbd>{label}</button>'


_MAIN = (
    "<noscript><p class='wide told warning'>This page needs JavaScript; without it: edged samples label.</p></noscript>"
    '<p class="wide told warning" id="link" role="alert" hidden></p>'
    '<div class="wide" id="news" role="alert"></div><p class="wide told" id="told" role="status"></p>'
    '<form class="wide card who" id="who" hidden><label for="author">Your name, which is kept with each label'
    '</label><input id="author" maxlength="256" autocomplete="name" required><button>Go on</button></form>'
    '<section class="card stage" id="stage" tabindex="-1" aria-label="Picture"></section>'
    '<section class="card panel" id="panel" aria-label="Label"><div id="facts"></div>'
    f'<div class="keys">{_button("confirm", "Enter", "<span>Confirm</span>")}'
    f"{_button('edge', 'e', '<span></span>')}{_button('cloud', 'c', '<span></span>')}</div>"
    '<div class="keys" id="labels" role="group" aria-label="Labels"></div>'
    '<form id="another"><label for="name" class="soft">Another class (n)</label>'
    '<input id="name" maxlength="128" list="names" autocomplete="off"><datalist id="names"></datalist>'
    "<button>Use</button></form>"
    '<div id="boxes" hidden><h2>Boxes</h2><ul id="list"></ul>'
    f'<div class="keys">{_button("add", "b", "New box")}{_button("nothing", "x", "Nothing there")}</div></div>'
    f'<div class="keys pairs">{_button("unusable", "u", "Unusable")}{_button("undo", "z", "Undo")}'
    f"{_button('back', '←', 'Before')}{_button('on', '→', 'Next')}{_button('larger', 'f', 'Larger')}</div>"
    '<div id="said"></div>'
    f"<details><summary>Keys</summary><dl>{_keys(_KEYS)}</dl><h2>Boxes</h2><dl>{_keys(_BOX_KEYS)}</dl></details>"
    "</section>"
)
