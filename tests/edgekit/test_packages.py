"""Model packages: honest ones open, hostile ones are refused by name, installs survive a kill at every point."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.packages import (
    InputSpec,
    Manifest,
    PackageError,
    ProofSample,
    Variant,
    adopt,
    find,
    install,
    installed,
    manifest_text,
    open_package,
    parse_manifest,
    read_draft,
    seal_package,
    split_ref,
    sweep,
    version_key,
)
from edgekit.packages.manifest import MAX_MANIFEST, check_path

BASE = Manifest(
    name="solder-small",
    version="1.0.0",
    labels="labels.txt",
    input=InputSpec(width=8, height=8, mean=[127.5], scale=[1 / 127.5]),
    variants=[Variant(file="model.onnx")],
    samples=[ProofSample(file="samples/good.png", label="good", score=0.9)],
)


def fill(root: Path, weights: bytes = b"weights") -> Path:
    (root / "samples").mkdir(parents=True)
    (root / "model.onnx").write_bytes(weights)
    (root / "labels.txt").write_text("good\nbad\n")
    (root / "samples" / "good.png").write_bytes(b"picture")
    return root


@pytest.fixture
def package(tmp_path: Path) -> Path:
    root = fill(tmp_path / "package")
    seal_package(root, BASE)
    return root


def test_sealed_package_opens_with_everything_known(package: Path) -> None:
    opened = open_package(package)
    assert opened.ref == "solder-small@1.0.0"
    assert opened.labels == ["good", "bad"]
    assert opened.digest == hashlib.sha256((package / "package.toml").read_bytes()).hexdigest()
    assert opened.manifest.files["model.onnx"] == hashlib.sha256(b"weights").hexdigest()
    assert set(opened.manifest.files) == {"model.onnx", "labels.txt", "samples/good.png"}
    assert opened.sizes["model.onnx"] == 7
    assert opened.path("model.onnx") == package / "model.onnx"
    with pytest.raises(PackageError, match="not a file of"):
        opened.path("../secret")


def test_sealing_twice_gives_the_same_digest(package: Path) -> None:
    first = open_package(package).digest
    assert seal_package(package, open_package(package).manifest).digest == first


def _corrupt(root: Path) -> None:
    (root / "model.onnx").write_bytes(b"weightz")


def _unlisted(root: Path) -> None:
    (root / "samples" / "extra.bin").write_bytes(b"x")


def _missing(root: Path) -> None:
    (root / "model.onnx").unlink()


def _symlink(root: Path) -> None:
    (root / "model.onnx").rename(root.parent / "outside.onnx")
    (root / "model.onnx").symlink_to(root.parent / "outside.onnx")


def _symlinked_directory(root: Path) -> None:
    (root / "samples").rename(root.parent / "outside")
    (root / "samples").symlink_to(root.parent / "outside")


def _fifo(root: Path) -> None:
    (root / "model.onnx").unlink()
    os.mkfifo(root / "model.onnx")


def _directory(root: Path) -> None:
    (root / "model.onnx").unlink()
    (root / "model.onnx").mkdir()


def _symlinked_manifest(root: Path) -> None:
    (root / "package.toml").rename(root.parent / "package.toml")
    (root / "package.toml").symlink_to(root.parent / "package.toml")


def _huge_manifest(root: Path) -> None:
    with (root / "package.toml").open("ab") as file:
        file.truncate(MAX_MANIFEST + 1)


def _deep(root: Path) -> None:
    root.joinpath(*["d"] * 20).mkdir(parents=True)


def _bad_labels(root: Path) -> None:
    (root / "labels.txt").write_bytes(b"good\n\xff\n")
    text = (root / "package.toml").read_text()
    old = hashlib.sha256(b"good\nbad\n").hexdigest()
    (root / "package.toml").write_text(text.replace(old, hashlib.sha256(b"good\n\xff\n").hexdigest()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_corrupt, '"model.onnx" has SHA-256'),
        (_unlisted, '"samples/extra.bin" is in the directory but not in'),
        (_missing, '"model.onnx" is missing'),
        (_symlink, '"model.onnx" is a symbolic link'),
        (_symlinked_directory, '"samples" is a symbolic link'),
        (_fifo, '"model.onnx" is a FIFO'),
        (_directory, "model.onnx"),
        (_symlinked_manifest, '"package.toml" is a symbolic link'),
        (_huge_manifest, "are allowed"),
        (_deep, "nested deeper"),
        (_bad_labels, '"labels.txt" is not UTF-8'),
    ],
)
def test_a_hostile_directory_is_refused_by_open_and_by_install(
    package: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(package)
    with pytest.raises(PackageError, match=message):
        open_package(package)
    models = package.parent / "models"
    with pytest.raises(PackageError, match=message):
        install(package, models)
    assert list(models.iterdir()) == []


def test_without_hashing_the_structure_is_still_checked(package: Path) -> None:
    _corrupt(package)
    assert open_package(package, verify=False).ref == "solder-small@1.0.0"
    _symlink(package)
    with pytest.raises(PackageError, match="symbolic link"):
        open_package(package, verify=False)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"model.onnx" =', '"../model.onnx" =', "without"),
        ('"model.onnx" =', '"/etc/passwd" =', "must be relative"),
        ('"model.onnx" =', '"a\\\\b" =', "backslashes"),
        ('"model.onnx" =', '"a\\u0000b" =', "control characters"),
        ('"model.onnx" =', '"samples//x" =', "empty parts"),
        ('"model.onnx" =', '"package.toml" =', "itself"),
        ('file = "model.onnx"', 'file = "other.onnx"', "does not list"),
        ('file = "model.onnx"', 'file = "../other.onnx"', "without"),
        ("schema = 1", "schema = 2", '"schema" is 2'),
        ("schema = 1", "shema = 1", 'did you mean "schema"'),
        ('name = "solder-small"', 'name = "Solder"', "no model name"),
        ('version = "1.0.0"', 'version = "../1"', "no model version"),
        ('labels = "labels.txt"', 'labels = ""', '"labels" is missing'),
        ('label = "good"', 'label = "goof"', "does not contain"),
        ("width = 8", "width = 0", '"input.width" is 0'),
        ("mean = [127.5]", "mean = [1.0, 2.0]", '"input.mean" has 2 values'),
        ("mean = [127.5]", "mean = [inf]", '"input.mean\\[0\\]" is inf'),
        ("schema = 1", "schema = 1\nschema = 1", "not valid TOML"),
        ('description = ""', 'description = "\udcff"', "not UTF-8"),
    ],
)
def test_a_hostile_manifest_is_refused(package: Path, old: str, new: str, message: str) -> None:
    text = (package / "package.toml").read_text()
    old = old if old in text else old.replace('"model.onnx" =', '"model.onnx" = ')
    assert old in text
    data = text.replace(old, new, 1).encode("utf-8", "surrogateescape")
    (package / "package.toml").write_bytes(data)
    with pytest.raises(PackageError, match=message):
        open_package(package)


def test_too_many_files_are_refused(package: Path) -> None:
    many = "".join(f'"f{i}" = "{"0" * 64}"\n' for i in range(10_001))
    with (package / "package.toml").open("a") as file:
        file.write(many)
    with pytest.raises(PackageError, match="10000 are allowed"):
        open_package(package)


def test_install_copies_verifies_and_is_idempotent(package: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    first = install(package, models)
    assert first.root == models / "solder-small@1.0.0"
    assert install(package, models) == first
    assert [entry.name for entry in models.iterdir()] == ["solder-small@1.0.0"]
    assert open_package(first.root).digest == open_package(package).digest


def test_another_package_of_the_same_version_is_refused(package: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    install(package, models)
    other = fill(tmp_path / "other", b"other weights")
    seal_package(other, BASE)
    with pytest.raises(PackageError, match="give the changed model a new version"):
        install(other, models)
    assert (models / "solder-small@1.0.0" / "model.onnx").read_bytes() == b"weights"


def test_a_damaged_installation_is_repaired_by_installing_again(package: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    root = install(package, models).root
    (root / "model.onnx").write_bytes(b"bitrot!")
    install(package, models)
    assert open_package(root).ref == "solder-small@1.0.0"
    assert sweep(models) == 1
    assert list(installed(models)) == ["solder-small@1.0.0"]


def test_adopt_takes_a_directory_that_a_downloader_filled(package: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    staged = package.rename(models / ".download")
    _corrupt(staged)
    with pytest.raises(PackageError):
        adopt(staged, models)
    assert staged.exists()
    (staged / "model.onnx").write_bytes(b"weights")
    assert adopt(staged, models).root == models / "solder-small@1.0.0"
    assert not staged.exists()


@pytest.mark.parametrize("point", ["package.copied", "package.renamed"])
def test_a_kill_during_install_leaves_all_or_nothing(package: Path, tmp_path: Path, point: str) -> None:
    models = tmp_path / "models"
    code = (
        "import sys; from pathlib import Path; from edgekit.packages import install; install(*map(Path, sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, str(package), str(models)]
    root = Path(__file__).parents[2]
    killed = subprocess.run(command, env={**os.environ, "EDGED_CRASH_AT": point, "PYTHONPATH": str(root)}, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    for path in installed(models).values():
        open_package(path)
    assert bool(installed(models)) == (point == "package.renamed")
    sweep(models)
    assert install(package, models).ref == "solder-small@1.0.0"
    assert [entry.name for entry in models.iterdir()] == ["solder-small@1.0.0"]


def test_installed_lists_newest_first_and_find_resolves_names(tmp_path: Path) -> None:
    for name in ("a@1.9", "a@1.10", "a@1.2", "b@x", ".incoming-12", "junk"):
        (tmp_path / name).mkdir()
    refs = list(installed(tmp_path))
    assert refs == ["a@1.10", "a@1.9", "a@1.2", "b@x"]
    assert find("a", refs) == "a@1.10"
    assert find("a@1.2", refs) == "a@1.2"
    assert find("a@3", refs) is None
    assert find("c", refs) is None
    with pytest.raises(PackageError):
        find("a@", refs)


def test_version_order_is_total_and_numeric() -> None:
    versions = ["1", "1.2", "1.10", "1.10a", "2", "2024-01-01", "v1", "v10"]
    shuffled = versions[::-1]
    assert sorted(shuffled, key=version_key) == ["v1", "v10", *versions[:-2]]
    assert version_key("1.10") > version_key("1.9")
    assert version_key("v10") > version_key("v9")


names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)
versions = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", fullmatch=True)


@given(names, versions)
def test_references_split_back(name: str, version: str) -> None:
    assert split_ref(f"{name}@{version}") == (name, version)
    assert split_ref(name) == (name, None)


@given(versions, versions)
def test_any_two_versions_compare(a: str, b: str) -> None:
    assert (version_key(a) < version_key(b)) or (version_key(b) <= version_key(a))


segments = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/\\"), min_size=1, max_size=20)
paths = st.lists(segments.filter(lambda s: s not in (".", "..")), min_size=1, max_size=3).map("/".join)


@given(st.dictionaries(paths, st.binary(max_size=8).map(lambda b: hashlib.sha256(b).hexdigest()), max_size=5))
def test_manifests_read_back_equal(files: dict[str, str]) -> None:
    files = {p: h for p, h in files.items() if p.split("/")[0].lower() != "package.toml" and len(p.encode()) < 256}
    files |= dict.fromkeys(("model.onnx", "labels.txt", "samples/good.png"), "0" * 64)
    manifest = Manifest(
        name="a",
        version="1",
        description='tricky "text" \\ and\nlines',
        labels="labels.txt",
        input=BASE.input,
        variants=BASE.variants,
        samples=BASE.samples,
        files=files,
    )
    assert parse_manifest(manifest_text(manifest).encode()) == manifest


@given(st.text(max_size=60))
def test_an_accepted_path_stays_inside(path: str) -> None:
    try:
        check_path(path)
    except PackageError:
        return
    assert os.path.normpath(f"/p/{path}") == "/p/" + path


@given(st.binary(max_size=300))
def test_no_bytes_do_anything_but_parse_or_explain(data: bytes) -> None:
    with pytest.raises(PackageError):
        parse_manifest(data)


def test_a_draft_is_what_a_package_says_before_it_is_sealed(package: Path) -> None:
    sealed = open_package(package)
    with pytest.raises(PackageError, match=r"solder-small@1\.0\.0 is sealed already"):
        read_draft(package)
    text = (package / "package.toml").read_text()
    (package / "package.toml").write_text(text.partition("[files]")[0])
    assert read_draft(package) == BASE
    assert seal_package(package, read_draft(package)).digest == sealed.digest
    (package / "package.toml").write_text("nmae = 1\n" + text)
    with pytest.raises(PackageError, match="nmae"):
        read_draft(package)
