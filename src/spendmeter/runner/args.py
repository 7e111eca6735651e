"""The flags of ``spendmeter run``, declared once; parsed by hand because argparse costs 7 ms before the child starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

GLOBALS = (
    ("--ledger", "URL", "ledger to write to (SPENDMETER_LEDGER)"),
    ("--config", "FILE", "settings file (SPENDMETER_CONFIG)"),
)
FLAGS = (
    ("--agent", "NAME", "role that the run plays, such as developer or reviewer (SPENDMETER_AGENT; else unknown)"),
    ("--task", "KEY", "unit of work that the run is for, such as an issue key (SPENDMETER_TASK; else unknown)"),
    ("--attr", "KEY=VALUE", "any other tag; may be given many times, e.g. plan=book"),
    ("--max-cost", "USD", "end the run when it has cost so much (SPENDMETER_MAX_COST)"),
    ("--max-tokens", "N", "end the run when it has used so many tokens, cached ones too (SPENDMETER_MAX_TOKENS)"),
    ("--remote", "URL", "hand the run to a central daemon instead of a ledger (SPENDMETER_REMOTE)"),
)
USAGE = (
    "spendmeter [--ledger URL] [--config FILE] run [--agent NAME] [--task KEY] [--attr KEY=VALUE]... [--max-cost USD] [--max-tokens N] "
    "[--remote URL] [--] COMMAND [ARG]..."
)
NOTES = """\
Runs COMMAND as it is: standard input, output and error, the terminal, signals and the exit code are its own.
What it used is recorded when it ends. If that fails, one line on standard error says so and the exit code stands.

  SPENDMETER_OFF=1   run COMMAND without metering

