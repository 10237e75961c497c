"""Submit a batch as a plain arq message, for applications that use arq already.

Needs a running `tweezer up`, and its variables: `. ~/.local/share/tweezer/env`. The sequence comes from a file:

    python examples/checkerboard.py > sequence.json
    python examples/arq_producer.py sequence.json
"""

import asyncio
import os
import sys
from pathlib import Path

from arq import create_pool
from arq.connections import RedisSettings

from tweezer.model.wire import deserialize, serialize


async def main(sequence: str) -> None:
    pool = await create_pool(
        RedisSettings.from_dsn(os.environ["TWEEZER_REDIS_URL"]),
        job_serializer=serialize,  # MessagePack: Tweezer refuses messages in pickle
        job_deserializer=deserialize,
        default_queue_name="tweezer:intake",
    )
    try:
        message = await pool.enqueue_job(
            "submit_batch",
            {
                "sequence": sequence,
                "jobs": [{"runs": 500, "variables": {"final_detuning": value}} for value in (0.0, 8.0, 16.0)],
                "device": "EMU_FREE",
                "name": "from arq",
            },
        )
        assert message is not None  # None only where the same _job_id was enqueued before
        print(await message.result(timeout=30))  # the id of the batch, or an error that names the wrong field
    finally:
        await pool.aclose()


asyncio.run(main(Path(sys.argv[1]).read_text(encoding="utf-8")))
