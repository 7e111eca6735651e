"""Settings: ``spendmeter.toml``, overridden by ``SPENDMETER_<SECTION>_<KEY>``, overridden by flags."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from spendmeter.errors import ConfigError

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_KEYS: dict[str, tuple[str, ...]] = {
    "metrics": ("zero_first", "settle", "task_ttl", "max_tasks"),
    "budgets": ("file", "on_error", "grace"),
    "plans": ("keep",),
    "retention": ("calls",),
    "prices": ("file",),
    "privacy": ("emails", "paths"),
}
_ALSO = {"SPENDMETER_BUDGETS_FILE": ("SPENDMETER_BUDGETS",)}  # other names of a variable


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting with its default; durations in seconds."""

    ledger: str
    zero_first_s: float = 60.0
    settle_s: float = 60.0
    task_ttl_s: float = 7 * 86400.0
    max_tasks: int = 2000
    prices_file: Path | None = None
    budgets_file: Path | None = None
    budgets_block_on_error: bool = False  # what `run` does where its budgets cannot be checked: start all the same, or not
    budgets_grace_s: float = 0.6  # between the signals that end a run over its limit
    plans_keep: int = 50
    retention_calls_s: float | None = None  # sessions quiet for so long may be closed; None: none is
    privacy_emails: str = "hash"  # e-mail addresses in labels of metrics: hash, keep or drop
    privacy_paths: str = "basename"  # absolute paths there: basename, keep or drop
    attribution: Any = None  # the rules as the file has them, not checked yet (attribution.load)
    file: str = ""  # which they stand in


@dataclass(frozen=True, slots=True)
class _Sources:
    """A setting's value and where it was set, from the environment before the file."""

    raw: Mapping[str, Any]
    env: Mapping[str, str]
    path: str

    def get(self, section: str, key: str) -> tuple[object, str]:
        name = f"SPENDMETER_{section}_{key}".upper()
        for known in (name, *_ALSO.get(name, ())):
            if self.env.get(known):
                return self.env[known], known
        return self.raw.get(section, {}).get(key), f"{self.path}: [{section}] {key}"

    def seconds(self, section: str, key: str, default: float) -> float:
        found = self.optional_seconds(section, key)
        return default if found is None else found

    def optional_seconds(self, section: str, key: str) -> float | None:
        value, where = self.get(section, key)
        return None if value is None else duration_s(str(value), where)

    def whole(self, section: str, key: str, default: int) -> int:
        value, where = self.get(section, key)
        if value is None:
            return default
        if not re.fullmatch(r"\d+", str(value).strip()):
            raise ConfigError(f'{where} "{value}" is not a whole number of 0 or more')
        return int(str(value))

    def one_of(self, section: str, key: str, known: tuple[str, ...]) -> str:
        """One of *known*, by default the first."""
        value, where = self.get(section, key)
        if value is not None and value not in known:
            raise ConfigError(f'{where} "{value}" is not one of {", ".join(known)}')
        return known[0] if value is None else str(value)

    def file(self, section: str, key: str) -> Path | None:
        value, where = self.get(section, key)
        if value is None:
            return None
        path = Path(str(value)).expanduser()
        path = path if path.is_absolute() or not self.path or where.startswith("SPENDMETER_") else Path(self.path).parent / path
        if not path.is_file():
            raise ConfigError(f'{where} "{value}": no such file; correct the path or remove the setting')
        return path


def duration_s(text: str, where: str) -> float:
    """The seconds that *text* says, in seconds or with a unit; *where* it stands is for the error.

    Raises:
        ConfigError: it is no duration.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip())
    if not match:
        raise ConfigError(f'{where} "{text}" is not a duration; write seconds or e.g. "90s", "15m", "12h", "7d"')
    return float(match[1]) * _UNITS[match[2]]


def load(config: str | None = None, ledger: str | None = None, env: Mapping[str, str] | None = None) -> Settings:
    """Settings of the file *config* (else ``SPENDMETER_CONFIG``), the environment and the flag *ledger*.

    Raises:
        ConfigError: a file that cannot be read, an unknown key, a value out of range; names where it was set.
    """
    env = os.environ if env is None else env
    path = config or env.get("SPENDMETER_CONFIG") or ""
    src = _Sources(_read(path) if path else {}, env, path)
    return Settings(
        ledger=ledger or env.get("SPENDMETER_LEDGER") or str(src.raw.get("ledger") or "") or default_ledger(env),
        zero_first_s=src.seconds("metrics", "zero_first", 60.0),
        settle_s=src.seconds("metrics", "settle", 60.0),
        task_ttl_s=src.seconds("metrics", "task_ttl", 7 * 86400.0),
        max_tasks=src.whole("metrics", "max_tasks", 2000),
        prices_file=src.file("prices", "file"),
        budgets_file=src.file("budgets", "file"),
        budgets_block_on_error=src.one_of("budgets", "on_error", ("allow", "block")) == "block",
        budgets_grace_s=src.seconds("budgets", "grace", 0.6),
        plans_keep=src.whole("plans", "keep", 50),
        retention_calls_s=src.optional_seconds("retention", "calls"),
        privacy_emails=src.one_of("privacy", "emails", ("hash", "keep", "drop")),
        privacy_paths=src.one_of("privacy", "paths", ("basename", "keep", "drop")),
        attribution=src.raw.get("attribution"),
        file=path,
    )


def default_ledger(env: Mapping[str, str]) -> str:
    """The ledger where none is named: SQLite under the user's data directory."""
    return f"sqlite:///{data_dir(env) / 'ledger.db'}"


def data_dir(env: Mapping[str, str]) -> Path:
    """``$XDG_DATA_HOME/spendmeter``, by default under ``~/.local/share``."""
    home = env.get("HOME") or str(Path.home())
    return Path(env.get("XDG_DATA_HOME") or Path(home) / ".local" / "share") / "spendmeter"


def _read(path: str) -> dict[str, Any]:
    try:
        with Path(path).open("rb") as handle:
            raw = tomllib.load(handle)
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read ({e.strerror}); check --config or SPENDMETER_CONFIG") from None
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{path}: not TOML: {e}") from None
    for section, body in raw.items():
        if section in ("ledger", "attribution"):
            continue
        _known(path, section, tuple(_KEYS), "section")
        if not isinstance(body, dict):
            raise ConfigError(f"{path}: {section} is not a table; write [{section}]")
        for key in body:
            _known(f"{path}: [{section}]", key, _KEYS[section], "key")
    return raw


def _known(where: str, name: str, allowed: tuple[str, ...], what: str) -> None:
    if name not in allowed:
        near = get_close_matches(name, allowed, 1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise ConfigError(f'{where}: unknown {what} "{name}"; known are {", ".join(allowed)}{hint}')
