"""The retail data of tau-bench: tables of plain dicts that conversations share, and the changes of each.

orders: order id -> order; users: user id -> user; products: product id -> product with its variants."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Record = dict[str, Any]
Place = tuple[str, str]  # table and key of a record


@dataclass(frozen=True)
class RetailData:
    """The data as loaded, shared by all conversations and never written to."""

    orders: Mapping[str, Record]
    users: Mapping[str, Record]
    products: Mapping[str, Record]

    @cached_property
    def ids_by_email(self) -> Mapping[str, str]:
        """User ids by email in lower case."""
        return {user["email"].lower(): key for key, user in self.users.items()}

    @cached_property
    def ids_by_name_zip(self) -> Mapping[tuple[str, str, str], str]:
        """User ids by first name, last name (both in lower case) and zip code."""
        return {
            (
                user["name"]["first_name"].lower(),
                user["name"]["last_name"].lower(),
                user["address"]["zip"],
            ): key
            for key, user in self.users.items()
        }

    @cached_property
    def variants(self) -> Mapping[str, Record]:
        """Every variant of every product by its item id."""
        return {
            key: variant for product in self.products.values() for key, variant in product["variants"].items()
        }


class RetailDatabase:
    """The data as one conversation sees it: shared records, and copies of those that it has changed."""

    def __init__(self, data: RetailData) -> None:
        self.data = data
        self._copies: dict[Place, Record] = {}

    def read(self, table: str, key: str) -> Record | None:
        """A read-only record; None if it does not exist."""
        return self._copies.get((table, key)) or getattr(self.data, table).get(key)

    def record(self, table: str, key: str) -> Record:
        """An existing record, read-only."""
        return self._copies.get((table, key)) or getattr(self.data, table)[key]

    def edit(self, table: str, key: str) -> Record:
        """This conversation's own copy of an existing record."""
        if (table, key) not in self._copies:
            self._copies[table, key] = deepcopy(getattr(self.data, table)[key])
        return self._copies[table, key]

    def changed(self) -> set[Place]:
        """Where the records differ from the loaded ones."""
        return {
            (table, key)
            for (table, key), copy in self._copies.items()
            if copy != getattr(self.data, table)[key]
        }

    def differing(self, other: RetailDatabase) -> set[Place]:
        """Where the records of two conversations differ."""
        touched = self._copies.keys() | other._copies.keys()
        return {place for place in touched if self.read(*place) != other.read(*place)}


def fields_that_differ(record: Record, wanted: Record) -> list[str]:
    """Names of the fields in which two records are not the same."""
    return sorted(key for key in record.keys() | wanted.keys() if record.get(key) != wanted.get(key))
