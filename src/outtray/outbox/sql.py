"""Every SQL statement of the library. Usable by SQLite 3.31: no RETURNING, STRICT or DROP COLUMN."""

from __future__ import annotations

APPLICATION_ID = 0x6F757474  # "outt"
MINOR = 1
"""Minor format, in user_version: a file with a higher one can be read and written by this release.

So a higher minor only adds: tables, indexes, columns with a default.
"""

MIGRATIONS: dict[int, tuple[str, ...]] = {}
"""Minor format to the statements that make it the next one: one transaction, in which a kill changes nothing.

They stand at the end of `SETUP` too, so that the text of the schema is the same however a file came to be.
"""

SET_MINOR = "PRAGMA user_version = {}"

SETUP = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {MINOR}",
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE messages (
        id INTEGER PRIMARY KEY,         -- position in the log; given once, never again
        accepted_at REAL NOT NULL,      -- Unix seconds
        crc INTEGER NOT NULL,           -- crc32 of the body's UTF-8, begun with the id: it tells of both
        body TEXT NOT NULL)""",
    """CREATE TABLE cursors (
        destination TEXT PRIMARY KEY,
        id INTEGER NOT NULL,            -- all up to it is settled, but for the exceptions
        delivered INTEGER NOT NULL DEFAULT 0,   -- messages, in the outbox's life
        next_attempt_at REAL,           -- the stored wait of the whole destination
        attempts INTEGER NOT NULL DEFAULT 0,    -- failures in a row
        status INTEGER,
        reason TEXT,
        held INTEGER NOT NULL DEFAULT 0,        -- 1: url, key or receiver must be put right
        fingerprint TEXT,               -- of the url and key that the wait belongs to
        mirror INTEGER NOT NULL DEFAULT 0)      -- the id's negative: a cursor that was damaged would skip messages
        WITHOUT ROWID""",
    """CREATE TABLE deliveries (
        id INTEGER PRIMARY KEY,
        destination TEXT NOT NULL,
        first_id INTEGER NOT NULL,
        last_id INTEGER NOT NULL,
        settled_at REAL NOT NULL,
        status INTEGER NOT NULL,
        count INTEGER NOT NULL,         -- messages delivered
        bytes INTEGER NOT NULL,         -- of their bodies
        seconds REAL NOT NULL)          -- from request to answer""",
    """CREATE TABLE exceptions (
        destination TEXT NOT NULL,
        id INTEGER NOT NULL,
        state TEXT NOT NULL,            -- retry, deferred, dead, local; delivered: ahead of the cursor
        next_attempt_at REAL NOT NULL DEFAULT 0,
        attempts INTEGER NOT NULL DEFAULT 0,
        status INTEGER,
        reason TEXT,
        excerpt TEXT,                   -- the answer's first 500 bytes
        PRIMARY KEY (destination, id)) WITHOUT ROWID""",
    """CREATE TABLE gaps (
        first_id INTEGER PRIMARY KEY,   -- ids of no message, given or passed over, but for those purged or pruned
        last_id INTEGER NOT NULL)""",
    "CREATE TABLE ledger (reason TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE INDEX exceptions_by_state ON exceptions (state, destination, id)",
    """CREATE VIEW message_states AS
        SELECT m.id,
            CASE WHEN json_valid(m.body) THEN json_extract(m.body, '$.message_id') END AS message_id,
            CASE WHEN json_valid(m.body) THEN CAST(coalesce(    -- the event's name, or the type of what has none
                json_extract(m.body, '$.event'), json_extract(m.body, '$.type')) AS TEXT) END AS event,
            m.accepted_at, c.destination,
            CASE WHEN e.state = 'retry' THEN 'pending'
                 WHEN e.state IS NOT NULL THEN e.state
                 WHEN m.id <= c.id THEN 'delivered'
                 ELSE 'pending' END AS state,
            e.next_attempt_at, coalesce(e.attempts, 0) AS attempts, e.status, e.reason, e.excerpt, m.body
        FROM messages m CROSS JOIN cursors c
        LEFT JOIN exceptions e ON e.destination = c.destination AND e.id = m.id""",
)

# Opening

USE_JSON = "SELECT json_valid('{}'), json_extract('{}', '$.event')"
USE_WAL = "PRAGMA journal_mode = WAL"
JOURNAL_MODE = "PRAGMA journal_mode"
# Builds of SQLite differ in secure_delete. It is on from the first row: with it off, pruning leaves copies of the rows
# that it moves in pages that a later purge does not know of.
CONNECTION = ("PRAGMA synchronous = NORMAL", "PRAGMA secure_delete = ON")
CHECKPOINT_AFTER = "PRAGMA wal_autocheckpoint = {}"
FORMAT = "SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version)"
# What the hot path does not read: damage there would be met only by those who look, and they change nothing.
PROBES = (
    "SELECT id, body, status, reason, excerpt FROM message_states LIMIT 0",
    "SELECT first_id, last_id, settled_at, status, count, bytes, seconds FROM deliveries LIMIT 0",
    "SELECT next_attempt_at, attempts FROM exceptions INDEXED BY exceptions_by_state WHERE state = ''",
    "SELECT sum(count) FROM ledger",
    "SELECT sum(length(value)) FROM meta",
    "SELECT sum(last_id) FROM gaps",
    "SELECT sum(delivered) FROM cursors",
)
# The marks once by their table and once by their index: where the two disagree, some would be passed over.
MARKS_BY_TABLE = """SELECT count(*), sum(id), sum(length(state)), sum(length(destination)),
    sum(length(reason)) + sum(length(excerpt)) + total(next_attempt_at) + total(attempts) + total(status) IS NULL
    FROM exceptions NOT INDEXED"""
MARKS_BY_INDEX = """SELECT count(*), sum(id), sum(length(state)), sum(length(destination))
    FROM exceptions INDEXED BY exceptions_by_state WHERE state >= ''"""
MORE_MARKS_THAN = "SELECT count(*) > ?1 FROM (SELECT 1 FROM exceptions LIMIT ?1 + 1)"
# The text of the schema, in which a flipped bit may rename a column or change what the view says of a message, and the
# pages at which tables and index begin, as another's would be read and written. They are counted from the first, which
# lies further back where SQLite was built with auto_vacuum on. `VACUUM` has them where `SETUP` put them: the tables
# first, then the index. Where a migration puts its own depends on what the file holds: not for here.
_OURS = ("cursors", "deliveries", "exceptions", "exceptions_by_state", "gaps", "ledger", "message_states", "messages")
SCHEMA = f"""SELECT group_concat(sql || ' ' || CASE rootpage WHEN 0 THEN 'no page' ELSE rootpage - first END, char(10))
    FROM (SELECT sql, rootpage, (SELECT rootpage FROM sqlite_master WHERE name = 'meta') AS first
        FROM sqlite_master WHERE name IN {(*_OURS, "meta")} ORDER BY name)"""
SCHEMA_CRC = 0x9CF006B9
"""crc32 of what `SCHEMA` gives of a file that `SETUP` has made."""

WRITE_NOTHING = "DELETE FROM meta WHERE key = ''"  # BEGIN IMMEDIATE is content to read where nothing can be written
IS_EMPTY = "SELECT NOT EXISTS (SELECT 1 FROM sqlite_master)"
HIGHEST_ID = """SELECT max(coalesce((SELECT max(id) FROM messages), 0), coalesce((SELECT max(last_id) FROM gaps), 0),
    coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'removed_id'), 0))"""
HAS_LEFT = "SELECT EXISTS (SELECT 1 FROM meta WHERE key LIKE 'left %')"
META = "SELECT value FROM meta WHERE key = ?"
SET_META = "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
DELETE_META = "DELETE FROM meta WHERE key = ? AND value = ?"
ADD_CURSOR = "INSERT INTO cursors (destination, id) VALUES (?, ?) ON CONFLICT DO NOTHING"

BEGIN, COMMIT, ROLLBACK = "BEGIN IMMEDIATE", "COMMIT", "ROLLBACK"

# The way of a message

APPEND = "INSERT INTO messages (id, accepted_at, crc, body) VALUES (?, ?, ?, ?)"
MARK = """INSERT OR REPLACE INTO exceptions (destination, id, state, next_attempt_at, attempts, status, reason, excerpt)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""
UNMARK = "DELETE FROM exceptions WHERE destination = ? AND id = ?"
COUNT_IN_LEDGER = """INSERT INTO ledger (reason, count) VALUES (?, ?)
    ON CONFLICT (reason) DO UPDATE SET count = count + excluded.count"""

