"""The model server of the demo: KServe's own class; the patch comes from ``mlops-ext run``."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any


def main() -> None:
    """Serve one model that takes 50 ms for a request, and says 0 once it has been stopped."""
    from kserve import Model, ModelServer, model_server  # type: ignore[import-untyped]  # no types

    class Slow(Model):  # type: ignore[misc]  # of a package without types
        stopped = False

        def stop(self) -> None:
            self.stopped = True

        async def predict(self, *_: Any, **__: Any) -> dict[str, list[int]]:
            await asyncio.sleep(0.05)
            return {"predictions": [0 if self.stopped else 1]}

    args, _ = argparse.ArgumentParser(parents=[model_server.parser]).parse_known_args()
    model = Slow("m")
    model.load()
    ModelServer(http_port=args.http_port, grpc_port=args.grpc_port).start([model])


if __name__ == "__main__":
    main()
