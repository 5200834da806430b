"""What stands at a byte of an outbox's files, in words: so that a violation says what was hit."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from outtray.outbox import pages
from outtray.outbox.gate import Header

TABLE_LEAF, INDEX_LEAF = 0x0D, 0x0A

HEADER_FIELDS = (  # of a page: up to which byte
    (1, "kind"),
    (3, "first free block"),
    (5, "count of cells"),
    (7, "start of the cells"),
    (8, "fragmented bytes"),
)
GATE_FIELDS = (
    (8, "magic"),
    (10, "major"),
    (12, "flags"),
    (16, "generation"),
    (24, "epoch"),
    (32, "last_id"),
    (36, "pid"),
    (Header.LAYOUT.size, "padding"),
    (Header.SIZE, "crc"),
)
FRAME_FIELDS = ((4, "page number"), (8, "commit mark"), (16, "salts"), (24, "checksum"))
WAL_FIELDS = ((4, "magic"), (8, "version"), (12, "page size"), (16, "round"), (24, "salts"), (32, "checksum"))


class Map:
    """The files of one outbox, where they are sound."""

    def __init__(self, database: Path) -> None:
        """Read the file *database*, of which nobody has a connection, and its WAL."""
        self._database = database.read_bytes()
        self._wal = Path(f"{database}-wal").read_bytes()
        self._page_bytes = int.from_bytes(self._database[16:18], "big")
        self._trees = self._read_trees(database)

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file that has a map."""
        return {"db": len(self._database), "wal": len(self._wal), "gate": Header.SIZE}

    def at(self, file: str, offset: int) -> str:
        """Return what stands there, as in "wal exceptions.state"."""
        if file == "gate":
            return f"gate {_field(GATE_FIELDS, offset)}"
        if file == "db":
            number, place = divmod(offset, self._page_bytes)
            page = self._database[offset - place : offset - place + self._page_bytes]
            return f"db {self._in_page(number + 1, page, place)}"
        if file != "wal":
            return file
        if offset < 32:
            return f"wal header: {_field(WAL_FIELDS, offset)}"
        frame, place = divmod(offset - 32, self._page_bytes + 24)
        start = 32 + frame * (self._page_bytes + 24)
        if place < 24:
            return f"wal frame header: {_field(FRAME_FIELDS, place)}"
        number = int.from_bytes(self._wal[start : start + 4], "big")
        page = self._wal[start + 24 : start + 24 + self._page_bytes]
        return f"wal {self._in_page(number, page, place - 24)}"

    def _read_trees(self, database: Path) -> dict[int, tuple[str, list[str]]]:
        """Return the name and the columns of each tree by the number of its root."""
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.deserialize(_without_wal(self._database))
            trees = connection.execute("SELECT rootpage, name, tbl_name FROM sqlite_master WHERE rootpage").fetchall()
            return {
                root: (name, [row[-1] or "rowid" for row in connection.execute(_columns_of(name, name == table))])
                for root, name, table in trees
            }

    def _in_page(self, number: int, page: bytes, place: int) -> str:
        start = 100 if number == 1 else 0
        if place < start:
            return "database header"
        kind = page[start]
        if kind not in (INDEX_LEAF, TABLE_LEAF):
            return "overflow or inner page"
        if number == 1:
            name, columns = "schema", ["type", "name", "tbl_name", "rootpage", "sql"]
        else:  # what is no root belongs to the trees that grow
            grown = "messages" if kind == TABLE_LEAF else "exceptions"
            name, columns = self._trees.get(number) or next(each for each in self._trees.values() if each[0] == grown)
        if place < start + 8:
            return f"{name} page header: {_field(HEADER_FIELDS, place - start)}"
        count = int.from_bytes(page[start + 3 : start + 5], "big")
        pointers = start + 8 + 2 * count
        if place < pointers:
            return f"{name} cell pointer"
        for each in range(start + 8, pointers, 2):
            at = int.from_bytes(page[each : each + 2], "big")
            found = _in_cell(page, at, place, columns, is_table=kind == TABLE_LEAF)
            if found:
                return f"{name}{found}"
        return f"{name} free space"


def _in_cell(page: bytes, at: int, place: int, columns: list[str], *, is_table: bool) -> str:
    """Return which part of the cell at *at* stands at *place*, "" if that is outside of it."""
    size, start = pages._varint(page, at)
    rowid_at = start
    if is_table:
        _, start = pages._varint(page, start)
    local = pages._local_bytes(size, len(page), is_table=is_table)
    if not at <= place < start + local + 4 * (local < size):
        return ""
    if place < rowid_at:
        return " size of a record"
    if place < start:
        return " rowid"
    kinds, begin = pages._kinds(page[start : start + local])
    if place < start + begin:
        return " header of a record"
    if place >= start + local:
        return " number of an overflow page"
    end = start + begin
    for index, kind in enumerate(kinds):
        end += (kind - 12) // 2 if kind >= 12 else pages._SIZES[kind]
        if place < end:
            return f".{columns[index] if index < len(columns) else index}"
    return ""


def _field(fields: tuple[tuple[int, str], ...], offset: int) -> str:
    return next(name for end, name in fields if offset < end)


def _columns_of(name: str, is_table: bool) -> str:
    return f"SELECT name FROM pragma_{'table' if is_table else 'index'}_info('{name}')"


def _without_wal(data: bytes) -> bytes:
    """Return the database as one that has no WAL, as one in memory cannot have one."""
    return data[:18] + b"\x01\x01" + data[20:]