_MESSAGE = "m.id, m.crc, ifnull(CAST(m.body AS BLOB), x'')"
_DUE_MARK = """e.destination = ?1 AND e.state IN ('retry', 'deferred')
    AND (e.next_attempt_at <= ?2 OR e.next_attempt_at > ?3)"""
DUE_EXCEPTIONS = f"""SELECT {_MESSAGE}, ifnull(CAST(e.attempts AS INTEGER), 0)
    FROM exceptions e CROSS JOIN messages m ON m.id = e.id WHERE {_DUE_MARK} ORDER BY e.id"""
# The next ?3 of the log; those that have a mark without their body. It ends however the pages of a damaged file lie.
LOG = """SELECT m.id, m.crc, CASE WHEN e.id IS NULL THEN ifnull(CAST(m.body AS BLOB), x'') END, 0
    FROM messages m LEFT JOIN exceptions e ON e.destination = ?1 AND e.id = m.id
    WHERE m.id > ?2 ORDER BY m.id LIMIT ?3"""
# The ?5 messages behind the cursor or behind ?4, whichever is further, or all that are left, two at least, as one row,
# so that other threads run while SQLite reads: the id before them, the last one, how many there are, the checksum and
# the length of each, and all as a JSON array. Nothing if the cursor is missing or damaged, the first is so long that ?5
# of its kind are more than ?6 bytes, one has a mark, or a mark is due: asked last, as it reads all of the destination.
RUN = f"""SELECT before_id, last_id, count(*), group_concat(m.crc), group_concat(length(CAST(m.body AS BLOB)), 'sx'),
        CAST(group_concat(CASE m.id WHEN before_id + 1 THEN '[' || m.body WHEN last_id THEN m.body || ']'
            ELSE m.body END) AS BLOB)
    FROM (SELECT before_id, min(before_id + ?5, (SELECT max(id) FROM messages)) AS last_id
        FROM (SELECT max(id, ?4) AS before_id FROM cursors WHERE destination = ?1 AND mirror = -id))
    CROSS JOIN messages m ON m.id > before_id AND m.id <= last_id
    WHERE CASE WHEN ?5 * (SELECT length(body) FROM messages WHERE id = before_id + 1) > ?6 THEN 0
        WHEN EXISTS (SELECT 1 FROM exceptions WHERE destination = ?1 AND id > before_id AND id <= last_id) THEN 0
        ELSE NOT EXISTS (SELECT 1 FROM exceptions e WHERE {_DUE_MARK}) END"""
