"""Questions whose answers repeat what was asked: edits of one file of code, ``python -m benchmarks.edits FILE``.

Each of the 50 asks for the whole file with one name of it changed, as an editor's assistant is asked. They are written
in the format of MT-Bench's questions, for ``--question-file``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from eagle.errors import InputError
from eagle.program import run_program

CODE = '''\
"""A small shop: what is in stock, what is in a basket, what it costs."""

LOW = 5
TAX = 0.19


class Shop:
    def __init__(self, name):
        self.name = name
        self.stock = {}
        self.prices = {}

    def receive(self, article, count, price):
        self.stock[article] = self.stock.get(article, 0) + count
        self.prices[article] = price

    def available(self, article):
        return self.stock.get(article, 0)

    def take(self, article, count):
        if self.available(article) < count:
            raise ValueError(f"only {self.available(article)} of {article} left")
        self.stock[article] -= count

    def low(self):
        return [article for article, count in self.stock.items() if count < LOW]


def total(shop, basket):
    return sum(shop.prices[article] * count for article, count in basket.items())


def with_tax(amount):
    return round(amount * (1 + TAX), 2)


def checkout(shop, basket):
    for article, count in basket.items():
        shop.take(article, count)
    return with_tax(total(shop, basket))


def receipt(shop, basket):
    lines = [f"{count} x {article}" for article, count in basket.items()]
    lines.append(f"total: {with_tax(total(shop, basket))}")
    return "\\n".join(lines)
'''
NEW_NAMES = {
    "Shop": ("Store", "Market", "Outlet", "Depot", "Kiosk"),
    "receive": ("restock", "deliver", "add_stock", "put_in", "fill_up"),
    "available": ("in_stock", "how_many", "left", "count_of", "on_hand"),
    "take": ("remove", "sell", "withdraw", "pick", "hand_out"),
    "low": ("running_out", "to_order", "scarce", "short", "nearly_gone"),
    "total": ("subtotal", "sum_of", "amount_of", "price_of", "net"),
    "with_tax": ("taxed", "gross", "add_tax", "plus_tax", "including_tax"),
    "checkout": ("buy", "pay", "purchase", "settle", "close_sale"),
    "receipt": ("bill", "invoice", "summary", "slip", "printout"),
    "article": ("item", "product", "thing", "ware", "good"),
}


def questions() -> Iterator[dict[str, object]]:
    """The questions, in their order."""
    changes = [(old, new) for old, names in NEW_NAMES.items() for new in names]
    for number, (old, new) in enumerate(changes, start=1):
        asked = f"Rename `{old}` to `{new}` everywhere in this file. Answer with the whole file and nothing else."
        yield {"question_id": number, "category": "edits", "turns": [f"{asked}\n\n```python\n{CODE}```"]}


def edits(argv: Sequence[str] | None) -> None:
    """The whole program.

    Raises:
        InputError: the file cannot be written.
    """
    parse = argparse.ArgumentParser(description="Write questions that ask for edits of one file of code.")
    parse.add_argument("file", type=Path)
    file: Path = parse.parse_args(argv).file
    try:
        file.write_text("".join(json.dumps(question) + "\n" for question in questions()), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {file}: {error}") from error


if __name__ == "__main__":
    sys.exit(run_program(edits))
