"""Folders of photographs as they are found: names of splits, files that are not used, links; by names alone."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import pytest
from PIL import Image

from trainer.data.photographs.decoding import READ, SUFFIXES
from trainer.data.photographs.layout import scan, split_of

TRAIN = ["train/cat/1.jpg", "train/cat/2.jpg", "train/dog/3.jpg"]
VAL = ["val/cat/4.jpg", "val/dog/5.jpg"]


def write(root: Path, names: list[str]) -> Path:
    """Empty files and, where a name ends with a slash, folders; `a -> b` is a link."""
    root.mkdir(exist_ok=True)
    for name in names:
        name, _, target = name.partition(" -> ")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if target:
            path.symlink_to(target)
        elif name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.touch()
    return root


NAMES = {
    "train": "train Train TRAIN trains training Training trn trainset train_set train-data training_images "
    "train2017 ILSVRC2012_img_train 01_train trainval trainA",
    "val": "val Val VAL valid Valid validation Validation VALIDATION validations validate vals val_set "
    "validation-set dev Dev devel development devset val2017 ILSVRC2012_img_val 2-valid",
    "test": "test Test TEST tests testing Testing tst testset test_data test-images test2017 testB",
    "": "eval evaluation Evaluation holdout hold-out held_out",
}  # fmt: skip


def test_usual_names_of_splits() -> None:
    for split, names in NAMES.items():
        assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)
    others = "cat trail rain latest contest protest invalid valley value medieval devil device tester testament data "
    others += "images trainer constrain interval 2017 set train_cat"
    assert [name for name in others.split() if split_of(name) is not None] == []


@pytest.mark.parametrize("train", ["train", "Training", "train_set"])
@pytest.mark.parametrize(
    ("val", "split"), [("valid", "val"), ("Validation", "val"), ("dev", "val"), ("Testing", "test")]
)
def test_splits_of_any_usual_name_are_used(tmp_path: Path, train: str, val: str, split: str) -> None:
    layout = scan(write(tmp_path / "root", [*(name.replace("train", train, 1) for name in TRAIN), f"{val}/dog/9.png"]))
    assert layout.class_names == ("cat", "dog")
    assert {name: files.names for name, files in layout.splits.items()} == {
        "train": tuple(name.replace("train", train, 1) for name in TRAIN), split: (f"{val}/dog/9.png",),
    }  # fmt: skip
    assert layout.splits[split].targets == (1,)
    assert layout.missing == {val: ["cat"]}
    assert not str(layout.unused)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        # splits that are not clear
        ([*TRAIN, *VAL, "valid/cat/1.jpg"], "'val' and 'valid' both mean the val split; leave one of them there"),
        (["Train/cat/1.jpg", *TRAIN], "'Train' and 'train' both mean the train split"),
        (["trainA/cat/1.jpg", "trainB/cat/1.jpg"], "'trainA' and 'trainB' both mean the train split"),
        ([*TRAIN, "eval/cat/1.jpg"], "'eval' may mean a validation or a test split; name it 'val' or 'test'"),
        (["Validation/cat/1.jpg", "cat/2.jpg"], "has the folder 'Validation', but no folder 'train'; put"),
        (["bus/1.jpg", "car/2.jpg", "train/3.jpg"], "'train' means the training split, but 'bus' beside it has"),
        ([*TRAIN, "more/deep/4.jpg"], "'train' means the training split, but 'more' beside it has photographs, too"),
        # splits at another level
        (["cat/train/1.jpg", "cat/val/2.jpg", "dog/train/3.jpg"], "'cat/val' means the val split, but is within"),
        (["train/cat/testing/1.jpg", *TRAIN], "'train/cat/testing' means the test split, .*: test/cat"),
        (["data/train/cat/1.jpg"], r"has one folder, which contains 'train'; did you mean data.root=\S+/root/data\?"),
        (["train/train/cat/1.jpg", "train/train/dog/1.jpg"], "'train/train' means a split within a split; its"),
        (["train/training/cat/1.jpg", "train/valid/cat/1.jpg"], "'train/training' means a split within a split"),
        (["images/train/1.jpg", "images/val/2.jpg", "labels/train/1.txt"], "'images/val' means the val split"),
        # no classes
        (["train/1.jpg", "train/2.jpg", "test/3.jpg"], r"for each class, but has 2 photographs \(first "),
        (["1.jpg"], "must contain a folder of photographs for each class, but has 1 photograph"),
        (["train/", "val/cat/1.jpg"], "must contain a folder of photographs for each class, but is empty"),
        ([*TRAIN, "test/1.jpg"], "the folder 'test' has no photographs in class folders; if it is moved"),
        ([*TRAIN, "test/"], "the folder 'test' has no photographs in class folders"),
        # classes
        ([*TRAIN, "train/empty/"], "the class 'empty' has no training photographs: its folder is empty"),
        ([*TRAIN, "train/text/a.txt"], r"class 'text' has no training photographs: its folder has 1 other file"),
        ([*TRAIN, "train/mac/.DS_Store"], "the class 'mac' has no training photographs: its folder has 1 hidden file"),
        ([*TRAIN, "val/Cat/1.jpg"], "'val/Cat' is not a class of 'train'. Did you mean 'cat'?"),
        ([*TRAIN, "val/DOG/1.jpg"], "'val/DOG' is not a class of 'train'. Did you mean 'dog'?"),
        ([*TRAIN, "val/unknown/1.jpg"], "'val/unknown' is not a class of 'train'. Classes: cat, dog"),
        (["train/cat -> ../train", "train/dog/1.jpg"], "the class 'cat' has no training photographs"),
    ],
)  # fmt: skip
def test_what_is_not_clear_is_refused_in_one_line(tmp_path: Path, names: list[str], message: str) -> None:
    root = write(tmp_path / "root", names)
    with pytest.raises(ValueError, match=message.replace("?", r"\?") if "Did" in message else message) as caught:
        scan(root)
    assert str(caught.value).startswith(f"root={root}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "count", "unused"),
    [
        # counted and told
        (["train/cat/a.txt", "train/cat/b.txt", "train/dog/c.TXT"], 0, "3 .txt files (first train/cat/a.txt)"),
        (["train/cat/n01440764_10026"], 0, "1 file without a suffix (train/cat/n01440764_10026)"),
        (["train/cat/a.mp4", "train/cat/b.zip"], 0, "1 .mp4 file (train/cat/a.mp4), 1 .zip file (train/cat/b.zip)"),
        (["9.jpg", "train/8.jpg"], 0, "2 photographs outside the folders of classes (first 9.jpg)"),
        ([*VAL, "unlabelled/1.jpg", "raw/"], 0, "2 folders beside the splits (first raw)"),
        # links that would repeat photographs, under another class or forever
        (["train/cat/loop -> ."], 0, "1 link to a folder that is above it or read already (train/cat/loop)"),
        (["train/cat/up -> ../.."], 0, "1 link to a folder that is above it or read already (train/cat/up)"),
        (["train/cat/all -> /"], 0, "1 link to a folder that is above it or read already (train/cat/all)"),
        (["train/cat/dogs -> ../dog", "train/dog/cats -> ../cat"], 0,
         "2 links to a folder that is above it or read already (first train/cat/dogs)"),
        (["train/cat/self -> self"], 0, "1 file without a suffix (train/cat/self)"),
        (["train/cat/x/9.jpg", "train/cat/y -> x", "train/cat/z -> y"], 1,
         "2 links to a folder that is above it or read already (first train/cat/y)"),
        # taken
        (["train/cat/young/small/9.jpg", "train/cat/train/8.jpg"], 2, ""),
        (["train/cat/linked.jpg -> 1.jpg", "../elsewhere/9.jpg", "train/cat/link -> ../../../elsewhere"], 2, ""),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_used_is_counted(tmp_path: Path, names: list[str], count: int, unused: str) -> None:
    layout = scan(write(tmp_path / "root", [*TRAIN, *names]))
    assert (layout.class_names, len(layout.splits["train"].names)) == (("cat", "dog"), len(TRAIN) + count)
    assert str(layout.unused) == unused
    assert layout.unused.is_expected is (not unused)


def test_hidden_files_and_those_beside_the_classes_are_expected(tmp_path: Path) -> None:
    hidden = ["train/cat/.DS_Store", "train/cat/._1.jpg", "train/dog/Thumbs.db", "train/dog/desktop.ini", ".git/a.jpg",
              "__MACOSX/train/cat/._1.jpg", "train/cat/@eaDir/1.jpg", "train/.ipynb_checkpoints/1.jpg"]  # fmt: skip
    layout = scan(write(tmp_path / "root", [*TRAIN, *VAL, *hidden, "labels.csv", "val/README", "MANIFEST.tsv"]))
    assert layout.class_names == ("cat", "dog")
    assert [len(files.names) for files in layout.splits.values()] == [3, 2]
    assert layout.unused.is_expected
    assert sorted(str(layout.unused).split(", ")) == [
        "2 other files beside the folders (first labels.csv)", "4 hidden files (first train/cat/.DS_Store)",
        "4 hidden folders (first .git)",
    ]  # fmt: skip


def test_every_suffix_of_an_image_is_taken_or_named(tmp_path: Path) -> None:
    Image.init()
    of_torchvision = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}  # its ImageFolder
    assert of_torchvision <= set(READ)
    common = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "JPEG2000", "AVIF", "TIFF", "QOI", "TGA", "ICO", "PSD")
    assert {suffix for suffix, form in Image.EXTENSION.items() if form in common} <= {*SUFFIXES, ".vda", ".vst", ".icb"}
    root = write(tmp_path / "root", [*TRAIN, *(f"train/cat/x{suffix.upper()}" for suffix in SUFFIXES)])
    assert len(scan(root).splits["train"].names) == len(TRAIN) + len(SUFFIXES)
    assert not str(scan(root).unused)


@pytest.mark.parametrize("names", [TRAIN, [*TRAIN, *VAL]])
def test_a_cache_inside_the_folder_is_neither_a_class_nor_a_split(names: list[str], tmp_path: Path) -> None:
    root = write(tmp_path / "root", [name.removeprefix("train/") for name in names] if names is TRAIN else names)
    without = scan(root)
    write(root, ["cache/deep/file.bin"])
    assert scan(root, root / "cache/deep") == replace(without, unused=ANY)
    assert not str(scan(root, root / "cache").unused)
