"""Folders of pictures as people have them: what is a class, what is a picture, what is left out.

Two layouts are read: a folder for each class, or ``train`` and ``val`` (and ``test``) with such folders.
Whatever looks like another layout is refused with the names of what was found: nothing is guessed.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median

from nas.pictures.decode import SUFFIXES, PictureError, check_picture
from search_spaces.errors import InputError, is_text

VALIDATION_NAMES = ("val", "valid", "validation")
_WANTED = "wanted is a folder for each class, or train/ and val/ with such folders"
# What operating systems, archives, editors and network drives leave behind.
_LEFT_BEHIND = frozenset(
    {
        "$recycle.bin",
        "#recycle",
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "__macosx",
        "__pycache__",
        "desktop.ini",
        "icon\r",
        "lost+found",
        "node_modules",
        "system volume information",
        "thumbs.db",
    }
)
# Pictures all the same: whoever has them will want to know.
_UNREADABLE = frozenset(
    f".{ending}" for ending in ("arw", "cr2", "cr3", "dng", "heic", "heif", "nef", "psd", "svg")
)
# What this program writes: folders with these are its own, as results/ below dataset.root=. is.
_OUTPUTS = ("study.journal", "pareto.csv", "table.json", "partial-*.jsonl", "deployments.csv")
_PART = r"train(?:ing)?|trn|val|valid|validation|test(?:ing)?|tst|eval|evaluation|dev|holdout"
_PART_NAME = re.compile(
    rf"(?:{_PART})(?:[ _.-]*(?:sets?|data|dataset|images?|imgs?|pictures?|photos?|split|\d+))*", re.IGNORECASE
)
_PART_WORD = re.compile(rf"(?:^|[^a-z])(?:{_PART})(?:$|[^a-z])", re.IGNORECASE)
_MOST_NAMES = 6
_MOST_DEPTH = 64


class DatasetError(InputError):
    """A dataset that is not there or cannot be used."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Files with their classes.

    Attributes:
        files: in the order of classes, then of names.
        labels: class number of each file.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.files)

    def at(self, indices: Sequence[int]) -> Pictures:
        """Some of them."""
        return Pictures(tuple(self.files[i] for i in indices), tuple(self.labels[i] for i in indices))


