"""The ledger's tables. Facts only grow; ``runs``, ``entries``, ``posted`` and ``series`` follow from them.

Times are milliseconds UTC, money nano-USD. Migrations in ``migrations/versions`` make what is declared here (a test compares).
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, MetaData, Table, Text, UniqueConstraint, text

from spendmeter.records import Usage

HEAD = "0006"
META = MetaData()
BIG = BigInteger()


def _key(name: str, kind: type[Integer] | type[Text] | BigInteger = Text) -> Column[object]:
    return Column(name, kind, primary_key=True, autoincrement=False)


def _where_known(name: str, known: str, *columns: str, unique: bool = False) -> Index:
    """An index on *columns*, by default *known*, of the rows that say something in *known*: most do not."""
    told = text(f'"{known}" is not null')
    return Index(name, *(columns or (known,)), unique=unique, sqlite_where=told, postgresql_where=told)


def _usage() -> list[Column[int]]:
    return [Column(name, BIG) for name in Usage._fields]


meta = Table("meta", META, _key("key"), Column("value", Text, nullable=False))

sessions = Table(
    "sessions", META,
    Column("id", Integer, primary_key=True),
    Column("cli", Text, nullable=False), Column("session", Text, nullable=False),
    Column("own_ms", BIG), Column("cwd", Text), Column("branch", Text), Column("version", Text),
    Column("seen_ms", BIG, nullable=False),  # first observed: dates usage that nothing else dates
    Column("has_file", Boolean, nullable=False, default=False),
    Column("settle_at_ms", BIG),  # None = all of it is in the counters
    Column("wants", Text),  # fingerprint of the run total that this session's first reading started from
    Column("closed_ms", BIG),  # its rows stand for ever and most of its facts are gone (retention.py)
    Column("moved", BIG),  # rises with every change of the session's rows: the ledger's greatest tells whether anything has changed
    Column("ruleset", Text),  # the attribution rules that it goes by; None: no host with rules has told of it yet
    UniqueConstraint("cli", "session"),
    Index("ix_sessions_settle", "settle_at_ms"), Index("ix_sessions_wants", "wants"), Index("ix_sessions_moved", "moved"),
)  # fmt: skip

# Attribution rules by the digest of their JSON: what a session goes by is a fact like any other, whatever a host's settings say later.
rulesets = Table("rulesets", META, _key("id"), Column("body", Text, nullable=False), Column("splits", Boolean, nullable=False))

aliases = Table(
    "aliases", META, _key("cli"), _key("alias"), Column("session", Text, nullable=False), Index("ix_aliases_alias", "alias"),
)  # fmt: skip

calls = Table(
    "calls", META,
    _key("session_id", Integer), _key("call_id"), *_usage(),
    Column("asked", Text), Column("answered", Text), Column("at_ms", BIG), Column("views", Text, nullable=False),
    Column("role", Text, nullable=False), Column("subagent", Text), Column("traits", Text, nullable=False), Column("subagent_type", Text),
    Index("ix_calls_call_id", "call_id"),
)  # fmt: skip

copies = Table("copies", META, _key("session_id", Integer), _key("call_id"), Index("ix_copies_call_id", "call_id"))

# What is left of the calls of closed sessions; own: they are counted there and not in an older session.
closed_calls = Table(
    "closed_calls", META,
    _key("session_id", Integer), _key("call_id"), Column("own", Boolean, nullable=False), Index("ix_closed_calls_call_id", "call_id"),
)  # fmt: skip

levels = Table(
    "levels", META,
    _key("session_id", Integer), _key("epoch"), _key("reading"), _key("model"), *_usage(),
    Column("epoch_ms", BIG), Column("start_ms", BIG), Column("read_ms", BIG), Column("guess", Boolean, nullable=False),
)  # fmt: skip

parts = Table(
    "parts", META,
    _key("session_id", Integer), _key("kind"), _key("part_id"), _key("model"), *_usage(),
    Column("role", Text, nullable=False), Column("guess", Boolean, nullable=False),
)  # fmt: skip

bases = Table(
    "bases", META, _key("session_id", Integer), _key("kind"), _key("source"), Column("by_model", Text),
    Index("ix_bases_source", "source"),
)  # fmt: skip

prompts = Table("prompts", META, _key("session_id", Integer), _key("at_ms", BIG))

finishes = Table(
    "finishes", META,
    _key("session_id", Integer), _key("run_key"), Column("leader", Text), Column("outcome", Text, nullable=False),
    Column("total", Text, nullable=False), Column("own", Text, nullable=False), Column("duration_ms", BIG), Column("ended_ms", BIG),
    Column("fingerprint", Text), Index("ix_finishes_fingerprint", "fingerprint"),
)  # fmt: skip

claims = Table(
    "claims", META,
    _key("session_id", Integer), _key("claim_id"), Column("agent", Text, nullable=False), Column("task", Text, nullable=False),
    Column("attrs", Text, nullable=False), Column("run_key", Text), Column("start_ms", BIG), Column("end_ms", BIG),
)  # fmt: skip

processes = Table(
    "processes", META,
    _key("session_id", Integer), _key("run_key"), Column("run_id", Text, nullable=False),
    Column("exit_code", Integer), Column("signal", Integer), Column("started_ms", BIG), Column("ended_ms", BIG),
    Column("trace_id", Text), Column("span_id", Text), Column("parent_span_id", Text),
    Column("repo", Text), Column("branch", Text), Column("commit", Text), Column("notes", Text, nullable=False),
    Column("stopped", Text),  # why the wrapper ended the run: "budget NAME" or "max-cost"; None where it did not
)  # fmt: skip

skips = Table(
    "skips", META,
    _key("id"), Column("source", Text, nullable=False), Column("reason", Text, nullable=False), Column("at_ms", BIG, nullable=False),
)  # fmt: skip

sources = Table("sources", META, _key("path"), Column("identity", Text, nullable=False), Column("digest", Text, nullable=False))

runs = Table(
    "runs", META,
    _key("session_id", Integer), _key("run_key"), Column("cli", Text, nullable=False), Column("session", Text, nullable=False),
    Column("agent", Text, nullable=False), Column("task", Text, nullable=False), Column("attrs", Text, nullable=False),
    Column("outcome", Text, nullable=False), Column("implied", Boolean, nullable=False),
    Column("started_ms", BIG), Column("ended_ms", BIG), Column("duration_ms", BIG), Column("exit_code", Integer), Column("signal", Integer),
    Column("trace_id", Text, nullable=False), Column("span_id", Text, nullable=False), Column("parent_span_id", Text),
    Column("repo", Text), Column("branch", Text), Column("commit", Text), Column("notes", Text, nullable=False),
    Column("plan", Text), Column("workflow", Text), Column("stage", Text),  # from attrs
    Column("last_ms", BIG),  # its last minute with usage, else its end
    Column("workstream", Text), Column("release", Text),  # from attrs
    Index("ix_runs_agent_ended", "agent", "ended_ms"), Index("ix_runs_task", "task"), Index("ix_runs_ended", "ended_ms"),
    Index("ix_runs_plan", "plan"), Index("ix_runs_last", "last_ms"), Index("ix_runs_session", "session"),
    _where_known("ix_runs_repo", "repo"), _where_known("ix_runs_commit", "commit"), _where_known("ix_runs_release", "release"),
    _where_known("ix_runs_workstream", "workstream"), _where_known("ix_runs_task_workstream", "workstream", "task", "ended_ms"),
)  # fmt: skip

entries = Table(
    "entries", META,
    _key("session_id", Integer), _key("run_key"), _key("model"), _key("minute_ms", BIG),
    *[Column(name, Text, primary_key=True, default="") for name in ("agent", "task")],  # "": the run's own
    *[c for c in _usage() if c.name != "cost_nusd"],
    Column("reported_nusd", BIG), Column("estimated_nusd", BIG), Column("listed_nusd", BIG),
    Column("unpriced_tokens", BIG, nullable=False), Column("calls", Integer),
    Index("ix_entries_minute", "minute_ms"),
)  # fmt: skip

# Entries added up by the hour and one dimension (rollup.py); key: "=" and the value, "~" where there is none.
hours = Table(
    "hours", META,
    _key("dim"), _key("hour_ms", BIG), _key("key"), *[c for c in _usage() if c.name != "cost_nusd"],
    Column("reported_nusd", BIG), Column("estimated_nusd", BIG), Column("listed_nusd", BIG),
    Column("unpriced_tokens", BIG, nullable=False), Column("calls", Integer),
    Column("last_runs", Integer, nullable=False),  # by model: runs whose last minute with it lies here
)  # fmt: skip

stale_hours = Table("stale_hours", META, _key("hour_ms", BIG))

series = Table(
    "series", META,
    Column("id", Integer, primary_key=True), Column("family", Text, nullable=False), Column("labels", Text, nullable=False),
    Column("target", BIG, nullable=False), Column("value", BIG, nullable=False), Column("held", BIG, nullable=False),
    Column("shown_ms", BIG), Column("pushed_ms", BIG), Column("moved_ms", BIG, nullable=False), Column("exemplar", Text),
    UniqueConstraint("family", "labels"),
)  # fmt: skip

posted = Table(
    "posted", META,
    _key("session_id", Integer), _key("series_id", Integer), Column("amount", BIG, nullable=False),
    Index("ix_posted_series", "series_id"),
)  # fmt: skip

# What re-attribution left under the labels that it had been counted by: added to what the session's rows say of a series.
shifts = Table("shifts", META, _key("session_id", Integer), _key("family"), _key("labels"), Column("amount", BIG, nullable=False))

tasks = Table(
    "tasks", META, _key("agent"), _key("task"), Column("overflow", Boolean, nullable=False), Column("used_ms", BIG, nullable=False),
    Index("ix_tasks_overflow", "overflow", "used_ms"),
)  # fmt: skip

spool = Table(
    "spool", META,
    Column("id", Integer, primary_key=True), Column("session_id", Integer, nullable=False), Column("run_key", Text, nullable=False),
    Column("print", Text, nullable=False), Column("traced", Boolean, nullable=False), Column("logged", Boolean, nullable=False),
    UniqueConstraint("session_id", "run_key"), Index("ix_spool_traced", "traced"), Index("ix_spool_logged", "logged"),
)  # fmt: skip

# What is set aside for runs under way; not usage. A row goes in the transaction that brings its run, or when its process has died.
reservations = Table(
    "reservations", META,
    _key("run_id"), Column("host", Text, nullable=False), Column("pid", Integer, nullable=False),
    Column("born", Text, nullable=False),  # of the process, as its host tells: with the pid it names one process for ever
    Column("agent", Text, nullable=False), Column("task", Text, nullable=False), Column("cli", Text), Column("model", Text),
    Column("repo", Text), Column("attrs", Text, nullable=False), Column("started_ms", BIG, nullable=False),
    Column("beat_ms", BIG, nullable=False),
    Column("expected_nusd", BIG), Column("expected_tokens", BIG), Column("used_nusd", BIG), Column("used_tokens", BIG),
    Column("sessions", Text),  # [[cli, session], ...] that the run is known to go on in; None: none
)  # fmt: skip

# Budget thresholds that were crossed, one row for each notifier. Kept as the memory of what was told.
notices = Table(
    "notices", META,
    Column("id", Text, primary_key=True), Column("budget", Text, nullable=False), Column("value", Text, nullable=False),
    Column("threshold", Text, nullable=False), Column("period_start_ms", BIG, nullable=False), Column("notifier", Text, nullable=False),
    Column("at_ms", BIG, nullable=False), Column("body", Text, nullable=False), Column("attempts", Integer, nullable=False),
    Column("due_ms", BIG),  # None: sent, given up (error says why), or told by that of a higher threshold
    Column("sent_ms", BIG), Column("error", Text), Index("ix_notices_due", "due_ms"), Index("ix_notices_budget", "budget", "at_ms"),
)  # fmt: skip

plans = Table(
    "plans", META,
    _key("snapshot_id"), Column("name", Text, nullable=False), Column("body", Text, nullable=False),
    Column("recorded_ms", BIG, nullable=False), Column("seen_ms", BIG, nullable=False),
    Index("ix_plans_name", "name", "seen_ms"),
)  # fmt: skip

# Who may ask the daemon for what (tokens.py). A token is known by the digest of its secret, which is nowhere itself.
access_tokens = Table(
    "access_tokens", META,
    _key("digest"), Column("name", Text, nullable=False), Column("scopes", Text, nullable=False),  # with commas between
    Column("created_ms", BIG, nullable=False), Column("expires_ms", BIG), Column("used_ms", BIG),
    UniqueConstraint("name"),
)  # fmt: skip

# Token events as they were posted. Their usage is in calls, in a session of its own for each; it is counted there and nowhere else.
token_events = Table(
    "token_events", META,
    _key("id"), Column("occurred_ms", BIG, nullable=False), Column("created_ms", BIG, nullable=False),
    Column("agent", Text, nullable=False), Column("task", Text, nullable=False), Column("workstream", Text), Column("repo", Text),
    Column("ref_type", Text), Column("ref_id", Text), Column("model", Text),
    *[Column(name, BIG) for name in ("tokens_in", "tokens_out", "cache_read", "cache_write", "cost_nusd")],
    Column("note", Text), Column("idempotency_key", Text), Column("digest", Text, nullable=False),  # of what was posted
    Index("ix_token_events_occurred", "occurred_ms", "id"), Index("ix_token_events_agent", "agent", "occurred_ms", "id"),
    Index("ix_token_events_task", "task", "occurred_ms", "id"),
    _where_known("ix_token_events_model", "model", "model", "occurred_ms", "id"),
    _where_known("ix_token_events_workstream", "workstream", "workstream", "occurred_ms", "id"),
    _where_known("ix_token_events_repo", "repo", "repo", "occurred_ms", "id"),
    _where_known("ix_token_events_ref", "ref_id", "ref_id", "occurred_ms", "id"),
    _where_known("ux_token_events_key", "idempotency_key", unique=True),
)  # fmt: skip
