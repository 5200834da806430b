"""Reading records out of damaged files of SQLite, byte by byte: one bad page takes its own records and no others.

SQLite gives up at the first page that it does not understand, and ends a write-ahead log (WAL) at the first frame
whose checksum does not hold. Here every page and every frame is looked at by itself. What comes out is therefore to
be checked by the caller: it may be damaged, deleted, or older than another record of the same row.
"""

from __future__ import annotations

import io
import struct
from bisect import bisect_left, bisect_right

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    Value = int | float | bytes | None
    View = Callable[[list[int], int, int], int]

MAX_RECORD_BYTES = 64 * 1024 * 1024
"""What claims to be longer is not believed; a record is in memory as a whole."""

DEFAULT_PAGE_BYTES = 4096

_MAGIC = b"SQLite format 3\0"
_DATABASE_HEADER_BYTES, _WAL_HEADER_BYTES, _FRAME_HEADER_BYTES = 100, 32, 24
_LEAST_USABLE_BYTES = 480  # of a page, by the format

# How to read a page, by its first byte: the bytes of its header, those before each record (a page's number, which
# only inner pages have), and whether its records have rowids. In tables without, inner pages hold records too.
# A flipped bit in that byte does not hide the records: no two kinds of leaf are so near to each other.
_LAYOUTS = {
    **{0x0D ^ flip: ((8, 0, True),) for flip in (0, 1, 2, 4, 8, 16, 32, 64, 128)},
    **{0x0A ^ flip: ((8, 0, False),) for flip in (0, 1, 2, 4, 16, 32, 64, 128)},
    0x02: ((12, 4, False), (8, 0, False)),  # an inner page, or a leaf with a flipped bit
}

_NULL, _FLOAT, _ZERO, _ONE, _FIRST_BYTES = 0, 7, 8, 9, 12  # kinds of values; 10 and 11 do not occur
_SIZES = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)  # bytes of a value by its kind, below _FIRST_BYTES


class Record:
    """One row as it stands in a page: *rowid*, None in a table without, and the *values* of its columns.

    Text is not decoded. The value of an INTEGER PRIMARY KEY is None (it is the rowid), and a REAL without a
    fraction is an int.
    """

    __slots__ = ("rowid", "values")

    def __init__(self, rowid: int | None, values: tuple[Value, ...]) -> None:
        self.rowid = rowid
        self.values = values


def records(database_path: str | None, wal_path: str | None, *, newest_only: bool = False) -> Iterator[Record]:
    """Give every record in the pages of the database file and in the frames of its WAL, in the order of the files.

    With *newest_only* only the newest image of each page is read: what was deleted since does not come up again.
    A record comes once for each page in which it stands, and once more for each other way to put a long one
    together. Whatever the files hold, this ends and raises nothing; it reads them page by page. Raises OSError
    where a file cannot be opened.
    """
    with _opened(database_path) as database, _opened(wal_path) as wal:
        header = _read(database, 0, _DATABASE_HEADER_BYTES)
        for page_bytes in _page_sizes(header, _read(wal, 0, _WAL_HEADER_BYTES)):
            yield from _Images(database, wal, page_bytes, reserved=header[20] if len(header) > 20 else 0).records(
                newest_only
            )