@dataclass(frozen=True, slots=True)
class PictureFolder:
    """The contents of a folder of pictures.

    Attributes:
        classes: names, NFC-normalised, by code point: the order of class numbers.
        train: pictures to train on, or to split.
        validation: pictures of ``val/``, or ``test/`` where there is no other; None without such a folder.
        test: pictures of ``test/`` where there is ``val/`` too.
        copies: of the pictures in ``train``, those with the content of an earlier one: index to index.
        ignored: how many files or folders were left out, by kind.
        notes: what else to know, each a short phrase.
    """

    classes: tuple[str, ...]
    train: Pictures
    validation: Pictures | None = None
    test: Pictures | None = None
    copies: Mapping[int, int] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All pictures."""
        return sum((each.files for each in (self.train, self.validation, self.test) if each), ())

    def digest(self) -> str:
        """A digest of the names and sizes of the pictures: it tells whether they are still the same."""
        found = sorted(f"{path} {path.stat().st_size if path.exists() else 0}" for path in self.files)
        return hashlib.sha256("\n".join(found).encode(errors="surrogateescape")).hexdigest()[:16]

    def summary(self) -> str:
        """One line: classes, pictures in each, what was left out."""
        counts = Counter(self.train.labels)
        sizes = sorted(counts[number] for number in range(len(self.classes)))
        parts = [
            f"{len(self.classes)} classes ({listed(self.classes)})",
            f"{len(self.train):,} pictures (in a class: min {sizes[0]:,}, median {median(sizes):g}, "
            f"max {sizes[-1]:,})",
        ]
        for name, part in (("validation", self.validation), ("test", self.test)):
            if part:
                parts.append(f"{len(part):,} for {name}")
        if self.ignored:
            parts.append("ignored: " + ", ".join(f"{count:,} {kind}" for kind, count in self.ignored.items()))
        return "; ".join([*parts, *self.notes])


def read_folder(root: Path, skip_unreadable: bool = False) -> PictureFolder:
    """The classes and pictures below a folder.

    Args:
        root: the folder.
        skip_unreadable: open every picture, and leave out and name those that cannot be read; otherwise none
            is opened.

    Raises:
        DatasetError: if it is no such folder, has another layout, or a class without pictures; the message
            names the folders found.
    """
    scan = _Scan(root, skip_unreadable)
    folders = scan.class_candidates(root)
    by_name = {each.name: each for each in folders}
    if "train" in by_name and scan.is_nested(by_name["train"]):
        return _of_parts(scan, root, by_name)
    _check_layout(scan, root, folders)
    classes = scan.classes(root, folders)
    names = tuple(sorted(classes))
    train = scan.pictures(classes, names)
    copies, notes = _copies(train)
    return PictureFolder(names, train, copies=copies, ignored=scan.ignored, notes=(*scan.notes, *notes))


def read_parts(root: Path) -> PictureFolder:
    """The pictures of class folders below ``train`` and ``val``, as ImageNet's; copies are not looked for.

    Raises:
        DatasetError: as :func:`read_folder`.
    """
    scan = _Scan(root)
    names, parts = _parts(scan, [root / "train", root / "val"])
    return PictureFolder(names, parts[0], parts[1], ignored=scan.ignored, notes=tuple(scan.notes))


def check_pictures(files: Sequence[Path]) -> None:
    """Read every picture to its end, several at once.

    Raises:
        PictureError: naming the first that cannot be used, and how many more there are.
    """

    def problem(path: Path) -> str | None:
        try:
            check_picture(path)
        except PictureError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        found = [each for each in pool.map(problem, files) if each]
    if found:
        more = f" ({len(found) - 1:,} more like it)" if len(found) > 1 else ""
        raise PictureError(found[0] + more)


def listed(names: Sequence[str]) -> str:
    """Names for a message, the first few of many."""
    shown = ", ".join(names[:_MOST_NAMES])
    return f"{shown}, and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else shown


class _Scan:
    """Reads folders and counts what it leaves out."""

    def __init__(self, root: Path, skip_unreadable: bool = False) -> None:
        self.ignored: Counter[str] = Counter()
        self._notes: list[str] = []
        self._unreadable: list[str] | None = [] if skip_unreadable else None
        self._root = root
        self._listings: dict[Path, list[os.DirEntry[str]]] = {}

    @property
    def notes(self) -> list[str]:
        """Short phrases on what else to know."""
        if not self._unreadable:
            return self._notes
        return [*self._notes, f"left out, as they cannot be read: {listed(self._unreadable)}"]

    def class_candidates(self, folder: Path) -> list[Path]:
        """Folders in a folder that may be classes, by name."""
        found = []
        for entry in self._entries(folder):
            path = folder / entry.name
            if self._leads_up(entry, path):
                continue
            if not _is_folder(entry):
                kind = path.suffix.lower()
                self._leave_out("pictures outside the class folders" if kind in SUFFIXES else _kind(path))
            elif _is_output(path, self.is_nested(path)):
                self._leave_out(f"folder {entry.name}/ (results of this program)")
            elif (path / "pyvenv.cfg").exists():
                self._leave_out(f"folder {entry.name}/ (a Python environment)")
            else:
                found.append(path)
        return found

    def is_nested(self, folder: Path) -> bool:
        """True if it holds folders, and no pictures beside them."""
        return bool(self.subfolders(folder)) and not self.holds_pictures(folder)

    def holds_pictures(self, folder: Path) -> bool:
        """True if there are pictures in the folder itself."""
        return any(
            Path(each.name).suffix.lower() in SUFFIXES and not _is_folder(each)
            for each in self._entries(folder)
        )

    def subfolders(self, folder: Path) -> list[str]:
        """Names of the folders in it."""
        return [each.name for each in self._entries(folder) if _is_folder(each)]

    def classes(self, root: Path, folders: Sequence[Path]) -> dict[str, list[Path]]:
        """Pictures of each class, by its name; spellings that differ in their code points alone are one.

        Raises:
            DatasetError: for a single class, and for one without pictures.
        """
        found: dict[str, list[Path]] = defaultdict(list)
        for folder in folders:
            if not is_text(folder.name):
                raise DatasetError(
                    f"the class folder {folder} has a name that is no text in UTF-8: rename it"
                )
            before = Counter(self.ignored)
            pictures = list(self._below(folder, {folder.resolve()}))
            if not pictures:
                others = ", ".join(f"{n} {kind}" for kind, n in (self.ignored - before).items())
                read = f" that can be read ({others})" if others else ""
                raise DatasetError(f"the class folder {folder} holds no image{read}")
            found[unicodedata.normalize("NFC", folder.name)] += pictures
        if len(found) < 2:
            hint = ""
            for folder in folders:
                if self.is_nested(folder):
                    inside = listed(self.subfolders(folder))
                    hint = f", {folder.name}/ with {inside} in it: is {folder} the folder to name?"
            raise DatasetError(f"{root} holds {len(found)} class folder(s){hint}; at least two are needed")
        return dict(found)

    def pictures(self, classes: Mapping[str, Sequence[Path]], names: Sequence[str]) -> Pictures:
        """Files and class numbers."""
        files = [(path, number) for number, name in enumerate(names) for path in classes[name]]
        return Pictures(tuple(path for path, _ in files), tuple(number for _, number in files))

    def _below(self, folder: Path, seen: set[Path], depth: int = 1) -> Iterator[Path]:
        if depth > _MOST_DEPTH:
            raise DatasetError(f"{folder} lies more than {_MOST_DEPTH} folders deep: {_WANTED}")
        for entry in self._entries(folder):
            path = folder / entry.name
            if _is_folder(entry):
                real = path.resolve()
                if self._leads_up(entry, path):
                    continue
                if real not in seen:
                    seen.add(real)
                    yield from self._below(path, seen, depth + 1)
            elif path.suffix.lower() in SUFFIXES:
                if not path.is_file() and path.exists():  # a link to nothing is told where it is read
                    self._leave_out("special files")
                    continue
                changed_ns = path.stat().st_mtime_ns if path.exists() else 0
                if self._unreadable is not None and not _readable(path, changed_ns):
                    self._unreadable.append(str(path.relative_to(self._root)))
                    continue
                yield path
            else:
                self._leave_out(_kind(path))

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        if folder not in self._listings:
            try:
                with os.scandir(folder) as entries:
                    every = sorted(entries, key=lambda each: each.name)
            except OSError as error:
                raise DatasetError(f"{folder} cannot be read: {error.strerror}") from None
            kept = []
            for entry in every:
                kind = _left_behind(entry.name)
                if kind is None:
                    kept.append(entry)
                else:
                    self._leave_out(kind)
            self._listings[folder] = kept
        return self._listings[folder]

    def _leads_up(self, entry: os.DirEntry[str], path: Path) -> bool:
        if not entry.is_symlink() or not _is_folder(entry):
            return False
        real = path.resolve()
        if real not in path.absolute().parents and real not in path.parent.resolve().joinpath("-").parents:
            return False
        self._notes.append(f"the link {path} leads back to a folder above it: not followed")
        return True

    def _leave_out(self, kind: str) -> None:
        self.ignored[kind] += 1


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that may not be looked into
        return False


@cache
def _readable(path: Path, changed_ns: int) -> bool:
    """True if a picture can be read; asked for the same file several times in a command."""
    try:
        check_picture(path)
    except PictureError:
        return False
    return True


def _left_behind(name: str) -> str | None:
    if name.startswith("._"):
        return "._ files"
    if name.casefold() in _LEFT_BEHIND:
        return name.strip()
    return "hidden" if name.startswith(".") else None


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    return f"{suffix} (cannot be read)" if suffix in _UNREADABLE else suffix or "without ending"


def _is_output(folder: Path, nested: bool) -> bool:
    below = [pattern for name in _OUTPUTS for pattern in (f"*/{name}", f"*/*/{name}")] if nested else []
    return any((folder / name).exists() for name in _OUTPUTS) or any(
        next(folder.glob(pattern), None) for pattern in below
    )


def _check_layout(scan: _Scan, root: Path, folders: Sequence[Path]) -> None:
    """Refuse training and test sets under other names: they would be taken for classes."""
    names = [each.name for each in folders]
    found = f"{root} holds {listed([f'{name}/' for name in names])}"
    nested = [each for each in folders if scan.is_nested(each)]
    parts = [each.name for each in nested if _PART_NAME.fullmatch(each.name)]
    if folders and len(nested) == len(folders):
        parts = parts or [each.name for each in nested if _PART_WORD.search(each.name)]
    if parts:
        raise DatasetError(f"{found}: {listed(parts)} would be parts of a dataset, not classes; {_WANTED}")
    flat = {name[:2].casefold() == "tr" for name in names if _PART_NAME.fullmatch(name)}
    if len(flat) > 1:
        raise DatasetError(f"{found}: parts of a dataset, without class folders in them; {_WANTED}")
    if len(nested) == len(folders) > 1:
        shared = set.intersection(*(set(scan.subfolders(each)) for each in nested))
        if len(shared) > 1:
            raise DatasetError(
                f"{found}, each with the folders {listed(sorted(shared))}: which are the classes? {_WANTED}"
            )


def _of_parts(scan: _Scan, root: Path, by_name: Mapping[str, Path]) -> PictureFolder:
    judging = [name for name in VALIDATION_NAMES if name in by_name]
    strange = [
        name
        for name, path in by_name.items()
        if name not in ("train", "test", *judging)
        and (_PART_NAME.fullmatch(name) or scan.holds_pictures(path))
    ]
    if strange or len(judging) > 1:
        found = listed([f"{name}/" for name in by_name])
        raise DatasetError(f"{root} holds {found}: which are training and validation pictures? {_WANTED}")
    wanted = ["train", *judging, *(["test"] if "test" in by_name else [])]
    for name in by_name:
        if name not in wanted:
            scan.ignored[f"folder {name}/"] += 1
    names, parts = _parts(scan, [by_name[name] for name in wanted])
    train, *others = parts
    if not others:
        copies, notes = _copies(train)
        return PictureFolder(names, train, None, None, copies, scan.ignored, (*scan.notes, *notes))
    for name, part in zip(wanted[1:], others, strict=True):
        train = _without_copies(scan, train, part, name)
    lost = [names[number] for number in range(len(names)) if number not in set(train.labels)]
    if lost:
        raise DatasetError(f"all pictures of {listed(lost)} in {root}/train are in {wanted[1]}/ too")
    test = others[1] if len(others) > 1 else None
    return PictureFolder(names, train, others[0], test, {}, scan.ignored, tuple(scan.notes))


def _without_copies(scan: _Scan, train: Pictures, kept: Pictures, name: str) -> Pictures:
    digests = _digests([train, kept])
    known = {digests[path] for path in kept.files if path in digests}
    chosen = [index for index, path in enumerate(train.files) if digests.get(path) not in known]
    if copies := len(train) - len(chosen):
        scan.notes.append(f"{copies:,} pictures of train/ are in {name}/ too: kept there alone")
    return train.at(chosen)


def _parts(scan: _Scan, folders: Sequence[Path]) -> tuple[tuple[str, ...], list[Pictures]]:
    classes = [scan.classes(folder, scan.class_candidates(folder)) for folder in folders]
    names = tuple(sorted(classes[0]))
    for folder, found in zip(folders[1:], classes[1:], strict=True):
        lacking, surplus = sorted(set(names) - set(found)), sorted(set(found) - set(names))
        if lacking or surplus:
            says = f"lacks {listed(lacking)}" if lacking else f"has {listed(surplus)} too"
            raise DatasetError(f"{folder} does not have the same class folders as {folders[0]}: it {says}")
    return names, [scan.pictures(each, names) for each in classes]


def _copies(pictures: Pictures) -> tuple[dict[int, int], list[str]]:
    """Pictures that are there twice, and what to say of them."""
    digests = _digests([pictures])
    first: dict[str, int] = {}
    copies: dict[int, int] = {}
    contradicting: list[str] = []
    for index, path in enumerate(pictures.files):
        if (digest := digests.get(path)) is None:
            continue
        original = first.setdefault(digest, index)
        if original != index:
            copies[index] = original
            if pictures.labels[index] != pictures.labels[original]:
                contradicting.append(f"{pictures.files[original]} = {path}")
    notes = [f"{len(copies):,} copies of other pictures, kept on their side of the split"] if copies else []
    if contradicting:
        notes.append(f"{len(contradicting):,} pictures lie in two classes: {contradicting[0]}")
    return copies, notes


def _digests(parts: Sequence[Pictures]) -> dict[Path, str]:
    """Digests of the content of files that have the size of another one; the others are unique."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in dict.fromkeys(path for part in parts for path in part.files):
        try:
            by_size[path.stat().st_size].append(path)
        except OSError:
            continue  # said when it is read
    found = {}
    for paths in by_size.values():
        if len(paths) > 1:
            for path in paths:
                with path.open("rb") as file:
                    found[path] = hashlib.file_digest(file, "blake2b").hexdigest()
    return found
