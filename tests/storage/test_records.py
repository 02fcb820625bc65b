"""JSON and YAML files that notice damage, and are read safely whatever they contain."""

import json
import math
import time
from pathlib import Path

import pytest

from trainer.base.errors import DataError
from trainer.storage.records import is_unchanged, read_json, read_yaml, write_json, write_yaml


def test_json_keeps_the_order_of_its_keys_and_ends_with_a_checksum(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"b": 1, "a": [True, None]})
    assert list(json.loads((tmp_path / "file.json").read_text())) == ["b", "a", "sha256"]
    assert read_json(tmp_path / "file.json") == {"b": 1, "a": [True, None]}


def test_what_was_read_can_be_written_again(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"a": 0.1, "nested": {"b": [1e300, "é"]}})
    before = (tmp_path / "file.json").read_bytes()
    write_json(tmp_path / "file.json", json.loads(before))
    assert (tmp_path / "file.json").read_bytes() == before


def test_numbers_that_are_not_finite_are_valid_json(tmp_path: Path) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"bare {word}")

    write_json(tmp_path / "file.json", {"a": math.nan, "b": {"c": [math.inf, -math.inf]}})
    json.loads((tmp_path / "file.json").read_text(), parse_constant=refuse)
    found = read_json(tmp_path / "file.json")
    assert found == {"a": "nan", "b": {"c": ["inf", "-inf"]}}
    assert math.isnan(float(found["a"]))


def test_every_changed_character_of_json_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    value = {"status": "completed", "steps": 120, "best": {"metrics": {"val/loss": 0.25}}, "error": None}
    write_json(path, value)
    good = path.read_bytes()
    for place in range(len(good)):
        for byte in (good[place] ^ 1, good[place] ^ 32, 0x39):
            path.write_bytes(good[:place] + bytes([byte]) + good[place + 1 :])
            try:
                assert read_json(path) == value
            except DataError as error:
                assert "is damaged" in str(error)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", b"NaN", b"[" * 100_000, b"1" * 5000, b'{"sha256": 1}', b'{"a": 1}']
)
def test_json_that_is_none_is_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(DataError, match=r"file\.json is damaged"):
        read_json(tmp_path / "file.json")


def test_a_folder_in_place_of_a_file_is_damage(tmp_path: Path) -> None:
    for read in (read_json, read_yaml):
        with pytest.raises(DataError, match=r"cannot be read: Is a directory"):
            read(tmp_path)


# 500 bytes for 10^12 values
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)
)


NO_YAML = [
    BOMB, "[" * 100_000, "{a: " * 5000, "- " * 5000, "a: 2020-99-99", "? [1]\n: 2", "a: !!python/name:os.system",
    "a: !!int _", "a: " + "1" * 5000, "a: [1", "\x00",
]  # fmt: skip


@pytest.mark.parametrize("content", NO_YAML)
def test_yaml_that_would_take_long_or_is_none_is_damage_at_once(tmp_path: Path, content: str) -> None:
    (tmp_path / "file.yaml").write_text(content)
    begin = time.process_time()
    with pytest.raises(DataError, match=r"file\.yaml is damaged") as caught:
        read_yaml(tmp_path / "file.yaml")
    assert time.process_time() - begin < 0.5
    assert "\n" not in str(caught.value)


def test_yaml_knows_whether_it_was_edited(tmp_path: Path) -> None:
    path, shared = tmp_path / "file.yaml", [1, 2]
    write_yaml(path, {"a": 0.001, "b": shared, "c": shared}, "A heading")
    assert read_yaml(path) == {"a": 0.001, "b": [1, 2], "c": [1, 2]}, "a value that occurs twice needs no alias"
    assert is_unchanged(path)
    content = path.read_text()
    path.write_text(content.replace("0.001", "0.003"))
    assert not is_unchanged(path)
    path.write_text("".join(content.replace("0.001", "0.003").splitlines(keepends=True)[2:]))
    assert is_unchanged(path), "without its checksum it is a file that someone wrote by hand"
