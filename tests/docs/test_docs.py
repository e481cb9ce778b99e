"""The documentation against the code: examples parse, keys, verbs, routes, metrics and codes exist, links resolve."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from cloudd.cli.main import VERBS
from cloudd.config import Settings
from edged.cli.main import build_parser
from edged.config import Config
from edged.federation.settings import read_federation
from edged.serve.oip.endpoints import ProtocolApi
from edgekit import services, toml
from edgekit.gates.binomial import allowed_differences, smallest_n
from edgekit.gates.filters import FilterParameters
from edgekit.gates.policy import State
from edgekit.messages import Decision, Level, TroubleKind
from edgekit.packages import (
    AnomalySpec,
    CheckpointSpec,
    DetectionSpec,
    EmbeddingSpec,
    HeadCut,
    HeadSpec,
    InputSpec,
    Manifest,
    OutputSpec,
    ProofSample,
    TailCut,
    TailSpec,
    TemplateSpec,
    Variant,
    parse_manifest,
)
from edgekit.services import (
    DecisionRules,
    Detection,
    Gallery,
    HardSamples,
    Learning,
    LearningJudging,
    LearningProbation,
    LearningShadow,
    LearningTriggers,
    Output,
    Pipeline,
    RegionGroup,
    Regions,
    Retention,
    Samples,
    Service,
    Source,
    Split,
    Tiles,
    parse_service,
)

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PAGES = sorted([*REPOSITORY.glob("*.md"), *DOCS.rglob("*.md"), *(REPOSITORY / "examples").rglob("*.md")])

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\|(.+)\|$", re.MULTILINE)
_SPAN = re.compile(r"`([^`\n]+)`")


def page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def fences(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return [body for found, body in _FENCE.findall(text) if found == language]


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one."""
    start = text.index(f"\n{heading}\n") + len(heading) + 2
    end = re.search(r"^#+ ", text[start:], re.MULTILINE)
    return text[start : start + end.start()] if end else text[start:]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row but the separators."""
    found = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in _ROW.findall(text)]
    return [cells for cells in found if set("".join(cells)) - set("-")]


def keys(text: str) -> list[str]:
    """The first cells that are one code span: what a table of keys defines."""
    return [found.group(1) for cells in rows(text) if (found := re.fullmatch(r"`([\w.]+)`", cells[0]))]


def named(text: str) -> set[str]:
    """Every code span in the first cells of all tables."""
    return {span for cells in rows(text) for span in _SPAN.findall(cells[0])}


# --- TOML -------------------------------------------------------------------------------------------------------------


def tomls() -> list[Any]:
    return [
        pytest.param(text, id=f"{path.relative_to(REPOSITORY)}-{number}")
        for path in PAGES
        for number, text in enumerate(fences(path.read_text("utf-8"), "toml"), 1)
    ]


@pytest.mark.parametrize("text", tomls())
def test_every_toml_example_is_what_the_daemons_accept(text: str) -> None:
    table = tomllib.loads(text)
    if "schema" in table:
        parse_manifest(text.encode())
    elif "model" in table:
        parse_service(text, "example")
    elif table.keys() <= set(Config.__struct_fields__):
        toml.convert(table, Config)
    elif table.keys() <= set(Settings.__struct_fields__):
        toml.convert(table, Settings)
    elif table.keys() == {"federation"}:
        read_federation(table["federation"])
    elif "head" in table.get("detection", {}):  # a part of a package
        shipped = tomllib.loads((REPOSITORY / "examples/models/solder-small/package.toml").read_text("utf-8"))
        toml.convert({**shipped, **table}, Manifest)
    else:  # a part of a service
        toml.convert({"name": "example", "model": "example", **table}, Service)


def test_the_documented_manifest_is_the_one_that_ships() -> None:
    """The example has the shipped files and their hashes; it only leaves out what has a default."""
    text, *_ = fences(page("model-package.md"), "toml")
    shown = parse_manifest(text.encode())
    ships = parse_manifest((REPOSITORY / "examples/models/solder-small/package.toml").read_bytes())
    assert shown.input == ships.input and shown.output == ships.output
    assert shown.files.items() <= ships.files.items()


@pytest.mark.parametrize(
    ("name", "heading", "struct"),
    [
        ("service-definition.md", "## Keys", Service),
        ("service-definition.md", "### `[source]`", Source),
        ("service-definition.md", "### `[hard_samples]`", HardSamples),
        ("service-definition.md", "### `[hard_samples.parameters]`", FilterParameters),
        ("service-definition.md", "### `[[outputs]]`", Output),
        ("service-definition.md", "### `[retention]`", Retention),
        ("service-definition.md", "### `[samples]`", Samples),
        ("service-definition.md", "### `[pipeline]`", Pipeline),
        ("service-definition.md", "### `[pipeline.tiles]`", Tiles),
        ("service-definition.md", "### `[decision]`", DecisionRules),
        ("service-definition.md", "### `[detection]`", Detection),
        ("service-definition.md", "### `[regions]`", Regions),
        ("service-definition.md", "### `[[regions.groups]]`", RegionGroup),
        ("service-definition.md", "### `[split]`", Split),
        ("service-definition.md", "### `[gallery]`", Gallery),
        ("service-definition.md", "### `[learning]`", Learning),
        ("service-definition.md", "### `[learning.triggers]`", LearningTriggers),
        ("service-definition.md", "### `[learning.judging]`", LearningJudging),
        ("service-definition.md", "### `[learning.shadow]`", LearningShadow),
        ("service-definition.md", "### `[learning.probation]`", LearningProbation),
        ("model-package.md", "## package.toml", Manifest),
        ("model-package.md", "### `[input]`", InputSpec),
        ("model-package.md", "### `[output]`", OutputSpec),
        ("model-package.md", "### `[detection]`", DetectionSpec),
        ("model-package.md", "### `[template]`", TemplateSpec),
        ("model-package.md", "### `[head]`", HeadSpec),
        ("model-package.md", "### `[[head.cuts]]`", HeadCut),
        ("model-package.md", "### `[tail]`", TailSpec),
        ("model-package.md", "### `[[tail.cuts]]`", TailCut),
        ("model-package.md", "### `[anomaly]`", AnomalySpec),
        ("model-package.md", "### `[embedding]`", EmbeddingSpec),
        ("model-package.md", "### `[checkpoint]`", CheckpointSpec),
        ("model-package.md", "### `[[variants]]`", Variant),
        ("model-package.md", "### `[[samples]]`", ProofSample),
        ("http-api.md", "### The decision", Decision),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_every_key_is_documented_with_its_default(name: str, heading: str, struct: type[msgspec.Struct]) -> None:
    text = section(page(name), heading)
    assert sorted(keys(text)) == sorted(struct.__struct_encode_fields__)
    cells = {found[0].strip("`"): found for found in rows(text)}
    for field in msgspec.structs.fields(struct):
        # Decision's table has no column of types.
        shown = cells[field.encode_name][1 if struct is Decision else 2]
        if isinstance(field.default, str | int | float) and field.default not in ("", False):
            wanted = f'"{field.default}"' if isinstance(field.default, str) else f"{field.default:g}"
            wanted = "true" if field.default is True else wanted
            assert wanted in shown or struct is Decision, (field.name, shown)
        elif field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT:
            assert re.search("required|at least one|always there", shown), (field.name, shown)


def _flat(struct: type[msgspec.Struct], prefix: str = "") -> list[str]:
    found: list[str] = []
    for field in msgspec.structs.fields(struct):
        nested = isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
        found += _flat(field.type, f"{prefix}{field.name}.") if nested else [prefix + field.name]
    return found


@pytest.mark.parametrize(("file", "struct"), [("edged.toml", Config), ("cloudd.toml", Settings)])
def test_every_setting_is_documented(file: str, struct: type[msgspec.Struct]) -> None:
    text = page("operations.md")
    start = text.index(f"| key of `{file}` ")
    table = text[start : text.index("\n\n", start)]
    assert keys(table) == _flat(struct)
    shown = {cells[0].strip("`"): cells[1] for cells in rows(table)}
    for field in _flat(struct):
        default: Any = struct()
        for part in field.split("."):
            default = getattr(default, part)
        if isinstance(default, str | int | float) and default not in ("", True, False):
            assert shown[field].strip('`"') == (default if isinstance(default, str) else f"{default:g}"), field


@pytest.mark.parametrize(
    "text",
    [
        'nmae = "x"',
        'name = "x"',
        'name = "x"\nmodel = "a"\ndeadline_ms = "fast"',
        'name = "x"\nmodel = "a"\n[hard_samples]\nrisk = 2\nanswer_model = "b"',
        'name = "x"\nmodel = "a"\n[hard_samples]',
        'name = "x"\nmodel = "a"\n[hard_samples]\nmode = "filter"\nfilter = "ibt"',
        'name = "x"\nmodel = "a"\n[hard_samples]\nmode = "filter"\nfilter = "IBT"\nparameters = {threshold = 0.9}',
        'name = "x"\nmodel = "a"\nmay_leave = "features"\n[hard_samples]\nanswer_model = "b"',
        'name = "x"\nmodel = "a"\n[[outputs]]\npath = "rel.jsonl"',
        'name = "x"\nmodel = "a"\ntask = "detection"\n[regions]\nclean = "good"',
        'name = "x"\nmodel = "a"\n[regions]\nclean = "good"',
        'name = "x"\nmodel = "a"\n[ocr]',
    ],
)
def test_the_documented_errors_are_the_real_ones(text: str) -> None:
    with pytest.raises(services.ServiceError) as caught:
        parse_service(text, "the given file")
    message = str(caught.value).replace(' in service "x"', "")
    documented = section(page("service-definition.md"), "## What an error looks like").replace(' in service "x"', "")
    # The page cuts the long list of keys short.
    assert message.partition("known keys are name, task, model, ")[0] in documented


# --- commands ---------------------------------------------------------------------------------------------------------


_PROCESSES = ("edged serve",)
"""Names of processes, which nobody types."""


def parsers() -> dict[str, argparse.ArgumentParser]:
    cloudd = argparse.ArgumentParser(prog="cloudd")
    verbs = cloudd.add_subparsers()
    for verb in VERBS:
        verb.add(verbs)
    return {"edged": build_parser(), "cloudd": cloudd}


def _choices(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {
        name: sub
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, sub in action.choices.items()
    }


def commands(text: str) -> Iterator[str]:
    """Every command line of ours in code: spans, and lines of sh, console and indented blocks."""
    candidates: list[str] = _SPAN.findall(_FENCE.sub("", text))
    for language, body in _FENCE.findall(text):
        if language in ("sh", "bash", "console", "text", ""):
            candidates += body.splitlines()
    candidates += [line.strip() for line in text.splitlines() if line.startswith("    ")]
    for candidate in candidates:
        line = re.sub(r"^(\$ |sudo |runuser -u \S+ -- )+", "", candidate.strip())
        line = re.split(r"\s#|\s\||\s&&|\s<|;", line)[0]
        program, _, rest = line.partition(" ")
        if Path(program).name in ("edged", "cloudd") and re.match(r"[a-z]+(\s|$)", rest):
            line = f"{Path(program).name} {rest}"
            if line not in _PROCESSES:
                yield line


def lines_of_commands() -> list[Any]:
    found = {(path.name, line) for path in PAGES for line in commands(path.read_text("utf-8"))}
    return [pytest.param(line, id=f"{name}: {line[:60]}") for name, line in sorted(found)]


@pytest.mark.parametrize("line", lines_of_commands())
def test_every_command_in_the_pages_exists(line: str) -> None:
    program, *words = shlex.split(line)
    parser = parsers()[program]
    while words and (choices := _choices(parser)):
        word = words.pop(0)
        assert word in choices, f"{line}: there is no {word!r}"
        parser = choices[word]
    known = {option for action in parser._actions for option in action.option_strings}
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in known, f"{line}: there is no {word}"


def test_the_pages_have_commands() -> None:
    """The collection above must not fall silent."""
    assert len(lines_of_commands()) > 40


# --- routes, metrics, codes -------------------------------------------------------------------------------------------


def _source(*parts: str) -> str:
    path = REPOSITORY.joinpath(*parts)
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return "\n".join(file.read_text("utf-8") for file in files)


@pytest.mark.parametrize(
    ("heading", "file"),
    [
        ("## Local API of edged", "edged/local_api.py"),
        ("## Page port of edged", "edged/status/server.py edged/status/review_routes.py"),
        ("## Dashboard of cloudd", "cloudd/dashboard/server.py"),
        ("## Admin API of cloudd", "cloudd/admin_api.py cloudd/federation/admin.py"),
        ("## Device API of cloudd", "cloudd/devices cloudd/registry/routes.py cloudd/answers/routes.py"),
        ("### Federated jobs", "cloudd/federation/routes.py"),
    ],
)
def test_every_route_is_documented(heading: str, file: str) -> None:
    """Method and path, with every parameter written the same."""

    def plain(route: str) -> str:
        return re.sub(r"\{[^/]*?\}+|\b[A-Z][A-Z0-9]+\b", "*", route)

    source = "\n".join(_source(*one.split("/")) for one in file.split())
    real = set(re.findall(r"web\.(get|post|delete)\(\s*r?\"([^\"]+)\"", source))
    real |= set(re.findall(r"add_(get|post|delete)\(f?\"([^\"]+)\"", source))
    spans = _SPAN.findall(section(page("http-api.md"), heading))
    shown = {(m.lower(), p) for span in spans for m, p in re.findall(r"^(GET|POST|DELETE) (/[^?\s]*)", span)}
    assert real
    assert {f"{m} {plain(p)}" for m, p in real} == {f"{m} {plain(p)}" for m, p in shown}


def test_every_inference_route_is_documented() -> None:
    """Routes are (method, pattern, handler) in edged/serve/app.py, and what the protocol adds to them."""
    routes = set(re.findall(r'\("(GET|POST)", "(/v[^"]+)"', _source("edged", "serve", "app.py")))
    routes |= {(method, pattern) for method, pattern, _ in object.__new__(ProtocolApi).routes}
    real = {(method, re.sub(r"\{\w+\}", "*", pattern)) for method, pattern in routes}
    shown: set[tuple[str, str]] = set()
    for span in _SPAN.findall(page("http-api.md").split("## Page port")[0] + page("protocol.md")):
        found = re.fullmatch(r"(GET|POST) (/v[12]\S*)", span)
        if found:
            shown.add((found[1], re.sub(r"\b(NAME|VERSION)\b", "*", found[2])))
        elif span == "/unload":
            shown.add(("POST", "/v2/repository/models/*/unload"))
    assert shown <= real
    # Described as families: the same for one version, and what Triton has and edged has not.
    families = ("/versions/", "sharedmemory", "/trace/", "/logging")
    assert {route for route in real if not any(part in route[1] for part in families)} <= shown


@pytest.mark.parametrize("package", ["edged", "cloudd"])
def test_every_metric_is_documented(package: str) -> None:
    file = "edged/status/metrics.py" if package == "edged" else "cloudd/metrics.py"
    real = set(re.findall(r"\"((?:edged|nv|cloudd|process)_[a-z_]+)\"", _source(*file.split("/"))))
    shown = {name for name in named(section(page("operations.md"), "## Metrics")) if "_" in name}
    mine = {name for name in shown if name.startswith(("edged_", "nv_")) is (package == "edged")}
    assert real == mine


def test_every_documented_health_code_exists_and_none_is_missing() -> None:
    text = section(page("operations.md"), "## Health codes")
    shown = {code for code in named(text) if code != "code"}
    shown |= set(_SPAN.findall(text[text.index("Seen only among") :])) - {"NAME.bad-TIME"}
    source = _source("edged")
    # A code stands in the source as a literal; NAME, PATH and CODE stand for what an f-string puts there.
    for code in sorted(shown):
        stem = re.sub(r"(NAME|PATH|CODE)$", "", code)
        assert f'"{stem}' in source, code
    plain = r"\.(?:report|raise_|note|_?notify|_say)\(\s*(?:self\._report,\s*)?"
    level = r"(?:\"(?:ok|warning|error)\"[^,]*,\s*)?"
    real = set(re.findall(plain + level + r"f?\"([a-z]+[.:-]?[a-z-]*[.:]?)(?:\{|\")", source))
    known = {re.sub(r"(NAME|PATH|CODE)$", "", code) for code in shown}
    other = {*get_args(Level), *get_args(TroubleKind)}  # first arguments of namesakes
    assert real - other <= known


# --- the gate's numbers -----------------------------------------------------------------------------------------------


def _number(cell: str) -> float:
    return float(cell.rstrip(" %").replace(",", ""))


def test_the_sample_sizes_are_those_of_the_code() -> None:
    smallest: list[tuple[list[str], list[str]]] = []
    allowed: list[tuple[list[str], list[str]]] = []
    head: list[str] = []
    for cells in rows(section(page("gate.md"), "## How many samples")):
        if cells[0] in ("risk", "calibration"):
            head, target = cells, smallest if cells[0] == "risk" else allowed
        else:
            target.append((head, cells))
    for head, cells in smallest:
        risk, levels = _number(cells[0]) / 100, [_number(cell) / 100 for cell in head[1:]]
        assert [int(cell) for cell in cells[1:]] == [smallest_n(risk, 0.8 * (1 - level)) for level in levels]
    for head, cells in allowed:
        risks = [_number(cell.removeprefix("risk ")) / 100 for cell in head[1:]]
        assert [int(cell) for cell in cells[1:]] == [allowed_differences(int(cells[0]), risk, 0.08) for risk in risks]
    assert len(smallest) == 6 and len(allowed) == 3


def test_every_state_of_the_gate_is_documented() -> None:
    assert keys(section(page("gate.md"), "## States").replace("safe-mode", "safe_mode")) == [
        state.replace("-", "_") for state in get_args(State)
    ]


# --- scripts ----------------------------------------------------------------------------------------------------------


def _run(script: str, folder: Path) -> str:
    (folder / "script.py").write_text(script)
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), "ORT_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _place(source: Path, folder: Path, label: str) -> None:
    target = folder / "pictures" / label
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def test_the_onnx_script_makes_a_package(tmp_path: Path) -> None:
    ships = REPOSITORY / "examples/models/solder-small"
    for file in ("model.onnx", "labels.txt"):
        shutil.copy(ships / file, tmp_path)
    for sample in parse_manifest((ships / "package.toml").read_bytes()).samples:
        _place(ships / sample.file, tmp_path, sample.label)
    said = _run(fences(page("model-package.md"), "python")[0], tmp_path)
    assert said.startswith("solder-small@1 is sealed and proved on 5 samples")


@pytest.mark.real_data
def test_the_tflite_script_makes_a_package(tmp_path: Path, real_data: Path) -> None:
    models = real_data / "models"
    shutil.copy(models / "mlcommons-tiny/vww_96_int8.tflite", tmp_path / "model.tflite")
    (tmp_path / "labels.txt").write_text("no person\nperson\n")
    for picture, label in (("cat_720p", "no person"), ("face", "person"), ("grace_hopper", "person")):
        _place(models / f"coral/{picture}.jpg", tmp_path, label)
    said = _run(fences(page("model-package.md"), "python")[1], tmp_path)
    assert said.startswith("people@1 is sealed and proved on 3 samples")


def test_other_python_examples_compile() -> None:
    for path in PAGES:
        for number, script in enumerate(fences(path.read_text("utf-8"), "python")):
            compile(script, f"{path.name}-{number}", "exec")


# --- links ------------------------------------------------------------------------------------------------------------


def _anchors(text: str) -> set[str]:
    """Anchors as GitHub makes them of headings."""
    heads = re.findall(r"^#+ +(.+?)\s*$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_relative_link_resolves(path: Path) -> None:
    text = _SPAN.sub("", _FENCE.sub("", path.read_text("utf-8")))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.is_relative_to(REPOSITORY), link
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in _anchors(target.read_text("utf-8")), f"there is no heading for {link}"
