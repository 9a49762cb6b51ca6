# SPDX-License-Identifier: Apache-2.0
"""Which module a payload type gets, and the file tree it is given."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from update_agent import payload
from update_agent.config import Config
from update_agent.errors import PayloadError
from update_agent.log import Log
from update_agent.loop import plain_wait
from update_agent.modules import ExternalModule
from update_agent.payload import Tree
from update_agent.rootfs_image import RootfsImage

CURRENT = {"artifact_name": "v1", "device_type": "virt64"}


class Header:
    name, group = "v2", "g2"
    payload_type: str | None = "thing"
    header_info, type_info = b'{ "a":1}', b'{"type": "thing"}'
    meta_data: bytes | None = b'{"k": 1}'


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = Config()
    config.data_dir = str(tmp_path / "share")
    config.datastore = str(tmp_path / "store")
    Path(config.modules_dir()).mkdir(parents=True)
    return config


def find(name: str, config: Config) -> payload.Payload:
    return payload.find(name, config, Log(stream=io.StringIO()), None, plain_wait)  # type: ignore[arg-type]


def add_module(config: Config, name: str, text: str = "#!/bin/sh\n") -> Path:
    path = Path(config.modules_dir()) / name
    path.write_text(text)
    path.chmod(0o755)
    return path


# Finding


@pytest.mark.parametrize("name", ["", ".", "..", "../v3/thing", "/bin/true", "a/b", "a\0b"])
def test_names_that_leave_the_directory(config: Config, name: str) -> None:
    add_module(config, "thing")
    with pytest.raises(PayloadError, match=r"^Update Module not found for given artifact type: .* cannot be"):
        find(name, config)


def test_missing_and_not_executable(config: Config) -> None:
    add_module(config, "plain").chmod(0o644)
    (Path(config.modules_dir()) / "directory").mkdir()
    for name in ("missing", "plain", "directory"):
        with pytest.raises(
            PayloadError,
            match=rf"^Update Module not found for given artifact type: \S+/v3/{name} .*contain the update",
        ):
            find(name, config)


def test_external_modules_may_be_links(config: Config, tmp_path: Path) -> None:
    (Path(config.modules_dir()) / "alias").symlink_to(add_module(config, "thing.v2"))
    assert isinstance(find("alias", config), ExternalModule)


def test_rootfs_image_is_built_in_whatever_is_installed(config: Config) -> None:
    add_module(config, "rootfs-image", "#!/bin/sh\nexit 1\n")
    module = find("rootfs-image", config)
    assert isinstance(module, RootfsImage)
    assert module.query("NeedsArtifactReboot") == "Automatic"


def test_relative_directories_do_not_depend_on_where_the_module_runs(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_module(config, "thing", '#!/bin/sh\ntest "$2" = "$PWD" && echo ok > tmp/seen\n')
    monkeypatch.chdir(tmp_path)
    config.data_dir, config.datastore = "share", "store"
    module = find("thing", config)
    module.prepare(Header(), current=CURRENT)
    module.call("ArtifactInstall")
    assert (Path(config.tree_dir()) / "tmp/seen").exists()


# Tree


def content(tree: Path) -> dict[str, str]:
    return {
        str(path.relative_to(tree)): path.read_text() if path.is_file() else ""
        for path in tree.rglob("*")
        if path.name != "header"
    }


def test_the_tree(tmp_path: Path) -> None:
    path = tmp_path / "store" / "0000" / "tree"
    (path / "old").mkdir(parents=True)
    Tree(str(path)).create(Header(), CURRENT)
    assert content(path) == {
        "version": "3\n",
        "current_artifact_name": "v1\n",
        "current_artifact_group": "",
        "current_device_type": "virt64\n",
        "header/artifact_name": "v2",
        "header/artifact_group": "g2",
        "header/payload_type": "thing",
        "header/header-info": '{ "a":1}',
        "header/type-info": '{"type": "thing"}',
        "header/meta-data": '{"k": 1}',
        "tmp": "",
    }


def test_what_is_not_there_is_an_empty_file(tmp_path: Path) -> None:
    header = Header()
    header.group, header.meta_data = "", None
    Tree(str(tmp_path / "tree")).create(header, {})
    found = content(tmp_path / "tree")
    for name in (
        "current_artifact_name",
        "current_artifact_group",
        "header/artifact_group",
        "header/meta-data",
    ):
        assert found[name] == ""


def test_only_root_may_look_into_the_tree(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Tree(str(tmp_path / "tree")).create(Header(), CURRENT)
    finally:
        os.umask(before)
    for path in (tmp_path / "tree", *(tmp_path / "tree").rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_an_old_tree_that_is_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/keep").write_text("")
    (tmp_path / "tree").symlink_to(tmp_path / "outside")
    Tree(str(tmp_path / "tree")).create(Header(), CURRENT)
    assert not (tmp_path / "tree").is_symlink()
    assert os.listdir(tmp_path / "outside") == ["keep"]


def test_a_tree_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PayloadError, match=r"cannot make the update module's file tree .* data partition"):
        Tree(str(tmp_path / "file" / "tree")).create(Header(), {})


def test_removing(tmp_path: Path) -> None:
    tree = Tree(str(tmp_path / "tree"))
    tree.create(Header(), CURRENT)
    assert tree.exists
    tree.remove()
    assert not tree.exists
    tree.remove()