class _Images:
    """All images of the pages of one database, each of *page_bytes*: in its own file, and in the frames of the WAL.

    Frames are counted from 0; frame -1 means the database file.
    """

    def __init__(self, database: BinaryIO, wal: BinaryIO, page_bytes: int, *, reserved: int) -> None:
        self._database = database
        self._wal = wal
        self._page_bytes = page_bytes
        # A damaged header may ask for a reserve in each page that there is not.
        self._usable = sorted({page_bytes, max(page_bytes - reserved, _LEAST_USABLE_BYTES)})
        self._page_count = -(-_size(database) // page_bytes)
        self._limit = min(_size(database) + _size(wal), MAX_RECORD_BYTES)
        self._numbers: list[int] = []  # of the pages, by frame
        self._frames: dict[int, list[int]] = {}  # by page
        self._commits: list[int] = []  # the last frames of transactions
        for frame in range(-(-max(_size(wal) - _WAL_HEADER_BYTES, 0) // (_FRAME_HEADER_BYTES + page_bytes))):
            head = _read(wal, self._offset(frame), 8)
            number = int.from_bytes(head[:4], "big")
            self._numbers.append(number)
            self._frames.setdefault(number, []).append(frame)
            if any(head[4:]):
                self._commits.append(frame)

    def records(self, newest_only: bool) -> Iterator[Record]:
        newest = self._newest() if newest_only else {}
        for number in range(1, self._page_count + 1):
            if number not in newest:
                yield from self._records_of(self._image(number, -1), number, -1)
        if newest_only:
            for number, frame in newest.items():
                yield from self._records_of(self._image(number, frame), number, frame)
            return
        for frame, number in enumerate(self._numbers):
            yield from self._records_of(self._image(number, frame), number, frame)

    def _newest(self) -> dict[int, int]:
        """Return the newest frame of each page that has one.

        Frames with other salts are left from an earlier round of the log: the database has had them since.
        """
        salts = {_read(self._wal, 16, 8), _read(self._wal, self._offset(0) + 8, 8)}
        current = [n for n in range(len(self._numbers)) if _read(self._wal, self._offset(n) + 8, 8) in salts]
        return {self._numbers[frame]: frame for frame in current}

    def _offset(self, frame: int) -> int:
        return _WAL_HEADER_BYTES + frame * (_FRAME_HEADER_BYTES + self._page_bytes)

    def _image(self, number: int, frame: int) -> bytes:
        """Return the page as it is in *frame*; less than a page at the end of a file that was cut off."""
        if frame < 0:
            return _read(self._database, (number - 1) * self._page_bytes, self._page_bytes)
        return _read(self._wal, self._offset(frame) + _FRAME_HEADER_BYTES, self._page_bytes)

    def _records_of(self, page: bytes, number: int, frame: int) -> Iterator[Record]:
        start = _DATABASE_HEADER_BYTES if number == 1 or page.startswith(_MAGIC) else 0
        for header_bytes, link_bytes, is_table in _LAYOUTS.get(page[start], ()) if start < len(page) else ():
            for at in _cells(page, start, header_bytes):
                try:
                    size, at = _varint(page, at + link_bytes)
                    rowid, at = _varint(page, at) if is_table else (None, at)
                except IndexError:
                    continue  # it would go on behind the end of the page
                if not 0 < size <= self._limit:
                    continue
                for payload in self._payloads(page, at, size, frame, is_table=is_table):
                    values = _values(payload)
                    if values is not None:
                        yield Record(rowid, values)

    def _payloads(self, page: bytes, at: int, size: int, frame: int, *, is_table: bool) -> Iterator[bytes]:
        """Give the payload at *at*, in all the ways in which a long one can be put together."""
        for usable in self._usable:
            local = _local_bytes(size, usable, is_table=is_table)
            if at + local > len(page):
                continue
            payload = page[at : at + local]
            if local == size:
                yield payload
                return  # a larger page would hold it as a whole too
            if at + local + 4 <= len(page) and _claimed_bytes(payload) == size:
                first = int.from_bytes(page[at + local : at + local + 4], "big")
                for rest in self._overflows(first, size - local, usable, frame):
                    yield payload + rest

    def _overflows(self, first: int, size: int, usable: int, frame: int) -> Iterator[bytes]:
        """Give the *size* bytes in the overflow pages from *first* on, once for each choice of their images."""
        place = bisect_left(self._commits, frame)
        end = -1 if frame < 0 else self._commits[place] if place < len(self._commits) else len(self._numbers)
        seen = set()
        for view in _VIEWS:
            rest, images = self._overflow(first, size, usable, lambda frames, view=view: view(frames, frame, end))  # type: ignore[misc]
            if len(rest) == size and images not in seen:
                yield rest
            seen.add(images)
            if all(number not in self._frames for number, _ in images):
                return  # there is no other image of any of them

    def _overflow(
        self, number: int, size: int, usable: int, choose: Callable[[list[int]], int]
    ) -> tuple[bytes, tuple[tuple[int, int], ...]]:
        """Return the bytes, fewer than *size* if the chain breaks off, and of which page and frame they are."""
        data = bytearray()
        images: dict[int, int] = {}
        while len(data) < size and number not in images:
            images[number] = choose(self._frames.get(number, []))
            if images[number] < 0 and not 0 < number <= self._page_count:
                break
            page = self._image(number, images[number])
            data += page[4 : min(usable, 4 + size - len(data))]
            number = int.from_bytes(page[:4], "big")
        return bytes(data), tuple(images.items())


# Which image of an overflow page belongs to a record in frame *frame*, where *end* ends the transaction of that frame.


def _committed_with(frames: list[int], frame: int, end: int) -> int:
    """Return the newest image when that transaction was committed: the right one, in files that are sound."""
    place = bisect_right(frames, end)
    return frames[place - 1] if place else -1


def _following(frames: list[int], frame: int, end: int) -> int:
    """Return the next image behind the record: right if damage seems to end the transaction between the two."""
    place = bisect_left(frames, frame)
    return frames[place] if place < len(frames) else _committed_with(frames, frame, end)


def _newest(frames: list[int], frame: int, end: int) -> int:
    return frames[-1] if frames else -1


def _in_database(frames: list[int], frame: int, end: int) -> int:
    return -1


_VIEWS: tuple[View, ...] = (_committed_with, _following, _newest, _in_database)


def _opened(path: str | None) -> BinaryIO:
    return io.BytesIO() if path is None else open(path, "rb", buffering=0)


def _size(file: BinaryIO) -> int:
    return file.seek(0, io.SEEK_END)


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    """Return what there is; nothing where the disk cannot read it: the other pages are wanted all the more."""
    try:
        file.seek(offset)
        return file.read(size)
    except OSError:
        return b""


def _page_sizes(header: bytes, wal_header: bytes) -> list[int]:
    """Return the sizes of a page that the two headers claim: one, unless one of them is damaged."""
    claimed = int.from_bytes(header[16:18], "big")
    claims = [65536 if claimed == 1 else claimed, int.from_bytes(wal_header[8:12], "big")]
    possible = [size for size in claims if size.bit_count() == 1 and 512 <= size <= 65536]
    return list(dict.fromkeys(possible)) or [DEFAULT_PAGE_BYTES]


def _cells(page: bytes, start: int, header_bytes: int) -> list[int]:
    """Return where the cells of a page begin that has its header at *start*, each once.

    The pointers are read on behind their count while they make sense: that count may be what is damaged.
    """
    first = min(start + header_bytes, len(page))
    counted = int.from_bytes(page[start + 3 : start + 5], "big")
    found: dict[int, None] = {}
    for index, (pointer,) in enumerate(struct.iter_unpack(">H", page[first : first + (len(page) - first) // 2 * 2])):
        if first + 2 * index < pointer < len(page):
            found[pointer] = None
        elif index >= counted:
            break
    return list(found)


def _local_bytes(size: int, usable: int, *, is_table: bool) -> int:
    """Return how many bytes of a payload of *size* lie in the leaf itself."""
    least = (usable - 12) * 32 // 255 - 23
    most = usable - 35 if is_table else (usable - 12) * 64 // 255 - 23
    if size <= most:
        return size
    wanted = least + (size - least) % (usable - 4)
    return wanted if wanted <= most else least


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the signed number at *at* and where the next begins. Raises IndexError at the end of *data*."""
    value = data[at]
    if value < 0x80:
        return value, at + 1
    value &= 0x7F
    for place in range(at + 1, at + 8):
        byte = data[place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + 1
    value = value << 8 | data[at + 8]
    return value - (1 << 64 if value >> 63 else 0), at + 9


def _kinds(payload: bytes) -> tuple[list[int], int]:
    """Return the kinds of the values and where the first of them begins; no kinds if the header makes no sense."""
    kinds: list[int] = []
    try:
        end, at = _varint(payload, 0)
        while at < end:
            kind, at = _varint(payload, at)
            if kind < 0 or len(_SIZES) <= kind < _FIRST_BYTES:
                return [], 0
            kinds.append(kind)
    except IndexError:
        return [], 0
    return (kinds, end) if at == end else ([], 0)


def _claimed_bytes(payload: bytes) -> int:
    """Return how long the whole payload is by its header, which must lie in its first part."""
    kinds, end = _kinds(payload)
    return end + sum((kind - _FIRST_BYTES) // 2 if kind >= _FIRST_BYTES else _SIZES[kind] for kind in kinds)


def _values(payload: bytes) -> tuple[Value, ...] | None:
    """Return the values of a record, None if it is none."""
    kinds, at = _kinds(payload)
    values: list[Value] = []
    for kind in kinds:
        if kind >= _FIRST_BYTES:
            end = at + (kind - _FIRST_BYTES) // 2
            values.append(payload[at:end])
            at = end
            continue
        end = at + _SIZES[kind]
        if kind == _NULL:
            values.append(None)
        elif kind == _FLOAT:
            if end > len(payload):
                return None
            values.append(struct.unpack_from(">d", payload, at)[0])
        elif kind in (_ZERO, _ONE):
            values.append(kind - _ZERO)
        else:
            values.append(int.from_bytes(payload[at:end], "big", signed=True))
        at = end
    return tuple(values) if kinds and at == len(payload) else None