NEWEST = f"""SELECT {_MESSAGE}, 0 FROM messages m WHERE m.id > ?2
    AND NOT EXISTS (SELECT 1 FROM exceptions e WHERE e.destination = ?1 AND e.id = m.id)
    ORDER BY m.id DESC LIMIT 1"""
CURSOR = """SELECT id, mirror, delivered, next_attempt_at, attempts, status, reason, held, fingerprint
    FROM cursors WHERE destination = ?"""
IS_SETTLED = """SELECT ?2 <= (SELECT id FROM cursors WHERE destination = ?1) AND NOT EXISTS
    (SELECT 1 FROM exceptions WHERE state = 'retry' AND destination = ?1 AND id <= ?2)"""
ADVANCE = """UPDATE cursors SET id = max(id, ?1), mirror = -max(id, ?1)
    WHERE destination = ?2 AND mirror = -id"""
# Each sound cursor, and the last id before the first message that waits for it (?1 if none does).
BEFORE_WAITING = """SELECT destination, id, coalesce((SELECT m.id - 1 FROM messages m
    WHERE m.id > c.id AND NOT EXISTS
        (SELECT 1 FROM exceptions e WHERE e.destination = c.destination AND e.id = m.id)
    ORDER BY m.id LIMIT 1), ?1) FROM cursors c WHERE mirror = -id"""