Exit codes: that of COMMAND; 2 bad usage, 3 over budget: not started, or ended by a limit, 126 COMMAND cannot be executed,
127 COMMAND was not found."""
_PLACES = 9  # of a sum of US dollars: nano-USD
_MOST = 1 << 62


class UsageError(Exception):
    """The command line is wrong; the message is one line that says what to do."""


class Options:
    """What the command line of ``run`` said. ``max_cost_nusd`` and ``max_tokens`` are the run's own limits.

    ``remote``: URL of the daemon that gets the run, or None where a ledger does.
    """

    __slots__ = ("agent", "attrs", "command", "config", "help", "ledger", "max_cost_nusd", "max_tokens", "remote", "task")

    def __init__(self) -> None:
        self.agent = self.task = ""
        self.ledger: str | None = None
        self.config: str | None = None
        self.attrs: dict[str, str] = {}
        self.max_cost_nusd: int | None = None
        self.max_tokens: int | None = None
        self.remote: str | None = None
        self.command: list[str] = []
        self.help = False


def is_run(argv: Sequence[str]) -> bool:
    """Whether the first argument that is not a global flag is ``run``."""
    return _command_at(argv) is not None


def parse(argv: Sequence[str], env: Mapping[str, str]) -> Options:
    """Reads *argv*, which holds global flags, ``run``, its flags and the command.

    Raises:
        UsageError: with the one line to print.
    """
    options = Options()
    at = _command_at(argv)
    if at is None:
        raise UsageError(f"no 'run' in the arguments; usage: {USAGE}")
    _take(options, argv[:at], GLOBALS)
    rest = argv[at + 1 :]
    options.command = list(rest[_take(options, rest, GLOBALS + FLAGS) :])
    if not options.command and not options.help:
        raise UsageError(f"no command to run; usage: {USAGE}")
    options.agent = options.agent or env.get("SPENDMETER_AGENT") or "unknown"
    options.task = options.task or env.get("SPENDMETER_TASK") or "unknown"
    if options.max_cost_nusd is None and (text := env.get("SPENDMETER_MAX_COST")):
        options.max_cost_nusd = _nusd("SPENDMETER_MAX_COST", text)
    if options.max_tokens is None and (text := env.get("SPENDMETER_MAX_TOKENS")):
        options.max_tokens = _tokens("SPENDMETER_MAX_TOKENS", text)
    if options.remote and options.ledger:
        raise UsageError("run: a run goes to --remote or to --ledger; leave one out")
    if not options.ledger and (text := options.remote or env.get("SPENDMETER_REMOTE")):
        options.remote = daemon_url("--remote" if options.remote else "SPENDMETER_REMOTE", text)
    return options


def daemon_url(name: str, text: str) -> str:
    """*text*, which was given as *name*, as the address of a daemon, without a slash at its end.

    Raises:
        UsageError: it is none; what is said does not hold it, for there may be a password in it.
    """
    scheme, _, rest = text.strip().rstrip("/").partition("://")
    host = rest.partition("/")[0]
    is_plain = host and not any(c in rest for c in "@?#\\") and rest.isascii() and rest.isprintable() and " " not in rest
    if scheme.lower() not in ("http", "https") or not is_plain:
        raise UsageError(f"{name} is not the address of a daemon, as in https://meter.example.org; a token goes into SPENDMETER_TOKEN")
    return f"{scheme.lower()}://{rest}"


def help_text() -> str:
    """What ``run --help`` prints."""
    rows = (*FLAGS, ("-h, --help", "", "this text"), *GLOBALS)
    width = max(len(f"{name} {meta}") for name, meta, _ in rows)
    lines = [f"  {f'{name} {meta}'.strip():<{width}}  {text}" for name, meta, text in rows]
    return "\n".join([f"Usage: {USAGE}", "", *lines, "", NOTES, ""])


def _command_at(argv: Sequence[str]) -> int | None:
    names = [name for name, _, _ in GLOBALS]
    i = 0
    while i < len(argv):
        if argv[i] in names:
            i += 2
        elif argv[i].partition("=")[0] in names:
            i += 1
        else:
            return i if argv[i] == "run" else None
    return None


def _take(options: Options, words: Sequence[str], flags: Sequence[tuple[str, str, str]]) -> int:
    """Takes the leading flags of *words* into *options*; the index of the first word after them."""
    known = {name: meta for name, meta, _ in flags}
    i = 0
    while i < len(words):
        name, eq, value = words[i].partition("=")
        if words[i] == "--":
            return i + 1
        if words[i] in ("-h", "--help"):
            options.help = True
            return len(words)
        if not name.startswith("-") or name == "-":
            return i
        if name not in known:
            raise UsageError(f"run: {_unknown(name, list(known))}; see 'spendmeter run --help'")
        if not eq:
            i += 1
            if i == len(words):
                raise UsageError(f"run: {name} needs a value, {known[name]}; see 'spendmeter run --help'")
            value = words[i]
        _put(options, name, value)
        i += 1
    return i


def _put(options: Options, name: str, value: str) -> None:
    value = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # argv may hold any bytes, a tag may not
    if name == "--max-cost":
        options.max_cost_nusd = _nusd(name, value)
    elif name == "--max-tokens":
        options.max_tokens = _tokens(name, value)
    elif name == "--attr":
        _tag(options, value)
    else:
        setattr(options, name[2:], value)


def _tag(options: Options, value: str) -> None:
    key, eq, text = value.partition("=")
    if not eq or not key:
        raise UsageError(f'run: --attr "{value}" is not KEY=VALUE, as in --attr plan=book')
    options.attrs[key] = text


def _nusd(name: str, text: str) -> int:
    """US dollars, such as 2 or 0.50, in nano-USD."""
    whole, _, part = text.strip().partition(".")
    digits = whole + part
    nusd = int(whole or "0") * 10**_PLACES + int(part.ljust(_PLACES, "0")) if _is_number(digits) and len(part) <= _PLACES else 0
    if not 0 < nusd < _MOST:
        raise UsageError(f'run: {name} "{text}" is not an amount of US dollars above 0, as in 2 or 0.50')
    return nusd


def _tokens(name: str, text: str) -> int:
    n = int(text) if _is_number(text.strip()) else 0
    if not 0 < n < _MOST:
        raise UsageError(f'run: {name} "{text}" is not a number of tokens above 0, as in 200000')
    return n


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 40  # int() refuses thousands of digits


def _unknown(name: str, known: list[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, known, 1)
    return f"there is no flag {name}" + (f"; did you mean {near[0]}?" if near else "")
