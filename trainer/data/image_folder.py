"""Photographs in one folder per class, in ImageNet's layout."""

import logging
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from trainer.base.checks import check_fraction, check_number, check_one_of, check_that, check_whole
from trainer.base.text import join_names
from trainer.data import memory
from trainer.data.facts import DataFacts, DataSet, Part, Splits
from trainer.data.photographs import caching
from trainer.data.photographs.decoding import SUFFIXES
from trainer.data.photographs.inspection import Inspected, Inspection, shown, some_of
from trainer.data.photographs.layout import SPLITS, Files, Layout, scan
from trainer.data.photographs.manifest import read_manifest
from trainer.data.photographs.reading import Collection, Photographs
from trainer.data.photographs.storage import Decoded, Store
from trainer.data.photographs.workers import start_server
from trainer.data.split import check_root, check_split_seed, cut_size, stratified_cut

logger = logging.getLogger(__name__)

_MOST_SECONDS, _MOST_PIXELS, _MOST_WORKERS = 1_000_000, 4096, 256


class ImageFolder(DataSet):
    """Photographs in `root/<class>/...`, or in `root/train/<class>/...` with `val`, `test` or both beside `train`.

    Other usual names of these folders are understood (`valid`, `dev`, `Testing`, ...). A missing split is cut from the
    training split, stratified: first `test_fraction` of it, then `val_fraction` of it, so that `val_fraction` does not
    affect the test split. Image files are found by their suffix, also in subfolders of a class. What is not used is
    counted and reported: other files, hidden files, folders beside the splits, links that would be read twice. If
    `root/MANIFEST.tsv` lists `path` and `sha256`, files that do not match it are bad files.

    Images are uint8 (3, size, size), framed as they are read: for evaluation the short side is resized to
    `evaluation_scale * size` and the centre is cropped; for training the augmentation decides. `max_side` stores
    photographs with a short side of at most that many pixels.

    `cache`: "memory" decodes everything once and keeps the pixels if they fit into `memory_limit` (bytes, or text such
    as "4GB"; "auto" is half of the free memory); otherwise it keeps the encoded files; if these do not fit either, it
    keeps nothing. "disk" keeps the pixels in a file in `cache_dir` (null: the user's cache folder). "none" reads the
    files each time. The images are bit-identical in all cases. Photographs that are not kept decoded are read by
    `workers` processes (0: by this process); a worker that does not answer for `timeout` seconds is replaced.

    `on_bad_file`: "error" ends the run with the names of files that are damaged, unreadable or not images; "skip"
    omits them (every file is decoded once to find them, and the result is stored in `cache_dir`).

    Source: the layout of ImageNet (Russakovsky et al., 2015) and of torchvision's ImageFolder. Raises ValueError.
    """

    def __init__(
        self,
        root: str,
        size: int = 224,
        evaluation_scale: float = 256 / 224,
        max_side: int | None = None,
        cache: Literal["memory", "disk", "none"] = "memory",
        memory_limit: int | str = "auto",
        cache_dir: str | None = None,
        workers: int = 2,
        timeout: float = 60.0,
        on_bad_file: Literal["error", "skip"] = "error",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        check_root(root)
        check_whole("size", size, 1, _MOST_PIXELS, must=f"from 1 to {_MOST_PIXELS} pixels")
        check_number("evaluation_scale", evaluation_scale, 1, 10)
        if max_side is not None:
            check_whole("max_side", max_side, 1, must="null or 1 pixel or more")
        check_one_of("cache", cache, ("memory", "disk", "none"))
        check_whole("workers", workers, 0, _MOST_WORKERS)
        must = f"more than 0 seconds, at most {_MOST_SECONDS:,}"
        check_number("timeout", timeout, 0, _MOST_SECONDS, above=True, must=must)
        check_one_of("on_bad_file", on_bad_file, ("error", "skip"))
        for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            check_fraction(name, fraction)
        check_split_seed(split_seed)
        self._limit = memory.parse_limit(memory_limit)
        self.root = Path(root).expanduser()
        self.size, self.short_side, self.max_side = size, round(evaluation_scale * size), max_side
        self.cache, self.cache_dir = cache, memory.cache_folder(cache_dir)
        self.workers, self.timeout, self.on_bad_file = workers, timeout, on_bad_file
        self.val_fraction, self.test_fraction, self.split_seed = val_fraction, test_fraction, split_seed

    def facts(self) -> DataFacts:
        """Raises FileNotFoundError or NotADirectoryError without a root, ValueError for another layout."""
        parts = self._used
        if len(self._class_names) < 2:
            raise ValueError(f"root={self.root}: has one class, {self._class_names[0]}; at least two are required")
        return DataFacts(
            task="classification",
            input_shape=(3, self.size, self.size),
            num_outputs=len(self._class_names),
            num_train=len(parts["train"].names),
            num_val=len(parts["val"].names),
            num_test=len(parts["test"].names),
            class_names=self._class_names,
        )

    @property
    def fixed_validation(self) -> bool:  # type: ignore[override]
        """Whether there is a folder of validation photographs. Raises as `facts`."""
        return "val" in self._layout.splits

    def is_present(self) -> bool:
        return self.root.is_dir()

    def check(self) -> None:
        """Raises FileNotFoundError or NotADirectoryError without a root, ValueError for another layout."""
        self.facts()

    def load(self) -> Splits:
        if self.cache == "none" and self.workers:
            start_server()  # it loads torch in the background
        parts = self._used
        self._tell_unused()
        if self.on_bad_file == "error":
            caching.raise_bad(self.root, self._num_known, self._bad)
        elif self._bad:
            logger.warning(
                "%s of %s photographs in %s are skipped (train.log lists all): %s",
                f"{len(self._bad):,}", f"{self._num_known:,}", self.root, some_of(self._bad, 3),
            )  # fmt: skip
            for name, reason in self._bad.items():
                logger.info("skipped: %s (%s)", shown(name), reason)
        if self._unlisted:
            logger.warning(
                "the manifest does not list %d photographs, which are not compared; the first is %s",
                len(self._unlisted), shown(self._unlisted[0]),
            )  # fmt: skip
        names = [name for part in SPLITS for name in parts[part].names]
        source = caching.Source(
            self.root, names, [self._inspected[name] for name in names], self.max_side, max(1, self.workers)
        )
        collection = Collection(
            self._keep(source), names, source.sha256s, torch.tensor(source.sizes).view(-1, 2),
            size=self.size, short_side=self.short_side, workers=self.workers, timeout=self.timeout,
        )  # fmt: skip
        numbers = torch.arange(len(names)).split([len(parts[part].names) for part in SPLITS])
        return Splits(
            *(
                Part(Photographs(collection, n), torch.tensor(parts[part].targets, dtype=torch.int64))
                for part, n in zip(SPLITS, numbers, strict=True)
            )
        )

    def _tell_unused(self) -> None:
        layout = self._layout
        if text := str(layout.unused):
            level = logging.INFO if layout.unused.is_expected else logging.WARNING
            logger.log(level, "not used in %s: %s", self.root, text)
        for folder, labels in layout.missing.items():
            logger.warning(
                "'%s' has no photographs of %d of %d classes: %s",
                folder, len(labels), len(layout.class_names), join_names(labels, 5),
            )  # fmt: skip

    def storage(self) -> dict[str, str]:
        """Describe what keeping the photographs costs, from the sizes of some, and what is not used."""
        decoded, encoded = self._cost
        cost = f"about {memory.as_bytes(decoded)} decoded, {memory.as_bytes(encoded)} in files"
        if self.cache == "memory":
            limit = memory.as_bytes(self.memory_limit)
            cost += f"; data.memory_limit is {limit}: {caching.choose_layout(decoded, encoded, self.memory_limit)}"
        elif self.cache == "disk":
            cost += f"; mapped from a file, {caching.describe_files(self.root, self.cache_dir)}"
        else:
            cost += "; read and decoded each time"
        rows = {"photographs": cost, "not used": str(self._layout.unused)}
        rows |= {f"not in {folder}": join_names(labels, 5) for folder, labels in self._layout.missing.items()}
        return {label: phrase for label, phrase in rows.items() if phrase}

    def memory_taken(self) -> int:
        """Bytes of memory for keeping the photographs, estimated as for `storage`; 0 if they are on disk."""
        return caching.bytes_in_memory(*self._cost, self.memory_limit) if self.cache == "memory" else 0

    def seconds_to_read(self) -> float | None:
        """Seconds that one worker needs for a photograph, measured on some; None if pixels are kept."""
        fits = caching.choose_layout(*self._cost, self.memory_limit) == Decoded.IN_MEMORY
        if self.cache == "disk" or (self.cache == "memory" and fits):
            return None
        names = list(self._used["train"].names)
        return caching.seconds_to_read(self.root, names, self.max_side, self.size, self.short_side)

    @property
    def memory_limit(self) -> int:
        """Bytes that cache=memory may use."""
        return memory.free_share() if self._limit is None else self._limit

    @cached_property
    def _cost(self) -> tuple[int, int]:
        names = [name for files in self._used.values() for name in files.names]
        return caching.estimate(self.root, names, self.max_side)

    def _keep(self, source: caching.Source) -> Store:
        if self.cache == "memory":
            return caching.in_memory(source, self.memory_limit)
        return caching.on_disk(source, self.cache_dir) if self.cache == "disk" else caching.in_files(source)

    @cached_property
    def _layout(self) -> Layout:
        return scan(self.root, self.cache_dir)

    @property
    def _class_names(self) -> tuple[str, ...]:
        return self._layout.class_names

    @cached_property
    def _parts(self) -> dict[str, Files]:
        """All three splits, including bad files."""
        parts = dict(self._layout.splits)
        total = len(parts["train"].names)
        missing = [name for name in ("test", "val") if name not in parts]
        least = f"a folder of at least {1 + len(missing)} photographs, for {join_names(['training', *missing], 3)}"
        check_that(total > len(missing), "root", str(self.root), least)
        cuts = {name: self._cut_size(name, total) for name in missing}
        if sum(cuts.values()) >= total:
            raise ValueError(
                f"val_fraction={self.val_fraction}: must be below 1 - test_fraction, to leave samples for training"
            )
        for name, count in cuts.items():
            generator = torch.Generator().manual_seed(self.split_seed)
            kept, cut = stratified_cut(torch.tensor(parts["train"].targets), count, generator)
            parts[name], parts["train"] = parts["train"].select(cut.tolist()), parts["train"].select(kept.tolist())
        return parts

    def _cut_size(self, part: str, total: int) -> int:
        return cut_size(f"{part}_fraction", self.val_fraction if part == "val" else self.test_fraction, total)

    @cached_property
    def _names(self) -> list[str]:
        return [name for part in SPLITS for name in self._parts[part].names]

    @cached_property
    def _manifest(self) -> dict[str, str] | None:
        return read_manifest(self.root)

    @cached_property
    def _inspected(self) -> dict[str, Inspected]:
        deep = self.on_bad_file == "skip"
        remembers = deep or self.cache != "memory"
        record = caching.inspection_file(self.root, self.cache_dir, self.max_side, deep) if remembers else None
        inspection = Inspection(self.root, self.max_side, self._manifest, deep=deep, record=record)
        return dict(zip(self._names, inspection.inspect(self._names, max(1, self.workers)), strict=True))

    @cached_property
    def _bad(self) -> dict[str, str]:
        """Problems of the files that cannot be used, by name."""
        bad = {name: entry.problem for name, entry in self._inspected.items() if entry.problem}
        present = set(self._names)
        for name in self._manifest or {}:
            if name not in present and name.startswith(self._layout.prefixes) and name.lower().endswith(SUFFIXES):
                bad[name] = "is listed in the manifest but missing"
        return bad

    @property
    def _num_known(self) -> int:
        """Number of photographs that exist or are listed in the manifest."""
        return len(self._inspected.keys() | self._bad.keys())

    @property
    def _unlisted(self) -> list[str]:
        return [] if self._manifest is None else [name for name in self._names if name not in self._manifest]

    @cached_property
    def _used(self) -> dict[str, Files]:
        """The splits without the files that are skipped."""
        if self.on_bad_file == "error":
            return self._parts
        return {
            part: files.select([n for n, name in enumerate(files.names) if name not in self._bad])
            for part, files in self._parts.items()
        }