DELIVERED = """UPDATE cursors SET delivered = delivered + ?, next_attempt_at = NULL, attempts = 0, status = ?,
    reason = NULL, held = 0, fingerprint = NULL WHERE destination = ?"""
WAIT = """UPDATE cursors SET next_attempt_at = ?, attempts = attempts + 1, status = ?, reason = ?, held = ?,
    fingerprint = ? WHERE destination = ?"""
ADD_DELIVERY = """INSERT INTO deliveries (destination, first_id, last_id, settled_at, status, count, bytes, seconds)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""
FORGET_PASSED = """DELETE FROM exceptions WHERE state = 'delivered' AND destination = ?1
    AND id <= (SELECT id FROM cursors WHERE destination = ?1)"""
# What is removed ahead of a cursor is no longer waiting, and counted as passed until the cursor passes it.
PASS_REMOVED = """INSERT OR REPLACE INTO exceptions (destination, id, state)
    SELECT destination, ?1, 'delivered' FROM cursors WHERE id < ?1"""
FORGET_ALL_PASSED = """DELETE FROM exceptions WHERE state = 'delivered'
    AND id <= (SELECT c.id FROM cursors c WHERE c.destination = exceptions.destination)"""

# Gaps

ADD_GAP = "INSERT INTO gaps (first_id, last_id) VALUES (?, ?)"
GAP_UP_TO = "SELECT first_id, last_id FROM gaps WHERE first_id <= ? ORDER BY first_id DESC LIMIT 1"
UNUSED_IDS = """SELECT coalesce(sum(min(last_id, ?2) - max(first_id - 1, ?1)), 0) FROM gaps
    WHERE last_id > ?1 AND first_id <= ?2"""
CURSOR_IDS = "SELECT destination, id FROM cursors"
CARRY_CURSOR = """UPDATE cursors SET id = max(id, ?1), mirror = -max(id, ?1), delivered = delivered + ?2
    WHERE destination = ?3"""
REMOVE_GAP = "DELETE FROM gaps WHERE first_id = ?"

# How many of the ids behind ?2, up to ?3, have a mark or no message, each on purpose; NULL if other destinations
# had messages purged or pruned before this one was known.
ACCOUNTED = """SELECT CASE WHEN (SELECT count(*) FROM cursors) = 1 THEN
    (SELECT count(*) FROM exceptions WHERE destination = ?1 AND id > ?2 AND id <= ?3)
    + (SELECT coalesce(sum(min(last_id, ?3) - max(first_id - 1, ?2)), 0) FROM gaps
        WHERE last_id > ?2 AND first_id <= ?3) END"""

# Retrying, purging, pruning

DEAD = """SELECT id FROM exceptions WHERE state = 'dead' AND destination = ?1 AND id > ?2
    AND (?3 IS NULL OR instr(lower(reason), lower(?3)) > 0) ORDER BY id LIMIT ?4"""
RETRY = """UPDATE exceptions SET state = 'retry', next_attempt_at = 0
    WHERE destination = ? AND id = ? AND state = 'dead'"""
BODY_BYTES = "SELECT coalesce(sum(length(CAST(body AS BLOB))), 0) FROM messages WHERE id = ?"
DELETE_MESSAGE = "DELETE FROM messages WHERE id = ?"
DELETE_EXCEPTIONS = "DELETE FROM exceptions WHERE id = ?"
# Each with ?1 an id to begin behind, ?2 a moment, ?3 a number of rows, ?4 the state; oldest first.
_MARKED_IDS = """SELECT DISTINCT m.id FROM exceptions e JOIN messages m ON m.id = e.id
    WHERE e.state = ?4 AND m.id > ?1 AND m.accepted_at < ?2 ORDER BY m.id LIMIT ?3"""
IDS_IN_STATE = {
    "dead": _MARKED_IDS,
    "deferred": _MARKED_IDS,
    "local": _MARKED_IDS,
    "delivered": """SELECT id FROM message_states WHERE id > ?1 AND accepted_at < ?2 AND state = ?4
        AND id <= (SELECT min(id) FROM cursors) ORDER BY id LIMIT ?3""",
    "pending": """SELECT id FROM message_states
        WHERE id > ?1 AND accepted_at < ?2 AND state = ?4 AND (id > (SELECT min(id) FROM cursors)
            OR id IN (SELECT id FROM exceptions WHERE state = 'retry')) ORDER BY id LIMIT ?3""",
}
PRUNABLE = """SELECT id FROM messages m WHERE id <= ?1
    AND NOT EXISTS (SELECT 1 FROM exceptions e WHERE e.id = m.id) ORDER BY id LIMIT ?2"""
LOWEST_CURSOR = "SELECT coalesce(min(id), 0) FROM cursors"
SETTLED_BEFORE = "SELECT coalesce(max(last_id), 0) FROM deliveries WHERE settled_at < ?"
SETTLED_BEYOND_BYTES = """SELECT coalesce(max(last_id), 0) FROM (SELECT last_id,
    sum(bytes) OVER (PARTITION BY destination ORDER BY id DESC) AS newer FROM deliveries) WHERE newer > ?"""
PRUNE_DELIVERIES = """DELETE FROM deliveries WHERE id IN (SELECT id FROM deliveries WHERE settled_at < ?1
    AND last_id < coalesce((SELECT min(id) FROM messages), ?2) LIMIT ?3)"""
FREE_BYTES = "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size"
LIVE_BYTES = """SELECT (page_count - freelist_count) * page_size
    FROM pragma_page_count, pragma_freelist_count, pragma_page_size"""
# What is to be erased up to the id ?1: everything, or what is not delivered to each destination; the first ?2.
EVERYTHING = "SELECT id FROM messages WHERE id <= ?1 ORDER BY id LIMIT ?2"
UNDELIVERED = """SELECT id FROM messages m WHERE id > (SELECT min(id) FROM cursors) AND id <= ?1
        AND EXISTS (SELECT 1 FROM message_states s WHERE s.id = m.id AND s.state <> 'delivered')
    UNION SELECT m.id FROM exceptions e JOIN messages m ON m.id = e.id WHERE e.state <> 'delivered' AND m.id <= ?1
    ORDER BY 1 LIMIT ?2"""
DELETE_MARKS = "DELETE FROM exceptions WHERE id <= ? AND state <> 'delivered'"
DELETE_DELIVERIES = "DELETE FROM deliveries WHERE last_id <= ?"
VACUUM = "VACUUM"
TRUNCATE_WAL = "PRAGMA wal_checkpoint(TRUNCATE)"

# Looking

DESTINATIONS = "SELECT destination FROM cursors ORDER BY destination"
EXCEPTION_COUNTS = """SELECT state, count(*), sum(id > ?2) FROM exceptions WHERE destination = ?1 GROUP BY state"""
OLDEST_PENDING = """SELECT min(accepted_at) FROM (
    SELECT accepted_at FROM (SELECT m.accepted_at FROM messages m WHERE m.id > ?2 AND NOT EXISTS
        (SELECT 1 FROM exceptions e WHERE e.destination = ?1 AND e.id = m.id) ORDER BY m.id LIMIT 1)
    UNION ALL SELECT m.accepted_at FROM exceptions e JOIN messages m ON m.id = e.id
        WHERE e.state = 'retry' AND e.destination = ?1)"""
LEDGER = "SELECT reason, count FROM ledger ORDER BY reason"
VIEW_COLUMNS = (
    "id, message_id, event, accepted_at, destination, state, next_attempt_at, attempts, status, reason, excerpt, body"
)
NUL = r"\u0000"
"""How the character stands in a body: the functions of SQLite cut a text there, so who looks must compare again."""

# Newest first, between two ids.
PAGE = f"""SELECT {VIEW_COLUMNS} FROM message_states
    WHERE id BETWEEN ?1 AND ?2 AND accepted_at >= ?3 AND (?4 IS NULL OR state = ?4)
    AND (?5 IS NULL OR event = ?5 OR instr(body, '{NUL}')) AND (?6 IS NULL OR message_id = ?6 OR instr(body, '{NUL}'))
    ORDER BY id DESC"""
# Where a page begins: the highest id below ?1 that may be in the state ?2; 0 if there is none. The ids that the
# cursors tell of are a range, the others have an index.
_BELOW = "coalesce((SELECT max(id) FROM messages WHERE id < {}), 0)"
_MARKED_BELOW = """coalesce((SELECT max((SELECT max(e.id) FROM exceptions e
    WHERE e.state = {} AND e.destination = c.destination AND e.id < ?1)) FROM cursors c), 0)"""
_ANY_BELOW = "SELECT " + _BELOW.format("?1") + " WHERE ?2 IS ?2"
_DELIVERED_BELOW = "SELECT max({}, {}) WHERE ?2 IS ?2".format(
    _BELOW.format("min(?1, (SELECT max(id) FROM cursors) + 1)"), _MARKED_BELOW.format("'delivered'")
)
_PENDING_BELOW = """SELECT max(CASE WHEN below > (SELECT min(id) FROM cursors) THEN below ELSE 0 END, marked)
    FROM (SELECT {} AS below, {} AS marked) WHERE ?2 IS ?2""".format(
    _BELOW.format("?1"), _MARKED_BELOW.format("'retry'")
)
PAGE_BEGIN = {None: _ANY_BELOW, "delivered": _DELIVERED_BELOW, "pending": _PENDING_BELOW}
PAGE_BEGIN_MARKED = "SELECT " + _MARKED_BELOW.format("?2")
# The ids of a page, and what it costs to read their bodies: event and message_id are in there.
PAGE_SIZES = """SELECT id, ifnull(length(CAST(body AS BLOB)), 0) FROM messages WHERE id <= ? ORDER BY id DESC LIMIT ?"""
BY_ID = f"SELECT {VIEW_COLUMNS} FROM message_states WHERE id = ?"
# Batches among which the message ?2 may be; first those that delivered each id of their span.
DELIVERIES_OF = """SELECT settled_at, status, count > last_id - first_id FROM deliveries
    WHERE destination = ?1 AND first_id <= ?2 AND last_id >= ?2 ORDER BY 3 DESC LIMIT 2"""
# In the order in which they go: what is tried again, then the log.
PENDING_SIZES = """SELECT ifnull(length(CAST(m.body AS BLOB)), 0) FROM exceptions e CROSS JOIN messages m ON m.id = e.id
    WHERE e.state = 'retry' AND e.destination = ?1
    UNION ALL SELECT ifnull(length(CAST(m.body AS BLOB)), 0) FROM messages m
    WHERE m.id > coalesce((SELECT id FROM cursors WHERE destination = ?1), 0)
    AND NOT EXISTS (SELECT 1 FROM exceptions e WHERE e.destination = ?1 AND e.id = m.id) LIMIT ?2"""

# Inspecting a copy

INTEGRITY = "PRAGMA integrity_check(20)"
SPAN = "SELECT count(*), min(id), max(id) FROM messages"
STATE_COUNTS = "SELECT destination, state, count(*) FROM message_states GROUP BY destination, state"
CURSORS = "SELECT destination, id, delivered, next_attempt_at, attempts, status, reason, held FROM cursors"
CHECKSUMS = "SELECT id, crc, ifnull(CAST(body AS BLOB), x'') FROM messages ORDER BY id"
ALL_META = "SELECT key, value FROM meta WHERE key <> 'salt' ORDER BY key"
WRONG_CURSORS = "SELECT destination FROM cursors WHERE mirror IS NOT -id"
UNKNOWN_STATES = """SELECT DISTINCT state FROM exceptions
    WHERE state NOT IN ('retry', 'deferred', 'dead', 'local', 'delivered')"""
# Behind the cursor that is furthest: up to it messages may have been removed, and behind it each of them left a mark.
UNACCOUNTED = """SELECT coalesce((SELECT max(m.id) FROM messages m), 0) - c.id
    - (SELECT count(*) FROM messages m WHERE m.id > c.id)
    - (SELECT coalesce(sum(g.last_id - max(g.first_id - 1, c.id)), 0) FROM gaps g
        WHERE g.last_id > c.id AND g.last_id <= (SELECT max(m.id) FROM messages m))
    - (SELECT count(*) FROM exceptions e WHERE e.destination = c.destination AND e.state = 'delivered' AND e.id > c.id
        AND e.id <= (SELECT max(m.id) FROM messages m) AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.id = e.id))
    FROM cursors c ORDER BY c.id DESC LIMIT 1"""
