"""Which CLI a command line starts, and which session and model it names. Reads flags and ids; keeps no other word of it."""

from __future__ import annotations

from collections.abc import Sequence

CLIS = ("claude", "codex", "gemini", "qwen", "opencode", "copilot")
PACKAGES = {
    "@anthropic-ai/claude-code": "claude", "@openai/codex": "codex", "@google/gemini-cli": "gemini",
    "@qwen-code/qwen-code": "qwen", "opencode-ai": "opencode", "@github/copilot": "copilot",
}  # fmt: skip
# Commands whose later words name the real one.
LAUNCHERS = frozenset((
    "npx", "npm", "pnpm", "yarn", "bunx", "bun", "node", "nodejs", "deno", "env", "timeout", "nice", "ionice", "nohup", "stdbuf",
    "setsid", "time", "sudo", "doas", "caffeinate", "unbuffer",
))  # fmt: skip
_SHORT = ("codex", "gemini", "qwen", "opencode")  # whose -m is --model
_HEX = frozenset("0123456789abcdefABCDEF")
_IN_MODELS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._:/@[]")
_MODEL_MAX = 128


class Command:
    """What a command line tells: ``cli`` and ``model``; of Claude Code ``resumed``, ``session``, ``forked`` and ``continued`` too."""

    __slots__ = ("cli", "continued", "forked", "model", "resumed", "session")

    def __init__(self, argv: Sequence[str]) -> None:
        at, self.cli = _find(argv)
        self.resumed: str | None = None
        self.session: str | None = None
        self.model: str | None = None
        self.forked = self.continued = False
        if self.cli is not None:
            self._read(argv[at + 1 :], self.cli)

    def _read(self, words: Sequence[str], cli: str) -> None:
        for i, word in enumerate(words):
            if word == "--":
                return
            name, eq, value = word.partition("=")
            value = value if eq else words[i + 1] if i + 1 < len(words) else ""
            if (name == "--model" or (name == "-m" and cli in _SHORT)) and _is_model(value):
                self.model = value.partition("/")[2] or value if cli == "opencode" else value  # it names the provider first
            elif cli == "claude":
                self._read_claude(word, name, value)

    def _read_claude(self, word: str, name: str, value: str) -> None:
        if name in ("--resume", "-r") and _is_uuid(value):
            self.resumed = value
        elif name == "--session-id" and _is_uuid(value):
            self.session = value
        elif word in ("--continue", "-c"):
            self.continued = True
        elif word == "--fork-session":
            self.forked = True


def _find(argv: Sequence[str]) -> tuple[int, str | None]:
    if not argv:
        return 0, None
    if name := _named(argv[0]):
        return 0, name
    if _base(argv[0]) in LAUNCHERS:
        for i, word in enumerate(argv[1:], 1):
            if name := _named(word):
                return i, name
    return 0, None


def _named(word: str) -> str | None:
    """The CLI that *word*, a path, a program name or an npm package, stands for."""
    for package, cli in PACKAGES.items():
        if word == package or word.startswith(f"{package}@") or f"/{package}/" in word:
            return cli
    base = _base(word)
    return base if base in CLIS else None


def _base(word: str) -> str:
    base = word.replace("\\", "/").rstrip("/").rpartition("/")[2]
    for suffix in (".exe", ".cmd", ".js", ".mjs", ".cjs"):
        base = base.removesuffix(suffix)
    return base


def _is_model(text: str) -> bool:
    """Names of models have no blanks, texts of prompts do."""
    return 0 < len(text) <= _MODEL_MAX and not text.startswith("-") and _IN_MODELS.issuperset(text)


def _is_uuid(text: str) -> bool:
    parts = text.split("-")
    return [len(p) for p in parts] == [8, 4, 4, 4, 12] and all(_HEX.issuperset(p) for p in parts)
