"""The tools as an MCP server: lists them, checks arguments, turns errors into tool errors of one line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import anyio.to_thread
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from pydantic import ValidationError
from pydantic_core import ErrorDetails

import spendmeter
from spendmeter.errors import SpendmeterError
from spendmeter.server.details import NoRunError
from spendmeter.server.guard import where
from spendmeter.server.mcp_server.source import Source
from spendmeter.server.mcp_server.tools import TOOLS, Tool

INSTRUCTIONS = (
    "Spendmeter meters coding-agent runs: tokens and cost per agent and task, and budgets that limit them. Runs under `spendmeter run` "
    "are recorded by themselves; record_token_event is for usage that nothing else meters. Amounts are exact; null means unknown, not 0; "
    "money is a decimal string in USD."
)
log = logging.getLogger("spendmeter.mcp")
_BY_NAME = {tool.name: tool for tool in TOOLS}


def server(source: Source, may: Callable[[Any, str], bool] = lambda request, scope: True) -> Server[Any]:
    """An MCP server that answers from *source*, for any transport.

    Args:
        may: whether a transport's request (None on stdio) may do what the token scope "read" or "write" is for.
    """
    told = types.ListToolsResult(tools=[_described(tool) for tool in TOOLS])

    async def list_tools(_ctx: Any, _params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return told

    async def call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        tool = _BY_NAME.get(params.name)
        if tool and not may(ctx.request, tool.scope):
            return _failed(f"this needs a token with the scope {tool.scope}; spendmeter token create makes one")
        return await anyio.to_thread.run_sync(call, source, params.name, params.arguments or {})

    _hush()
    return Server(
        "spendmeter", version=spendmeter.__version__, instructions=INSTRUCTIONS, on_list_tools=list_tools, on_call_tool=call_tool,
        get_tool_input_schema=lambda name: _BY_NAME[name].takes if name in _BY_NAME else None,
    )  # fmt: skip


def call(source: Source, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
    """What the tool *name* answers; an error is an answer too, in one line without a trace."""
    tool = _BY_NAME.get(name)
    if tool is None:
        return _failed(f"there is no such tool; there are {', '.join(_BY_NAME)}")
    try:
        answer = tool.call(source, tool.read(arguments))
    except ValidationError as e:
        return _failed(_refused(e, tool))
    except (SpendmeterError, NoRunError) as e:
        return _failed(str(e))
    except Exception as e:  # noqa: BLE001 - whatever it is, its text is neither for the log nor for the agent
        log.error("%s: %s", name, where(e))  # noqa: TRY400
        return _failed("spendmeter met a defect of its own; its log names the place")
    return types.CallToolResult(content=[types.TextContent(text=answer.text)], structured_content=answer.document)


def _described(tool: Tool) -> types.Tool:
    hints = types.ToolAnnotations(
        title=tool.title, read_only_hint=not tool.writes, destructive_hint=False, idempotent_hint=not tool.writes, open_world_hint=False
    )
    return types.Tool(
        name=tool.name, title=tool.title, description=tool.description, input_schema=tool.takes,
        output_schema=tool.gives.model_json_schema(mode="serialization"), annotations=hints,
    )  # fmt: skip


def _failed(line: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=" ".join(line.split()))], is_error=True)


def _refused(e: ValidationError, tool: Tool) -> str:
    """Each argument that was refused, by name, and what was expected; never its value."""
    known = ", ".join(tool.takes["properties"])
    return "; ".join(f"{'.'.join(map(str, x['loc']))}: {_expected(x, known)}" for x in e.errors(include_url=False, include_input=False))


def _expected(error: ErrorDetails, known: str) -> str:
    if error["type"] == "extra_forbidden":
        return f"no such argument; there are {known}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    message = error["msg"]
    return "is required" if error["type"] == "missing" else f"{message[:1].lower()}{message[1:]}"


def _hush() -> None:
    """The SDK logs what it was sent where that is no message of the protocol: nothing of that is for a log."""
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
