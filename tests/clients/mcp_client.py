"""The official client of MCP: with and without a handshake."""

import asyncio
import base64

from mcp import Client


async def talk(server, **options):
    progress = []

    async def note(done, total, message):
        progress.append((done, total))

    async with Client(server.url + "/mcp", **options) as client:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == ["generate_image", "list_models"]
        result = await client.call_tool(
            "generate_image", {"prompt": "a fox", "steps": 4, "seed": 5}, progress_callback=note)
        assert not result.is_error, result
        wrong = await client.call_tool("generate_image", {"prompt": "a fox", "size": "17x17"})
        assert wrong.is_error
    return base64.b64decode(result.content[0].data), progress


def check(server):
    reference = server.drawn("a fox", "--seed", "5", "--steps", "4")
    for options in [{}, {"mode": "legacy"}]:
        image, progress = asyncio.run(talk(server, **options))
        assert image == reference, options
        assert progress, options
