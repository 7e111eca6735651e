"""An agent as far as MCP is concerned: the SDK's own client, which checks each document against the schema that its tool promised."""

from __future__ import annotations

from typing import Any

import anyio
from mcp import Client
from mcp.types import CallToolResult, TextContent, Tool

Question = tuple[str, dict[str, Any]]


def ask(server: Any, *questions: Question, mode: str = "auto") -> list[CallToolResult]:
    """What a server (an object, an address, a command to start) answers, one question after the other over one connection.

    Args:
        mode: "legacy" shakes hands as protocols up to 2025-11-25 do; "auto" speaks the newest that both know.
    """

    async def talk() -> list[CallToolResult]:
        async with Client(server, mode=mode, read_timeout_seconds=60) as client:
            return [await client.call_tool(name, arguments) for name, arguments in questions]

    return anyio.run(talk)


def tools(server: Any) -> dict[str, Tool]:
    """The tools of a server by name."""

    async def listed() -> list[Tool]:
        async with Client(server) as client:
            return (await client.list_tools()).tools

    return {tool.name: tool for tool in anyio.run(listed)}


def told(result: CallToolResult) -> dict[str, Any]:
    """The document of an answer that is no error."""
    assert not result.is_error, text(result)
    assert result.structured_content is not None
    return result.structured_content


def refused(result: CallToolResult) -> str:
    """The one line of an error."""
    assert result.is_error
    assert result.structured_content is None
    assert "\n" not in text(result)
    return text(result)


def text(result: CallToolResult) -> str:
    """What an agent reads."""
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text
